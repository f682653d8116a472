"""What a client may do beside plain scaled steps, and which vectors that needs: the parts of a local rule.

A local rule is a few pure functions on named vectors. `State` holds them by name: `x`, the model received; what the
server sent (`shared`), what the client kept from its last round (`keeps`, zeros before the first), and whatever the
rule adds for itself. Everything is elementwise over leading axes, so one client (d,) and a stack (clients, d) use the
same code; what all clients share stays (d,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from fedscale_local.server_step import weighted_sum
from fedscale_local.vector import Layout

State = dict[str, Tensor]
Sized = Callable[[Layout], int]
"""How many numbers a vector has, given the model's layout."""
Again = Callable[[Tensor], Tensor]
"""The gradient of the step's own mini-batch at another point (..., d)."""


class Setting(NamedTuple):
    """What of a run a rule may know."""

    layout: Layout
    step_size: float
    momentum: float = 0.0


class Upkeep(NamedTuple):
    """What the server knows when it renews a shared vector at the end of a round."""

    old: Tensor
    sent: Sequence[Tensor]
    """The replies' vectors of that name, in client order; none where clients do not send it."""
    weights: Sequence[float]
    before: Tensor
    after: Tensor
    """The model before and after the round."""
    num_steps: float
    """Weighted mean of the clients' local steps."""
    share: float
    """The weight of those that answered among all clients: S/N, or their part of all examples."""
    mean_gradient: Tensor | None = None
    """The clients' mean full-batch gradient at `before`, where the round began with it."""


def whole(layout: Layout) -> int:
    """As many as the model has parameters, d."""
    return layout.size


def one(layout: Layout) -> int:
    """A single number."""
    return 1


def mean_of_sent(round: Upkeep) -> Tensor:
    """The weighted mean of what the clients sent."""
    return weighted_sum(round.sent, round.weights)


def mean_displacement(round: Upkeep) -> Tensor:
    """(x_before - x_after) / local steps: the last round's mean move per local step, in gradient direction."""
    return (round.before - round.after).div_(round.num_steps)


def add_share(round: Upkeep) -> Tensor:
    """What was, and (S/N) times the mean of what the clients sent: a mean over all clients, kept up to date."""
    return round.old + round.share * weighted_sum(round.sent, round.weights)


@dataclass(frozen=True)
class Shared:
    """A vector that the server holds, sends with each message, and renews after each round; zeros at first."""

    renew: Callable[[Upkeep], Tensor]
    size: Sized = whole
    every: int = 1
    """Rounds between two renewals, the first after round 1; only then it travels, and clients keep theirs meanwhile."""
    counts_steps: bool = False
    """Is it a number of local steps, which tells nothing of a client's data? Privacy leaves it as it is."""


def _nothing(state: State, v: Tensor) -> None:
    pass


def _nothing_left(state: State, v: Tensor, num_steps: Tensor | float) -> None:
    pass


@dataclass(frozen=True)
class LocalRule:
    """One client's side of a method, and what the server has to hold for it.

    begin(state, v): before the first local step.
    correct(state, v, g, again) -> g: another gradient in the place of g; scaling and momentum follow.
    step(state, v, g, again): the local step itself, in place, in v and in the state's tensors; scaling and momentum
    are not used.
    end(state, v, num_steps): after the last one; leaves in `state` what is sent and kept. num_steps (clients, 1) or a
    number.
    """

    shared: Mapping[str, Shared] = field(default_factory=dict)
    sends: tuple[str, ...] = ()
    keeps: Mapping[str, Sized] = field(default_factory=dict)
    wants_full_gradient: bool = False
    """Is `state["full_gradient"]`, the gradient at x over the client's whole shard, needed?"""
    awaits: str | None = None
    """The shared vector in whose rounds alone (Shared.every) `end` is run and a full gradient taken; None: in all."""
    wants_mean_gradient: bool = False
    """Is `state["mean_gradient"]`, the clients' mean of it, needed? Each round then has an exchange before its own."""
    probe: Callable[[Tensor], State] | None = None
    """What clients send in round 0, which has no step, given their mini-batch gradient at x; the server takes means."""
    begin: Callable[[State, Tensor], None] = _nothing
    correct: Callable[[State, Tensor, Tensor, Again], Tensor] | None = None
    step: Callable[[State, Tensor, Tensor, Again], None] | None = None
    end: Callable[[State, Tensor, Tensor | float], None] = _nothing_left
    divisor: Callable[[State], Tensor | None] | None = None
    """What a step of its own divides by, (..., d), told by the vectors that travel; None where these do not tell."""
    is_frozen: bool = False
    """Is that the server's all round long, and not the client's own at each step?"""

    def in_round(self, due: Sequence[str] | None) -> LocalRule:
        """The rule in a round in which these of its vectors are sent; None: all of them."""
        if self.awaits is None or due is None or self.awaits in due:
            return self
        return replace(self, end=_nothing_left, wants_full_gradient=False)

    @cached_property
    def sizes(self) -> dict[str, Sized]:
        """Every vector that a client begins with, sent or kept."""
        return {name: shared.size for name, shared in self.shared.items()} | dict(self.keeps)

    @cached_property
    def counts(self) -> set[str]:
        """The vectors that are numbers of local steps."""
        return {name for name, shared in self.shared.items() if shared.counts_steps}

    @cached_property
    def leaves(self) -> set[str]:
        """Every vector that a client sends or keeps."""
        return {*self.sends, *self.keeps}


PLAIN = LocalRule()
"""Nothing beside the scaled steps."""

MOMENTUM = "momentum"
"""The client's momentum buffer among the vectors of its rule."""


def with_momentum(rule: LocalRule, buffer: str, every: int) -> LocalRule:
    """The rule, and what becomes of the momentum buffer between two rounds.

    reset: it is zero at the start of each round. kept: each client goes on with its own. averaged: clients begin with
    the weighted mean of their buffers, which travels with the model; or in every `every`-th round only, from the first
    round on, and meanwhile each client goes on with its own.
    """
    if buffer == "reset":
        return rule
    goes_on = {MOMENTUM: whole} if buffer == "kept" or every > 1 else {}
    rule = replace(rule, keeps={**rule.keeps, **goes_on})
    if buffer == "kept":
        return rule
    shared = {**rule.shared, MOMENTUM: Shared(mean_of_sent, every=every)}
    return replace(rule, shared=shared, sends=(*rule.sends, MOMENTUM))
