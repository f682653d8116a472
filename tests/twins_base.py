"""What all slow twins share: the problem with full local batches, weights, means, plain local steps.

A twin is one function

    twin(problem, x0, rounds, local_steps, step_size, weights="examples", **hyper) -> [x_1, x_2, ...]

in float64, one client after the other, without randomness: every gradient is the client's full-batch gradient.
`rounds` names the clients that take part in each round, ascending. Everything below holds for all twins unless
a docstring says otherwise:

* x is the server's model, v a client's; a round starts with v = x at each client that takes part.
* w_i is the share of examples among those who take part in this round ("examples"), or one over their number
  ("uniform"); "mean" without a further word is sum_i w_i (.) over them, in ascending order.
* A client that does not take part does nothing: its state does not change, its clocks stand still.
* A client's state is zero at its first participation, and lasts from one participation to the next.
* Traffic is per client and round, in numbers of the size of x (d): up + down. Scalars are not counted.
* Delta = mean(v - x) is the mean displacement; Delta points downhill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from twin import LeastSquares, Quadratics, Softmax, mean

Vector = NDArray[np.float64]
Steps = int | Sequence[int]  # local steps: the same for all clients, or one number per client
Rounds = Sequence[Sequence[int]]  # the clients of each round, ascending


class Problem(Protocol):
    """What a twin asks of a task: `num_examples` per client (its length is the number of clients N)."""

    @property
    def num_examples(self) -> Sequence[int]: ...
    def gradient(self, client: int, x: Vector) -> Vector: ...
    def loss(self, client: int, x: Vector) -> float: ...


@dataclass(frozen=True)
class FullBatch:
    """A problem of tests/twin.py with all examples of the client in each batch."""

    problem: Softmax | Quadratics | LeastSquares

    @property
    def num_examples(self) -> list[int]:
        return self.problem.sizes

    def gradient(self, client: int, x: Vector) -> Vector:
        return self.problem.gradient(client, x, list(range(self.num_examples[client])))

    def hvp(self, client: int, x: Vector, z: Vector) -> Vector:
        return self.problem.hvp(client, x, list(range(self.num_examples[client])), z)

    def loss(self, client: int, x: Vector) -> float:
        return self.problem.loss(client, x, list(range(self.num_examples[client])))


@dataclass(frozen=True)
class Bowls:
    """f_i(x) = 1/2 sum_j a_ij (x_j - c_ij)^2, gradient a_i (x - c_i): `a`, `c` are (clients, d)."""

    a: Sequence[Sequence[float]]
    c: Sequence[Sequence[float]]
    num_examples: Sequence[int]

    def gradient(self, client: int, x: Vector) -> Vector:
        return np.asarray(self.a[client]) * (x - np.asarray(self.c[client]))

    def hvp(self, client: int, x: Vector, z: Vector) -> Vector:
        return np.asarray(self.a[client]) * z

    def loss(self, client: int, x: Vector) -> float:
        return float(np.sum(np.asarray(self.a[client]) * (x - np.asarray(self.c[client])) ** 2) / 2)


def shares(problem: Problem, clients: Sequence[int], weights: str) -> list[float]:
    """w_i of these clients, with sum one: by examples, or equal."""
    if weights == "uniform":
        return [1 / len(clients) for _ in clients]
    if weights == "examples":
        total = sum(problem.num_examples[i] for i in clients)
        return [problem.num_examples[i] / total for i in clients]
    raise ValueError(weights)


def steps_of(local_steps: Steps, client: int) -> int:
    """K_i, the local steps of this client."""
    return local_steps if isinstance(local_steps, int) else local_steps[client]


def local_sgd(problem: Problem, client: int, x: Vector, num_steps: int, step_size: float) -> Vector:
    """v after `num_steps` plain steps v <- v - step_size * g_i(v) from x."""
    v = x.copy()
    for _ in range(num_steps):
        v = v - step_size * problem.gradient(client, v)
    return v


def displacement(
    problem: Problem, x: Vector, clients: Sequence[int], local_steps: Steps, step_size: float, weights: str
) -> Vector:
    """Delta = mean(v - x) after plain local steps: the client side of every method that changes only the server."""
    moved = [local_sgd(problem, i, x, steps_of(local_steps, i), step_size) - x for i in clients]
    return mean(shares(problem, clients, weights), moved)


__all__ = [
    "Bowls",
    "FullBatch",
    "Problem",
    "Rounds",
    "Steps",
    "Vector",
    "displacement",
    "local_sgd",
    "mean",
    "shares",
    "steps_of",
]
