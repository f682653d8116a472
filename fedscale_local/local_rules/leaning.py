"""Local Adam that starts from the server's second moment and leans on the last mean displacement."""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale_local.local_rule import (
    Again,
    LocalRule,
    Setting,
    Shared,
    State,
    Upkeep,
    mean_displacement,
    mean_of_sent,
    one,
    whole,
)
from fedscale_local.local_rules.adam import debiased, denominator, moments_, start_moments
from fedscale_local.vector import Layout


def fedlada(setting: Setting, beta1: float, beta2: float, epsilon: float, lean: float) -> LocalRule:
    """Adam from the server's second moment; a part of each step is the last round's mean step.

        m = 0, s = the server's;   k = 1, 2, ...
        m <- beta1 m + (1 - beta1) g;   s <- beta2 s + (1 - beta2) g^2
        P = (m / (1 - beta1^k)) / (sqrt(s / (1 - beta2^(t+k))) + epsilon)
        G = (x_(p-1) - x_p) / (mean local steps * step_size)          0 in round 1
        v <- v - step_size * ((1 - lean) P + lean G)
        server: s <- mean_m s_m;   t: the steps that s has seen, averaged with it

    Source: Sun et al. 2023 (arXiv 2308.00522), Algorithm 1, FedLADA.
    Departures: the maximum over s (AMSGrad) is not taken; G is sent, though a client that keeps two models could find
    it out by itself.
    """
    return _leaning(setting, beta1, beta2, epsilon, lean, 1 - lean)


def fedpac(setting: Setting, beta1: float, beta2: float, epsilon: float, lean: float) -> LocalRule:
    """Preconditioner states aligned by the server, and each step corrected by the last round's mean step.

        P = Adam's direction, from m = 0 and the server's s;   G = the last round's mean step, 0 in round 1
        v <- v - step_size * ((1 - lean) P + lean G)
        server: s <- mean_m s_m

    P, G and their clocks are written out at FedLADA.

    Source: Liu et al. 2026 (arXiv 2602.19271), FedPAC.
    Departures: the paper's preconditioners are SOAP, Sophia and Muon; with Adam's, taken here, the recurrence is
    FedLADA's, and the two names differ by `lean` alone.
    """
    return fedlada(setting, beta1, beta2, epsilon, lean)


def fedadamw(
    setting: Setting, beta1: float, beta2: float, epsilon: float, lean: float, decay: float
) -> LocalRule:
    """AdamW from the means of the server's second moment over each named tensor, and the last round's mean step added.

        m = 0, s = its mean over each named tensor, the server's;   k = 1, 2, ...
        m <- beta1 m + (1 - beta1) g;   s <- beta2 s + (1 - beta2) g^2
        P = (m / (1 - beta1^k)) / (sqrt(s / (1 - beta2^(t+k))) + epsilon)
        G = (x_(p-1) - x_p) / (mean local steps * step_size)          0 in round 1
        v <- (1 - step_size decay) v - step_size * (P + lean G)
        server: a number for each named tensor, the mean of the clients' s over it, is all that travels of s

    Source: Liu et al. 2025 (arXiv 2510.27486), FedAdamW.
    Departures: the paper prints the decay with the other sign; here it shrinks v. Blocks are the named tensors.
    """
    return _leaning(setting, beta1, beta2, epsilon, lean, 1.0, decay, block_means=True)


def _leaning(
    setting: Setting,
    beta1: float,
    beta2: float,
    epsilon: float,
    lean: float,
    share: float,
    decay: float = 0.0,
    block_means: bool = False,
) -> LocalRule:
    """share: P's weight; block_means: of s only the mean of each tensor travels."""
    layout, step_size = setting.layout, setting.step_size

    def begin(state: State, v: Tensor) -> None:
        if block_means:
            state["second"] = _spread(state["second"], layout)
        start_moments(state, v, fresh=("first",))

    def step(state: State, v: Tensor, g: Tensor, again: Again) -> None:
        moments_(state, g, beta1, beta2)
        adam = debiased(state, "first", beta1).div_(denominator(state, beta2, epsilon))
        if decay:
            v.mul_(1 - step_size * decay)
        v.sub_(adam.mul_(share).add_(state["global_step"], alpha=lean), alpha=step_size)

    def end(state: State, v: Tensor, num_steps: Tensor | float) -> None:
        if block_means:
            state["second"] = _means(state["second"], layout)

    def divisor(state: State) -> Tensor:
        second = _spread(state["second"], layout) if block_means else state["second"]
        return denominator({**state, "second": second}, beta2, epsilon)

    def per_step(round: Upkeep) -> Tensor:
        return mean_displacement(round).div_(step_size)

    shared = {
        "second": Shared(mean_of_sent, _num_blocks if block_means else whole),
        "second_clock": Shared(mean_of_sent, one, counts_steps=True),
        "global_step": Shared(per_step),
    }
    sends = ("second", "second_clock")
    return LocalRule(shared=shared, sends=sends, begin=begin, step=step, end=end, divisor=divisor)


def _num_blocks(layout: Layout) -> int:
    return len(layout.names)


def _means(vector: Tensor, layout: Layout) -> Tensor:
    """The mean of each named tensor, (..., d) -> (..., tensors)."""
    return torch.stack([part.mean(dim=-1) for part in vector.split(layout.sizes, dim=-1)], dim=-1)


def _spread(means: Tensor, layout: Layout) -> Tensor:
    """Each tensor's number in all of its places, (..., tensors) -> (..., d)."""
    sizes = torch.tensor(layout.sizes).to(means.device)
    return means.repeat_interleave(
        sizes, dim=-1, output_size=layout.size
    )  # a GPU is not asked how many that are
