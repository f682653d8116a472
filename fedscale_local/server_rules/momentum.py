"""Momentum on the server."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale_local.server_rule import ServerRule, ServerState


def momentum(eta: float, beta1: float) -> ServerRule:
    """The server adds up displacements as a heavy ball.

        m <- beta1 m + Delta;   x <- x + eta m                    m is 0 at first

    Source: Hsu et al. 2019 (arXiv 1909.06335), FedAvgM.
    Departures: none; beta1 = 0 is FedAvg. After many rounds that agree a step is 1 / (1 - beta1) displacements long.
    """

    def move(x: Tensor, combined: Tensor, state: ServerState, share: float) -> Tensor:
        return x + eta * _accumulated(state, combined - x, beta1)

    return ServerRule(_start, move)


def nesterov(eta: float, beta1: float) -> ServerRule:
    """The server takes Nesterov's step, in the form of torch.optim.SGD with the gradient -Delta.

        m <- beta1 m + Delta;   x <- x + eta (Delta + beta1 m)    m is 0 at first

    Source: Douillard et al. 2023 (arXiv 2311.08105), Algorithm 1, the outer step of DiLoCo.
    Departures: none.
    """

    def move(x: Tensor, combined: Tensor, state: ServerState, share: float) -> Tensor:
        delta = combined - x
        return x + eta * (delta + beta1 * _accumulated(state, delta, beta1))

    return ServerRule(_start, move)


def _start(x: Tensor) -> ServerState:
    return {"m": torch.zeros_like(x)}


def _accumulated(state: ServerState, delta: Tensor, beta1: float) -> Tensor:
    m = state["m"] = beta1 * state["m"] + delta
    return m
