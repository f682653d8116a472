"""Slow twins whose clients step with momentum or a proximal term, FedNova included (tests/twins_base.py)."""

from __future__ import annotations

import numpy as np
from twins_base import Problem, Rounds, Steps, Vector, mean, shares, steps_of


def local_momentum(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    momentum: float = 0.9,
    buffer: str = "reset",
    every: int = 1,
) -> list[Vector]:
    """Local SGD with heavy-ball momentum, torch.optim.SGD(momentum) without dampening.

        client   v = x;  K_i times  b <- momentum * b + g_i(v);   v <- v - step_size * b
        server   x <- mean(v)

        buffer "reset"     b = 0 at the start of each round
               "kept"      b is the client's, from its last participation
               "averaged"  b starts at the server's; after the round b <- mean(b)

    every = k > 1: the server's b is renewed after rounds 1, k + 1, 2k + 1, ... alone; a client whose last participation
    was later than that goes on with its own b.

    Sent: 1 + 1; "averaged" 2 + 2. Client state: none; "kept" b. Server state: x; "averaged" also b.
    """
    x, shared, averaged_in, seen = x0.copy(), np.zeros_like(x0), 0, []
    own: dict[int, tuple[int, Vector]] = {}  # the round of the last participation, b
    for p, clients in enumerate(rounds, start=1):
        models, ended = [], []
        for i in clients:
            zero = np.zeros_like(x0)
            last, mine = own.get(i, (0, zero))
            newest = shared if averaged_in >= last else mine
            b = {"reset": zero, "kept": mine, "averaged": newest}[buffer]
            v = x.copy()
            for _ in range(steps_of(local_steps, i)):
                b = momentum * b + problem.gradient(i, v)
                v = v - step_size * b
            own[i] = p, b
            models.append(v)
            ended.append(b)
        w = shares(problem, clients, weights)
        x = mean(w, models)
        if (p - 1) % every == 0:
            shared, averaged_in = mean(w, ended), p
        seen.append(x)
    return seen


def fedprox(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    mu: float = 0.1,
) -> list[Vector]:
    """FedProx (Li et al. 2020): the local loss is f_i(v) + (mu/2) |v - x|^2.

        client   v = x;  K_i times  v <- v - step_size * (g_i(v) + mu * (v - x))
        server   x <- mean(v)

    Reading: the local problem is solved by the K_i explicit gradient steps above, not by a proximal map.
    Sent: 1 + 1. Client state: none. Server state: x.
    """
    x, seen = x0.copy(), []
    for clients in rounds:
        models = []
        for i in clients:
            v = x.copy()
            for _ in range(steps_of(local_steps, i)):
                v = v - step_size * (problem.gradient(i, v) + mu * (v - x))
            models.append(v)
        x = mean(shares(problem, clients, weights), models)
        seen.append(x)
    return seen


def accumulated(num_steps: int, step_size: float, momentum: float, mu: float) -> float:
    """|a_i|_1: how far v goes, in units of step_size, if every gradient of the round were one."""
    b, moved = 0.0, 0.0
    for _ in range(num_steps):
        b = momentum * b + 1 - mu * step_size * moved
        moved = moved + b
    return moved


def fednova(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    momentum: float = 0.0,
    mu: float = 0.0,
) -> list[Vector]:
    """FedNova: plain, with local momentum, proximal (Wang et al. 2020, normalised averaging).

        client   v = x, b = 0;  K_i times  b <- momentum * b + g_i(v) + mu * (v - x);   v <- v - step_size * b
                 n_i = |a_i|_1, the sum of the coefficients that the K_i gradients have in (x - v)/step_size:
                   plain      K_i
                   momentum   (K_i - momentum * (1 - momentum^K_i)/(1 - momentum)) / (1 - momentum)
                   proximal   (1 - (1 - step_size * mu)^K_i) / (step_size * mu)
        server   n = sum_i w_i n_i                        tau_eff of the paper
                 x <- x + n * sum_i w_i (v - x) / n_i

    Reading: tau_eff is sum_i w_i n_i also with momentum or mu (the value at which FedAvg and FedNova differ in
    the objective alone), so equal K_i give FedAvg with that local optimizer. With momentum and mu both, n_i is
    the response to a constant gradient of one, the recursion of `accumulated`, of which the three lines above
    are special cases. The buffer b is zero at the start of each round. w_i are shares among the clients of the
    round.
    Sent: 1 + 1 (and the number n_i). Client state: none. Server state: x.
    """
    x, seen = x0.copy(), []
    for clients in rounds:
        moved, norms = [], []
        for i in clients:
            v, b = x.copy(), np.zeros_like(x)
            for _ in range(steps_of(local_steps, i)):
                b = momentum * b + problem.gradient(i, v) + mu * (v - x)
                v = v - step_size * b
            moved.append(v - x)
            norms.append(accumulated(steps_of(local_steps, i), step_size, momentum, mu))
        w = shares(problem, clients, weights)
        effective = sum(w_i * n for w_i, n in zip(w, norms, strict=True))
        x = x + effective * mean(w, [u / n for u, n in zip(moved, norms, strict=True)])
        seen.append(x)
    return seen
