"""FedDyn's server."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale_local.server_rule import ServerRule, ServerState


def dynamic(eta: float, mu: float) -> ServerRule:
    """The server keeps the mean of all clients' linear terms, up to date for those that answered.

        h <- h - mu (S/N) Delta;   x <- x + eta (Delta - h / mu)      h is 0 at first

    Source: Acar et al. 2021, Algorithm 1, with eta = 1.
    Departures: none for eta = 1.
    """

    def move(x: Tensor, combined: Tensor, state: ServerState, share: float) -> Tensor:
        h = state["h"] = state["h"] - mu * share * (combined - x)
        return x + eta * (combined - h / mu - x)

    return ServerRule(lambda x: {"h": torch.zeros_like(x)}, move)
