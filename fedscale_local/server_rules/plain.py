"""The server that takes what was combined."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale_local.server_rule import ServerRule, ServerState


def plain(eta: float) -> ServerRule:
    """The server takes what was combined, or a part of the way there.

        x <- x + eta Delta                    eta = 1: x is what was combined, with no sum in between

    Source: McMahan et al. 2017, Algorithm 1, for eta = 1; another eta is the server's step size of Reddi et al. 2021,
    Algorithm 1.
    """

    def move(x: Tensor, combined: Tensor, state: ServerState, share: float) -> Tensor:
        return combined if eta == 1.0 else torch.lerp(x, combined, eta)

    return ServerRule(lambda x: {}, move)
