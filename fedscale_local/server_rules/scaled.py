"""A preconditioner that only the server has."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale_local.scaling import Memory, Scaling
from fedscale_local.server_rule import ServerRule, ServerState


def scaled(
    eta: float,
    memory: str,
    beta: float,
    alpha: float,
    floor: str,
    upper_bound: float | None,
    rho: float | None,
) -> ServerRule:
    """The server divides the displacement by a preconditioner of its own, by any memory of the scaling table that needs
    no curvature.

        D <- refresh(D, Delta);   D-hat <- floor(D), at most upper_bound;   x <- x + eta clip(Delta / D-hat, rho)

    Source: ours: the scaled local method's D, moved to the server. memory=identity is a server's step size alone.
    Departures: from FedAdam, with memory=adam and floor=add: no first moment, and Adam's correction of the second. The
    memories adahessian and sophia are not offered: they are adam's and oasis's, told of curvature, which takes data,
    and a server has only the displacement. memory=oasis with a rho is Sophia's step along it.
    """
    scaling = Scaling(memory, beta, alpha, floor, upper_bound, rho)

    def start(x: Tensor) -> ServerState:
        first = scaling.init(x)
        return {} if first is None else {"memory": first.value, "clock": torch.zeros(1, dtype=torch.int64)}

    def move(x: Tensor, combined: Tensor, state: ServerState, share: float) -> Tensor:
        delta, d_hat = combined - x, None
        if state:
            refreshed = scaling.refresh(Memory(state["memory"], int(state["clock"])), delta)
            state["memory"], state["clock"] = refreshed.value, state["clock"] + 1
            d_hat = scaling.d_hat(refreshed)
        return scaling.step_(x.clone(), -delta, d_hat, eta)

    return ServerRule(start, move)
