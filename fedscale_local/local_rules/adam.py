"""Adam and AdamW as the client's own optimiser, and what becomes of its moments between two rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fedscale_local.local_rule import (
    PLAIN,
    Again,
    LocalRule,
    Setting,
    Shared,
    State,
    mean_of_sent,
    one,
    whole,
)


def adam(
    setting: Setting,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
    moments: str,
    first_every: int = 1,
    second_every: int = 1,
) -> LocalRule:
    """Adam or, with a decay, AdamW on the client.

        t <- t + 1;   v <- (1 - step_size decay) v
        m <- beta1 m + (1 - beta1) g;   s <- beta2 s + (1 - beta2) g^2
        v <- v - step_size * (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + epsilon)

    Source: Kingma and Ba 2015, Algorithm 1; the decoupled decay: Loshchilov and Hutter 2019, Algorithm 2.
    Departures: none.
    """

    def step(state: State, v: Tensor, g: Tensor, again: Again) -> None:
        adam_step_(state, v, g, setting.step_size, beta1, beta2, epsilon, decay)

    def divisor(state: State) -> Tensor | None:
        return denominator(state, beta2, epsilon) if "second" in state else None

    rule = BETWEEN[moments](first_every, second_every)
    return replace(rule, begin=start_moments, step=step, divisor=divisor)


SIZES = {"first": whole, "first_clock": one, "second": whole, "second_clock": one}


def restart(first_every: int, second_every: int) -> LocalRule:
    """Between rounds: m, s and t begin at zero in each round."""
    return PLAIN


def kept(first_every: int, second_every: int) -> LocalRule:
    """Between rounds: each client goes on with its own m, s and t."""
    return LocalRule(keeps=SIZES)


def averaged(first_every: int, second_every: int) -> LocalRule:
    """Between rounds: clients begin with the weighted means of m, s and t, which travel with the model.

    m may travel in every first_every-th and s in every second_every-th round only, from the first round on; meanwhile
    each client goes on with its own. t is counted for each moment beside it and averaged with it, so a client that has
    one moment of the server and not yet the other corrects each by its own count. In the papers clients take equally
    many steps; where they do not, the mean count is the one whose correction is right to first order in 1 - beta.
    """
    every = {name: first_every if name.startswith("first") else second_every for name in SIZES}
    return LocalRule(
        shared={name: Shared(mean_of_sent, size, every[name], size is one) for name, size in SIZES.items()},
        sends=tuple(SIZES),
        keeps={name: size for name, size in SIZES.items() if every[name] > 1},
    )


BETWEEN: dict[str, Callable[[int, int], LocalRule]] = {
    "restart": restart,
    "kept": kept,
    "averaged": averaged,
}
MOMENTS = ("first", "second")


def start_moments(state: State, v: Tensor, fresh: tuple[str, ...] = ()) -> None:
    """Both moments and their clocks as tensors of v's own, from the state where they are there and not `fresh`."""
    nothing = v.new_zeros(1)
    for name in MOMENTS:
        start, clock = state.get(name, nothing), state.get(f"{name}_clock", nothing)
        if name in fresh:
            start = clock = nothing
        state[name] = start.expand_as(v).clone()
        state[f"{name}_clock"] = clock.expand(*v.shape[:-1], 1).clone()


def adam_step_(
    state: State,
    v: Tensor,
    g: Tensor,
    step_size: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
) -> None:
    """One step of AdamW in place, in v and in the state's moments and their clocks."""
    moments_(state, g, beta1, beta2)
    if decay:
        v.mul_(1 - step_size * decay)
    v.addcdiv_(debiased(state, "first", beta1), denominator(state, beta2, epsilon), value=-step_size)


def moments_(state: State, g: Tensor, beta1: float, beta2: float) -> None:
    """Renew `first` and `second` by a gradient and count it, in place."""
    for name in MOMENTS:
        state[f"{name}_clock"] += 1
    state["first"].mul_(beta1).add_(g, alpha=1 - beta1)
    state["second"].mul_(beta2).addcmul_(g, g, value=1 - beta2)


def denominator(state: State, beta2: float, epsilon: float) -> Tensor:
    """What Adam's step divides by, of the state's second moment and its clock."""
    return debiased(state, "second", beta2).sqrt_().add_(epsilon)


def debiased(state: State, name: str, beta: float) -> Tensor:
    """The moment divided by 1 - beta^t, as Adam corrects it; t may be a weighted mean of counts."""
    correction = 1 - beta ** state[f"{name}_clock"].to(torch.float64)
    return state[name] / correction.to(state[name].dtype)
