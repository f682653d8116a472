"""The core equals the slow twin to 1e-12 in float64, for every combination of its parts, looped and stacked.

Five rounds; three clients with 3, 7 and 5 examples and 1, 3 and 2 local steps; not everybody takes part in
each round, and one client comes in late. Floor and cap both bind for some coordinates.

The fast suite takes every seventh combination (all sixteen of the identity): seven divides no number of choices,
so every choice still meets every other. The slow suite takes them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product

import numpy as np
import pytest
from core_driver import feed, run_core
from twin import RULES, Draws, LeastSquares, Settings, scaled_local

D, BATCH, ROUNDS, STEPS = 4, 2, 5, (1, 3, 2)
PRESENT = ([0, 1], [0, 1], [0, 1, 2], [1, 2], [0, 2], [0, 1, 2])


def a_problem(seed: int) -> tuple[LeastSquares, Draws, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = (3, 7, 5)
    scales = np.array([0.2, 0.6, 1.0, 2.0])
    features = [rng.normal(size=(n, D)) * scales for n in sizes]
    problem = LeastSquares(features, [rng.normal(size=n) for n in sizes])
    named = {
        (p, m, k): (sorted(rng.choice(n, BATCH, replace=False).tolist()), rng.normal(size=BATCH))
        for p in range(ROUNDS + 1)
        for m, n in enumerate(sizes)
        for k in range(max(STEPS))
    }
    signs = {(p, k): rng.choice([-1.0, 1.0], D) for p in range(ROUNDS + 1) for k in range(max(STEPS))}
    draws = Draws(
        participants=lambda p: PRESENT[p],
        batch=lambda p, m, k: named[p, m, k][0],
        z=lambda p, k: signs[p, k],
        labels=lambda p, m, k: named[p, m, k][1],
    )
    return problem, draws, rng.normal(size=D)


def memories(rule: str, scope: str) -> Iterator[dict[str, object]]:
    """Every valid way to measure, combine and refresh D, for a rule and a scope."""
    if rule == "identity":
        yield {}
    elif scope == "global":
        for refresh_every in (1, 2):
            yield {"statistic": "displacement", "refresh_every": refresh_every}
            for statistic, combine, start in product(
                ("gradient", "hutchinson", "gauss_newton"),
                ("square_of_mean", "mean_of_squares"),
                ("statistic", "ones"),
            ):
                yield {
                    "statistic": statistic,
                    "combine": combine,
                    "start": start,
                    "refresh_every": refresh_every,
                }
    else:
        refreshes = [("round", k, start) for k in (1, 2) for start in ("statistic", "ones")]
        # Refreshed before each step there is no probe: `ones` then differs for adagrad alone.
        refreshes += [("step", 1, start) for start in ("statistic", "ones")]
        for statistic, mixing, (local_refresh, refresh_every, start) in product(
            ("gradient", "hutchinson", "gauss_newton"), ("mean", "preconditioned"), refreshes
        ):
            yield {
                "statistic": statistic,
                "mixing": mixing,
                "local_refresh": local_refresh,
                "refresh_every": refresh_every,
                "start": start,
            }


def combinations(rule: str, scope: str) -> Iterator[Settings]:
    floors = [("max", 0.3), ("add", 0.1)] if rule != "identity" else [("max", 0.3)]
    moments = [(0.0, "reset"), (0.5, "reset"), (0.5, "kept"), (0.5, "averaged")]
    every = product(memories(rule, scope), floors, (None, 1.2), moments, (0.0, 0.1))
    for i, (memory, (floor, alpha), cap, (momentum, buffer), decay) in enumerate(every):
        yield Settings(
            rule=rule,
            scope=scope,
            step_size=0.1,
            local_steps=STEPS,
            num_rounds=ROUNDS,
            beta=0.7,
            floor=floor,
            alpha=alpha,
            upper_bound=cap,
            rho=0.8 if rule == "sophia" else None,
            momentum=momentum,
            momentum_buffer=buffer,
            weight_decay=decay,
            weighting=("examples", "uniform")[i % 2],
            **memory,  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["seventh", "all"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("rule", RULES)
def test_core_equals_twin(rule: str, scope: str, every: int) -> None:
    problem, draws, x0 = a_problem(seed=7)
    tensors = feed(problem, draws)
    step = 1 if rule == "identity" else every
    for settings in islice(combinations(rule, scope), 0, None, step):
        expected = scaled_local(problem, settings, draws, x0).x
        for stacked in (False, True):
            found = run_core(problem.sizes, settings, draws.participants, x0, tensors, stacked)
            assert np.allclose(found, expected, rtol=1e-12, atol=1e-12), f"{stacked=} {settings}"
