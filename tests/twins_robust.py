"""Slow twins of the robust aggregations; conventions: tests/twins_base.py.

The client side of all is K_i plain local steps; sent 1 + 1; client state: none; server state: x. Distances and
norms are Euclidean over the whole flat vector. S is the number of clients in the round. Median, trimmed mean,
Krum and Bulyan have no place for weights: they are ignored (Reading), since a hostile client names its own
number of examples. A rule of the models v or of the displacements v - x is the same: all of them move with x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from twins_base import Problem, Rounds, Steps, Vector, local_sgd, mean, shares, steps_of

Rule = Callable[[Vector, list[Vector], list[float]], Vector]  # x, the clients' models, w -> the new x


def _aggregated(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str,
    rule: Rule,
) -> list[Vector]:
    x, seen = x0.copy(), []
    for clients in rounds:
        models = [local_sgd(problem, i, x, steps_of(local_steps, i), step_size) for i in clients]
        x = rule(x, models, shares(problem, clients, weights))
        seen.append(x)
    return seen


def median(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
) -> list[Vector]:
    """Coordinate-wise median (Yin et al. 2018).

    server   x_j <- median of the v_j; for an even number of clients the mean of the two in the middle
    """
    return _aggregated(
        problem, x0, rounds, local_steps, step_size, weights, lambda x, v, w: np.median(v, axis=0)
    )


def trimmed_mean(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    trim: float = 0.2,
) -> list[Vector]:
    """Coordinate-wise trimmed mean (Yin et al. 2018).

        server   k = floor(trim * S);  x_j <- equal mean of the v_j without the k smallest and the k largest

    Reading: `trim` is the share cut off at EACH end, 0 <= trim < 1/2; trim 0 is the equal mean.
    """

    def rule(x: Vector, models: list[Vector], w: list[float]) -> Vector:
        k = int(trim * len(models))
        return np.sort(models, axis=0)[k : len(models) - k].mean(axis=0)

    return _aggregated(problem, x0, rounds, local_steps, step_size, weights, rule)


def krum_scores(models: Sequence[Vector], num_hostile: int) -> list[float]:
    """Of each model: the sum of its squared distances to its max(1, r - num_hostile - 2) nearest, r models in all."""
    scores = []
    for i, v in enumerate(models):
        others = sorted(float(np.sum((v - u) ** 2)) for j, u in enumerate(models) if j != i)
        scores.append(sum(others[: max(1, len(models) - num_hostile - 2)]))
    return scores


def multikrum(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    num_hostile: int = 1,
    num_kept: int = 1,
) -> list[Vector]:
    """Multi-Krum (Blanchard et al. 2017).

        server   score_i = sum of |v_i - v_j|^2 over the S - num_hostile - 2 clients j nearest to i, j != i
                 x <- equal mean of the num_kept models with the smallest scores

    Reading: scores are computed once, not again after each choice. Equal scores: the lower client index first.
    S >= num_hostile + 3 and num_kept <= S are required.
    """

    def rule(x: Vector, models: list[Vector], w: list[float]) -> Vector:
        if len(models) < num_hostile + 3 or num_kept > len(models):
            raise ValueError((len(models), num_hostile, num_kept))
        best = np.argsort(krum_scores(models, num_hostile), kind="stable")[:num_kept]
        return np.mean([models[i] for i in sorted(best)], axis=0)

    return _aggregated(problem, x0, rounds, local_steps, step_size, weights, rule)


def krum(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    num_hostile: int = 1,
) -> list[Vector]:
    """Krum (Blanchard et al. 2017): multikrum with num_kept = 1, the model with the smallest score itself."""
    return multikrum(problem, x0, rounds, local_steps, step_size, weights, num_hostile, num_kept=1)


def bulyan(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    num_hostile: int = 0,
) -> list[Vector]:
    """Bulyan on Krum (El Mhamdi, Guerraoui and Rouault 2018), f = num_hostile.

        server   choose S - 2f models: S - 2f times, move the model with the best Krum score among the r that
                 remain (neighbours max(1, r - f - 2), none if r = 1) to the chosen ones
                 x_j <- equal mean of the S - 4f chosen v_j closest to the median of the chosen v_j

    Reading: scores are computed again among those that remain after each choice. Equal scores, and equal
    distances from the median: the lower client index first. S >= 4f + 3 is required; f = 0 is the equal mean.
    """

    def rule(x: Vector, models: list[Vector], w: list[float]) -> Vector:
        if len(models) < 4 * num_hostile + 3:
            raise ValueError((len(models), num_hostile))
        remaining, chosen = list(range(len(models))), []
        for _ in range(len(models) - 2 * num_hostile):
            best = int(np.argmin(krum_scores([models[i] for i in remaining], num_hostile)))
            chosen.append(remaining.pop(best))
        v = np.array([models[i] for i in sorted(chosen)])
        closest = np.argsort(np.abs(v - np.median(v, axis=0)), axis=0, kind="stable")
        return np.take_along_axis(v, closest[: len(models) - 4 * num_hostile], axis=0).mean(axis=0)

    return _aggregated(problem, x0, rounds, local_steps, step_size, weights, rule)


def geometric_median(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    num_iterations: int = 3,
    smoothing: float = 1e-6,
) -> list[Vector]:
    """Geometric median by smoothed Weiszfeld steps (Pillutla, Kakade and Harchaoui 2022, RFA).

        server   z = coordinate-wise median of the v_i;  num_iterations times
                     a_i = w_i / max(smoothing, |z - v_i|);   z <- sum_i a_i v_i / sum_i a_i
                 x <- z

    Departure: the paper starts at the weighted mean, which one liar takes anywhere. Reading: keeps the weights w_i,
    makes exactly num_iterations steps (no stopping test). 0 iterations are the median.
    """

    def rule(x: Vector, models: list[Vector], w: list[float]) -> Vector:
        z = np.median(models, axis=0)
        for _ in range(num_iterations):
            a = [w_i / max(smoothing, float(np.linalg.norm(z - v))) for w_i, v in zip(w, models, strict=True)]
            z = mean(a, models) / sum(a)
        return z

    return _aggregated(problem, x0, rounds, local_steps, step_size, weights, rule)


def norm_clipping(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    max_norm: float = 1.0,
) -> list[Vector]:
    """Norm clipping (Sun et al. 2019): no displacement is longer than max_norm.

        server   u_i = (v_i - x) * min(1, max_norm / |v_i - x|)   (u_i = 0 where v_i = x);   x <- x + sum_i w_i u_i

    Reading: clipped at the server, on what was sent, with a fixed bound; no noise is added.
    """

    def rule(x: Vector, models: list[Vector], w: list[float]) -> Vector:
        clipped = []
        for v in models:
            length = float(np.linalg.norm(v - x))
            clipped.append((v - x) * (max_norm / length if length > max_norm else 1.0))
        return x + mean(w, clipped)

    return _aggregated(problem, x0, rounds, local_steps, step_size, weights, rule)
