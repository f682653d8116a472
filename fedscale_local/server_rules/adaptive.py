"""Adaptive servers: FedOpt's three, and FedAMS. They differ in the second moment alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedscale_local.server_rule import ServerRule, ServerState

Second = Callable[[Tensor, Tensor], Tensor]
"""(v, Delta^2) -> the new v"""


def adagrad(eta: float, beta1: float, beta2: float, tau: float) -> ServerRule:
    """The server divides by the root of all squared displacements so far.

        m <- beta1 m + (1 - beta1) Delta                 m is 0 at first
        v <- v + Delta^2                                 v is tau^2 at first
        x <- x + eta m / (sqrt(v) + tau)

    Source: Reddi et al. 2021, Algorithm 2, FedAdagrad.
    Departures: none; beta2 is not used. Flower's FedAdagrad starts v at 0.
    """
    return _adaptive(lambda v, square: v + square, eta, beta1, tau)


def adam(eta: float, beta1: float, beta2: float, tau: float) -> ServerRule:
    """The server takes Adam's step along the displacement, without a correction of the bias.

        m <- beta1 m + (1 - beta1) Delta                 m is 0 at first
        v <- beta2 v + (1 - beta2) Delta^2               v is tau^2 at first
        x <- x + eta m / (sqrt(v) + tau)

    Source: Reddi et al. 2021, Algorithm 2, FedAdam.
    Departures: none. Flower's FedAdam is not this one: its v starts at 0, and it scales eta by
    sqrt(1 - beta2^(p+1)) / (1 - beta1^(p+1)) in round p, where Adam's correction has the exponent p: 0.742 in round 1
    with beta1 = 0.9 and beta2 = 0.99.
    """
    return _adaptive(_decaying(beta2), eta, beta1, tau)


def yogi(eta: float, beta1: float, beta2: float, tau: float) -> ServerRule:
    """The server's second moment moves towards the squared displacement by a share of the square alone.

        m <- beta1 m + (1 - beta1) Delta                 m is 0 at first
        v <- v - (1 - beta2) Delta^2 sign(v - Delta^2)   v is tau^2 at first
        x <- x + eta m / (sqrt(v) + tau)

    Source: Reddi et al. 2021, Algorithm 2, FedYogi.
    Departures: none. Flower's FedYogi starts v at 0.
    """
    return _adaptive(lambda v, square: v - (1 - beta2) * square * torch.sign(v - square), eta, beta1, tau)


def ams(eta: float, beta1: float, beta2: float, tau: float) -> ServerRule:
    """As FedAdam's server, but the divisor never falls.

        m <- beta1 m + (1 - beta1) Delta                 m is 0 at first
        v <- beta2 v + (1 - beta2) Delta^2               v is tau^2 at first
        w <- max(w, v), coordinate by coordinate         w is tau^2 at first
        x <- x + eta m / (sqrt(w) + tau)

    Source: Wang et al. 2022 (arXiv 2205.02719), FedAMS, without its compression.
    Departures: v starts at tau^2 and tau stands beside the root, as in FedAdam; the paper has a floor of w in the
    place of both.
    """
    inner = _adaptive(_decaying(beta2), eta, beta1, tau, largest=True)
    return ServerRule(lambda x: inner.start(x) | {"v_max": torch.full_like(x, tau**2)}, inner.move)


def _decaying(beta2: float) -> Second:
    return lambda v, square: beta2 * v + (1 - beta2) * square


def _adaptive(second: Second, eta: float, beta1: float, tau: float, largest: bool = False) -> ServerRule:
    """largest: the root is of the largest second moment so far."""

    def start(x: Tensor) -> ServerState:
        return {"m": torch.zeros_like(x), "v": torch.full_like(x, tau**2)}

    def move(x: Tensor, combined: Tensor, state: ServerState, share: float) -> Tensor:
        delta = combined - x
        m = state["m"] = beta1 * state["m"] + (1 - beta1) * delta
        v = state["v"] = second(state["v"], delta * delta)
        if largest:
            v = state["v_max"] = torch.maximum(state["v_max"], v)
        return x + eta * m / (v.sqrt() + tau)

    return ServerRule(start, move)
