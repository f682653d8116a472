r"""Scaling rules: the memory D of a statistic H, its floor D-hat, and the scaled step.

Every rule is the same few parts (Chezhegov et al., Local Methods with Adaptivity via Scaling, arXiv 2406.00846;
the choices that the paper leaves open are ours, see docs/explanation-algorithm.md):

    refresh   value <- keep_t * value + add_t * (H^2 or H)      t counts refreshes, from 0
    D         sqrt(value) for rules on squares, value itself for signed rules
    D-hat     max(alpha, |D|) or |D| + alpha, then at most upper_bound; so D-hat > 0
    step      v <- v - step_size * b / D-hat                     b: the gradient, or its momentum buffer

All functions are elementwise over leading axes: (d,) for one client or the server, (clients, d) for a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Clock = int | Tensor
"""How often a memory was refreshed: an int, or (clients, 1) for a stack whose clients differ."""


class Memory(NamedTuple):
    """What a rule remembers: `value` (..., d) holds D^2 (rules on squares) or D (signed rules)."""

    value: Tensor
    clock: Clock


class Rule(NamedTuple):
    """One row of the table: does H enter squared, and how are old and new weighed at clock t?"""

    squares: bool
    weights: Callable[[Clock, float], tuple[float | Tensor, float | Tensor]]


def _accumulate(clock: Clock, beta: float) -> tuple[float, float]:
    """Old and new count in full; beta is not used."""
    return 1.0, 1.0


def _decay(clock: Clock, beta: float) -> tuple[float | Tensor, float | Tensor]:
    """beta_t = 0 at t = 0, then beta: the first statistic replaces whatever stood there."""
    keep = beta * clock.clamp(max=1) if isinstance(clock, Tensor) else beta * min(clock, 1)
    return keep, 1.0 - keep


def _debiased_decay(clock: Clock, beta: float) -> tuple[float | Tensor, float | Tensor]:
    """beta_t = (beta - beta^(t+1)) / (1 - beta^(t+1)): D is then Adam's bias-corrected sqrt(v-hat)."""
    power = beta ** (clock + 1)
    keep = (beta - power) / (1.0 - power)
    return keep, 1.0 - keep


RULES: dict[str, Rule | None] = {
    "identity": None,
    "adagrad": Rule(squares=True, weights=_accumulate),
    "rmsprop": Rule(squares=True, weights=_decay),
    "adam": Rule(squares=True, weights=_debiased_decay),
    "oasis": Rule(squares=False, weights=_decay),
    "adahessian": Rule(squares=True, weights=_debiased_decay),
    "sophia": Rule(squares=False, weights=_decay),
}


@dataclass(frozen=True)
class Scaling:
    """A rule of the table with its hyper-parameters.

    rule: a key of RULES.  beta: memory decay.  alpha: the floor, in units of D.  floor: "max" or "add".
    upper_bound: optional cap of D-hat.  rho: optional elementwise bound of the scaled direction (Sophia's clip).

    >>> adam = Scaling("adam", beta=0.9, alpha=1e-8)
    >>> memory = adam.refresh(adam.init(torch.zeros(2)), torch.tensor([3.0, -4.0]))
    >>> adam.d_hat(memory)
    tensor([3., 4.])
    >>> Scaling("identity").d_hat(None) is None
    True
    """

    rule: str = "identity"
    beta: float = 0.99
    alpha: float = 1e-8
    floor: str = "max"
    upper_bound: float | None = None
    rho: float | None = None

    @property
    def is_identity(self) -> bool:
        return RULES[self.rule] is None

    def init(self, x: Tensor, ones: bool = False) -> Memory | None:
        """The memory before any statistic, shaped as x: zeros, or ones. None for the identity."""
        if self.is_identity:
            return None
        return Memory(torch.ones_like(x) if ones else torch.zeros_like(x), 0)

    def refresh(self, memory: Memory, statistic: Tensor) -> Memory:
        """One refresh of D from a statistic (..., d); the clock advances by one."""
        rule = RULES[self.rule]
        assert rule is not None, "the identity has no memory to refresh"
        keep, add = rule.weights(memory.clock, self.beta)
        if isinstance(keep, Tensor):
            keep, add = keep.to(statistic.dtype), torch.as_tensor(add).to(statistic.dtype)
        measured = statistic * statistic if rule.squares else statistic
        return Memory(keep * memory.value + add * measured, memory.clock + 1)

    def d_hat(self, memory: Memory | None) -> Tensor | None:
        """D-hat (..., d) > 0; None where there is nothing to divide by: the identity, or no statistic yet."""
        rule = RULES[self.rule]
        if rule is None or memory is None or (isinstance(memory.clock, int) and memory.clock == 0):
            return None
        magnitude = memory.value.sqrt() if rule.squares else memory.value.abs()
        d_hat = magnitude.clamp(min=self.alpha) if self.floor == "max" else magnitude + self.alpha
        return d_hat if self.upper_bound is None else d_hat.clamp(max=self.upper_bound)

    def step_(self, v: Tensor, b: Tensor, d_hat: Tensor | None, step_size: float) -> Tensor:
        """In place: v <- v - step_size * b / D-hat, clipped elementwise to rho where the rule has one."""
        if self.rho is not None:
            return v.sub_((b if d_hat is None else b / d_hat).clamp(-self.rho, self.rho), alpha=step_size)
        if d_hat is None:
            return v.sub_(b, alpha=step_size)
        return v.addcdiv_(b, d_hat, value=-step_size)
