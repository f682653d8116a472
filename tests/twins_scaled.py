"""The scaled local method of tests/twin.py with full batches, in the form of the other twins (tests/twins_base.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import twin
from twins_base import Problem, Rounds, Steps, Vector, steps_of


@dataclass(frozen=True)
class Whole:
    """A problem as tests/twin.py asks for it; each batch is all that the client has."""

    problem: Any

    @property
    def sizes(self) -> list[int]:
        return list(self.problem.num_examples)

    def gradient(self, client: int, v: Vector, batch: list[int]) -> Vector:
        return self.problem.gradient(client, v)

    def hvp(self, client: int, v: Vector, batch: list[int], z: Vector) -> Vector:
        return self.problem.hvp(client, v, z)


def scaled_local(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    probe: Sequence[int] | None = None,
    z: Callable[[int, int], Vector] | None = None,
    **settings: Any,
) -> list[Vector]:
    """The recurrence is that of tests/twin.py, whose Settings take `settings`.

    probe: the clients asked in round 0, by default those of round 1.  z(round, step): the Rademacher vectors of
    Hutchinson statistics, by default ones.
    Sent: 2 + 2; in local scope 1 + 1, and with preconditioned mixing 2 + 1. Client state: none; in local scope D_m.
    """
    clients = range(len(problem.num_examples))
    method = twin.Settings(
        step_size=step_size,
        local_steps=tuple(steps_of(local_steps, i) for i in clients),
        num_rounds=len(rounds),
        weighting=weights,
        **settings,
    )
    asked = [list(rounds[0] if probe is None else probe), *map(list, rounds)]
    draws = twin.Draws(
        participants=lambda p: asked[p],
        batch=lambda p, m, k: list(range(problem.num_examples[m])),
        z=z or (lambda p, k: np.ones_like(x0)),
        labels=lambda p, m, k: [],
    )
    return twin.scaled_local(Whole(problem), method, draws, x0).x[1:]
