"""Slow twins whose clients orthogonalise their steps: Local Muon and FedMuon (conventions: tests/twins_base.py).

x is cut into tensors by `shapes`, in order. Two-dimensional tensors step along the orthogonalised direction; all
others (biases, norms, also convolution kernels) along the direction itself: dampened momentum SGD with the same
step size. That is the Reading of "matrices only".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt

import numpy as np
from twins_base import Problem, Rounds, Steps, Vector, mean, shares, steps_of

Shapes = Sequence[tuple[int, ...]]


def newton_schulz(u: Vector, num_iterations: int = 5) -> Vector:
    """Near-orthogonal matrix with the singular vectors of u, as torch.optim.Muon's, in float64 not bfloat16.

    X = u (transposed where it has more rows than columns) / max(|u|_F, 1e-7)
    num_iterations times  A = X X';   X <- a X + (b A + c A A) X      a, b, c = 3.4445, -4.7750, 2.0315
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = u.T if u.shape[0] > u.shape[1] else u
    x = x / max(float(np.linalg.norm(x)), 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if u.shape[0] > u.shape[1] else x


def direction(u: Vector, shapes: Shapes, num_iterations: int) -> Vector:
    """Per tensor: sqrt(max(1, rows/columns)) * newton_schulz(u) for a matrix, u itself for any other."""
    parts, start = [], 0
    for shape in shapes:
        part = u[start : start + prod(shape)]
        start += prod(shape)
        if len(shape) == 2:
            part = (
                sqrt(max(1, shape[0] / shape[1])) * newton_schulz(part.reshape(shape), num_iterations).ravel()
            )
        parts.append(part)
    return np.concatenate(parts)


def local_muon(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    shapes: Shapes = (),
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    num_iterations: int = 5,
    buffer: str = "reset",
) -> list[Vector]:
    """Local Muon: clients step with torch.optim.Muon.

        client   v = x;  K_i times  b <- momentum * b + (1 - momentum) * g_i(v)
                                    u = momentum * b + (1 - momentum) * g_i(v)  if nesterov, else b   (b is the new one)
                                    v <- (1 - step_size * weight_decay) * v - step_size * direction(u)
        server   x <- mean(v)

        buffer "reset" b = 0 at the start of each round; "kept" by the client; "averaged" b <- mean(b) at the server

    Reading: step sizes of matrices are adjusted as torch.optim.Muon's default, sqrt(max(1, rows/columns)). The
    default buffer is "reset". `shapes` () means one vector: plain momentum SGD.
    Sent: 1 + 1; "averaged" 2 + 2. Client state: none; "kept" b. Server state: x; "averaged" b.
    """
    cut = shapes or [x0.shape]
    x, shared, seen = x0.copy(), np.zeros_like(x0), []
    own: dict[int, Vector] = {}
    for clients in rounds:
        models, ended = [], []
        for i in clients:
            zero = np.zeros_like(x0)
            b = {"reset": zero, "kept": own.get(i, zero), "averaged": shared}[buffer]
            v = x.copy()
            for _ in range(steps_of(local_steps, i)):
                g = problem.gradient(i, v)
                b = momentum * b + (1 - momentum) * g
                u = momentum * b + (1 - momentum) * g if nesterov else b
                v = (1 - step_size * weight_decay) * v - step_size * direction(u, cut, num_iterations)
            own[i] = b
            models.append(v)
            ended.append(b)
        w = shares(problem, clients, weights)
        x, shared = mean(w, models), mean(w, ended)
        seen.append(x)
    return seen


def fedmuon(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    shapes: Shapes = (),
    momentum: float = 0.95,
    num_iterations: int = 5,
    control_every: int = 1,
) -> list[Vector]:
    """FedMuon (Takezawa et al., arXiv 2509.26337): Muon with control variates inside the orthogonalisation.

        client   v = x, M = M_i, C_i = M_i;  K_i times  M <- momentum * M + (1 - momentum) * g_i(v)
                                                        v <- v - step_size * direction(M - C_i + C)
                 M_i <- M;  sends v and the change M_i - C_i
        server   x <- mean(v);   C <- C + sum_i p_i (M_i - C_i)      p_i = n_i/n over ALL clients, as in scaffold

    Reading: the control variate of a client is its momentum at the end of its last round (a choice: the paper's
    text was not at hand), so M_i is its only state, and C = sum_i p_i M_i over all clients, zero before the first
    participation. Clients use the C of the round's start. No Nesterov, no weight decay, no server step size;
    matrices adjusted as in local_muon; the other tensors step along M - C_i + C. lmo(M) = -direction(M).
    control_every = k > 1, a choice too: C_i <- M_i, and C with it, after rounds 1, k + 1, 2k + 1, ... alone; in
    between M_i runs on while C_i and C stand still, so that M_i is no longer C_i.
    Sent: 2 + 2 (down x, C; up v, M_i - C_i). Client state: M_i. Server state: x, C.
    """
    cut = shapes or [x0.shape]
    everyone = list(range(len(problem.num_examples)))
    p = shares(problem, everyone, weights)
    x, c, own, seen = x0.copy(), np.zeros_like(x0), {i: np.zeros_like(x0) for i in everyone}, []
    moving = dict(own)
    for number, clients in enumerate(rounds, start=1):
        changes_c = (number - 1) % control_every == 0
        models, changes = [], []
        for i in clients:
            v, m = x.copy(), moving[i]
            for _ in range(steps_of(local_steps, i)):
                m = momentum * m + (1 - momentum) * problem.gradient(i, v)
                v = v - step_size * direction(m - own[i] + c, cut, num_iterations)
            models.append(v)
            moving[i] = m
            if changes_c:
                changes.append(m - own[i])
                own[i] = m
        x = mean(shares(problem, clients, weights), models)
        if changes_c:
            c = c + mean([p[i] for i in clients], changes)
        seen.append(x)
    return seen
