"""A preconditioner that only the server has."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale_local.scaling import Memory, Scaling
from fedscale_local.server_rule import ServerRule, ServerState


def scaled(eta: float, memory: str, beta: float, alpha: float, floor: str) -> ServerRule:
    """The server divides the displacement by a preconditioner of its own, by any memory of the scaling table.

        D <- refresh(D, Delta);   D-hat <- floor(D);   x <- x + eta Delta / D-hat

    Source: ours: the scaled local method's D, moved to the server.
    Departures: from FedAdam, with memory=adam and floor=add: no first moment, and Adam's correction of the second.
    """
    scaling = Scaling(memory, beta, alpha, floor)

    def start(x: Tensor) -> ServerState:
        return {"memory": torch.zeros_like(x), "clock": torch.zeros(1, dtype=torch.int64)}

    def move(x: Tensor, combined: Tensor, state: ServerState, share: float) -> Tensor:
        delta = combined - x
        refreshed = scaling.refresh(Memory(state["memory"], int(state["clock"])), delta)
        state["memory"], state["clock"] = refreshed.value, state["clock"] + 1
        d_hat = scaling.d_hat(refreshed)
        assert d_hat is not None, "a memory that was refreshed has a D-hat"
        return x + eta * delta / d_hat

    return ServerRule(start, move)
