"""The client side of the scaled local method (docs/explanation-algorithm.md, client lines).

    v = x;  repeat local_steps times:  v <- v - step_size * b / D-hat,   b <- momentum * b + g(v)
    h = statistic at x on the FIRST mini-batch of the round

D-hat is the same tensor at every local step of a round, except where the client refreshes a D of its own at each
step. A local rule (local_rule.py) may put another gradient in the place of g, or a step of its own in the place of
this one. Everything is elementwise over leading axes: the same code moves one client (d,) and a stack (clients, d).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedscale_local.curvature import Batch, Oracle, of_rows
from fedscale_local.local_rule import PLAIN, LocalRule, State
from fedscale_local.scaling import Memory, Scaling


class Measure(NamedTuple):
    """How a statistic (..., d) comes about on a mini-batch at v: one of the two."""

    of_gradient: Callable[[Tensor], Tensor] | None = None
    """From the gradient, which a local step computes anyway."""
    beside: Callable[[Tensor, Batch], Tensor] | None = None
    """By itself, given v and the batch."""

    def __call__(self, v: Tensor, batch: Batch, gradient: Tensor) -> Tensor:
        if self.of_gradient is not None:
            return self.of_gradient(gradient)
        assert self.beside is not None, "a measure of nothing"
        return self.beside(v, batch)


class LocalResult(NamedTuple):
    """What one client, or a stack, has after its local steps."""

    params: Tensor
    loss: Tensor
    """Mean of the mini-batch losses over the local steps, (...,)."""
    statistic: Tensor | None
    """At x on the round's first mini-batch, where it was asked for."""
    momentum: Tensor | None
    memory: Memory | None
    d_hat: Tensor | None
    """The D-hat of the last local step."""
    state: State
    """What the local rule left: vectors to send and to keep, by name."""

    def in_host_memory(self) -> LocalResult:
        """The same where all that travels is; from a GPU each vector of a whole stack crosses in one copy."""
        return LocalResult(*map(_in_host_memory, self))


def _in_host_memory(value: Any) -> Any:
    if isinstance(value, Memory):
        return Memory(*map(_in_host_memory, value))
    if isinstance(value, dict):
        return {name: _in_host_memory(vector) for name, vector in value.items()}
    return value.cpu() if isinstance(value, Tensor) else value


def probe(oracle: Oracle, x: Tensor, batch: Batch, measure: Measure) -> Tensor:
    """The statistic at x on one mini-batch, no step taken."""
    v = oracle.at(x)
    if measure.beside is not None:
        return measure.beside(v, batch)
    _, gradient = oracle.gradient(v, batch)
    return measure(v, batch, gradient)


def scaled_local_steps(
    oracle: Oracle,
    x: Tensor,
    batches: Iterable[Batch],
    scaling: Scaling,
    *,
    step_size: float,
    d_hat: Tensor | None = None,
    momentum: float = 0.0,
    buffer: Tensor | None = None,
    measure: Measure | None = None,
    memory: Memory | None = None,
    rule: LocalRule = PLAIN,
    state: State | None = None,
) -> LocalResult:
    """One client's round, or a stack's.

    x (..., d): the model received.  batches: one per local step; in a stack, clients that have fewer steps come last
    and `batch.rows` leaves them out.  d_hat (..., d) or (d,): frozen for the whole round; None: no division.
    buffer (..., d) or (d,): the momentum buffer at the start, zeros if None.  measure: wanted for the statistic of the
    first batch, or, together with `memory`, for a client's own D that is refreshed before each step and then used.
    rule, state: what else the client does, and the vectors that it does it with.
    """
    is_unseen = rule is PLAIN and not momentum and scaling.rho is None and memory is None
    is_unseen = is_unseen and (d_hat is None or oracle.divides)
    state, statistic, losses = {**(state or {}), "x": x}, None, x.new_zeros(x.shape[:-1])
    taken: list[Any] = []
    batches = _noted(batches, taken)
    if is_unseen:
        v, statistic = _descend(oracle, x, batches, losses, step_size, d_hat, measure)
    else:
        v = oracle.start(x)
        rule.begin(state, v)
    if momentum:
        buffer = torch.zeros_like(v) if buffer is None else buffer.expand_as(v).clone()
    for batch in batches:
        rows = batch.rows
        here = v[rows]
        loss, b = oracle.gradient(here, batch)
        losses[rows].add_(loss)
        if measure is not None and memory is not None:
            memory, d_hat = _refresh_rows(scaling, memory, rows, measure(here, batch, b))
        elif measure is not None and statistic is None:
            # A rule may change its gradient in place; the statistic may be that very tensor.
            statistic = measure(here, batch, b if rule is PLAIN else b.clone())
        if rule is not PLAIN:
            part, again = _rows(state, rows, v.dim()), partial(oracle.gradient_at, batch=batch)
            if rule.step is not None:
                rule.step(part, here, b, again)
                continue
            b = b if rule.correct is None else rule.correct(part, here, b, again)
        if momentum:
            assert buffer is not None
            b = buffer[rows].mul_(momentum).add_(b)
        scaling.step_(here, b, of_rows(d_hat, rows, v.dim()), step_size)
    params, steps = oracle.finish(v), torch.zeros_like(losses)
    for rows, same in groupby(taken):
        steps[rows].add_(len(list(same)))
    rule.end(state, params, steps.unsqueeze(-1))
    return LocalResult(params, losses / steps, statistic, buffer, memory, d_hat, state)


def _descend(
    oracle: Oracle,
    x: Tensor,
    batches: Iterator[Batch],
    losses: Tensor,
    step_size: float,
    d_hat: Tensor | None,
    measure: Measure | None,
) -> tuple[Tensor, Tensor | None]:
    """The working copy after all steps, which nobody sees, and the first batch's statistic, where that is wanted."""
    if measure is None:
        return oracle.descend_all(x, batches, losses, step_size, d_hat), None
    if measure.of_gradient is not None:
        gradient = oracle.empty_like(x)
        v = oracle.descend_all(x, batches, losses, step_size, d_hat, gradient)
        return v, measure.of_gradient(gradient)
    assert measure.beside is not None
    first = next(batches)
    statistic = measure.beside(oracle.at(x), first)
    return oracle.descend_all(x, chain([first], batches), losses, step_size, d_hat), statistic


def _noted(batches: Iterable[Batch], taken: list[Any]) -> Iterator[Batch]:
    """The same; which clients of a stack take them is noted."""
    for batch in batches:
        taken.append(batch.rows)
        yield batch


def _rows(state: State, rows: Any, num_axes: int) -> State:
    """The state of those clients of a stack that still step; what all share stays as it is."""
    return {name: vector[rows] if vector.dim() == num_axes else vector for name, vector in state.items()}


def _refresh_rows(
    scaling: Scaling, memory: Memory, rows: slice, statistic: Tensor
) -> tuple[Memory, Tensor | None]:
    """Refresh the D of those clients of a stack that still step; the others keep theirs."""
    if isinstance(memory.clock, int):
        memory = scaling.refresh(memory, statistic)
    else:
        part = scaling.refresh(Memory(memory.value[rows], memory.clock[rows]), statistic)
        value, clock = memory.value.clone(), memory.clock.clone()
        value[rows], clock[rows] = part.value, part.clock
        memory = Memory(value, clock)
    return memory, scaling.d_hat(memory)
