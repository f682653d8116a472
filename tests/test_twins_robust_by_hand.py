"""The robust aggregations by hand: with unit curvature and step size 1 the model of client i is c_i itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_twins_by_hand import agree
from twins import TWINS
from twins_base import Bowls, Vector
from twins_robust import krum_scores

# A, B, C, D and far away E. Squared distances: AB 26, AC 5, AD 13, BC 17, BD 13, CD 2.
POINTS = ((0.0, 0.0), (1.0, 5.0), (2.0, 1.0), (3.0, 2.0), (100.0, -100.0))
ROUNDS = [[0, 1, 2, 3, 4], [0, 1, 2, 3]]


def run(
    name: str,
    points: tuple[tuple[float, float], ...],
    rounds: list[list[int]],
    step_size: float = 1.0,
    **hyper: Any,
) -> list[Vector]:
    problem = Bowls([[1, 1]] * len(points), points, [9, *[1] * (len(points) - 1)])
    return TWINS[name](problem, np.zeros(2), rounds, 1, step_size, **hyper)


def test_median() -> None:
    # 0 1 2 3 100 and -100 0 1 2 5; then the middle two of 0 1 2 3 and 0 1 2 5. Weights play no part
    agree(run("median", POINTS, ROUNDS), (2, 1), (1.5, 1.5))


def test_trimmed_mean() -> None:
    # one off at each end of five; floor(0.2 * 4) = 0 of four
    agree(run("trimmed_mean", POINTS, ROUNDS, trim=0.2), (2, 1), (1.5, 2))


def test_krum() -> None:
    # five, one hostile, two neighbours: A 5 + 13, B 13 + 17, C 2 + 5, D 2 + 13
    # four, one neighbour: C and D have 2, the lower index wins
    agree(run("krum", POINTS, ROUNDS, num_hostile=1), (2, 1), (2, 1))
    assert krum_scores([np.array(p) for p in POINTS], 1)[:4] == [18, 30, 7, 15]
    assert krum_scores([np.array(p) for p in POINTS[:4]], 1) == [5, 13, 2, 2]


def test_multikrum() -> None:
    # C and D
    agree(run("multikrum", POINTS, ROUNDS, num_hostile=1, num_kept=2), (2.5, 1.5), (2.5, 1.5))


def test_bulyan() -> None:
    # Six on a line, (q, -q) for q = -1 1 2 3 4 5, and one far off; f = 1. Scores in units of 2:
    #   4 neighbours: 54 18 15 10 15 30, takes 3;   3 neighbours of -1 1 2 4 5: 38 14 14 14 26, takes 1
    #   2 neighbours of -1 2 4 5: 34 13 5 10, takes 4;   1 neighbour of -1 2 5: 9 9 9, takes -1;   2 5: 9 9, takes 2
    # the median of -1 1 2 3 4 is 2, the three closest to it are 1 2 3
    # Half steps go half of the way from x, to models that lie to each other as before: from 0 to 1, from there to 1.5
    line = ((-1.0, 1.0), (1.0, -1.0), (2.0, -2.0), (3.0, -3.0), (4.0, -4.0), (5.0, -5.0), (100.0, 100.0))
    agree(run("bulyan", line, [list(range(7))] * 2, 0.5, num_hostile=1), (1, -1), (1.5, -1.5))
    agree(run("bulyan", line, [[1, 2, 3], [3, 4, 5]], num_hostile=0), (2, -2), (4, -4))


def test_geometric_median() -> None:
    # (0, 0) twice and (9, 0), equal weights, no distance below 1: median 0; weights 1 1 1/9: 9/19; 1 1 19/162: 171/343
    # Half steps and half the smoothing: half of that, and in round 2, from there, half of the rest
    points = ((0.0, 0.0), (0.0, 0.0), (9.0, 0.0))
    for num, x in ((0, 0), (1, 9 / 19), (2, 171 / 343)):
        hyper = {"num_iterations": num, "smoothing": 0.5, "weights": "uniform"}
        agree(run("geometric_median", points, [[0, 1, 2]] * 2, 0.5, **hyper), (x / 2, 0), (3 * x / 4, 0))


def test_geometric_median_of_one_point_is_that_point() -> None:
    points = ((2.0, 1.0), (2.0, 1.0))
    agree(run("geometric_median", points, [[0, 1]] * 2, 0.5, num_iterations=3), (1, 0.5), (1.5, 0.75))


def test_norm_clipping() -> None:
    # from 0: (3, 4) has length 5, clipped to (1.5, 2); (0, 1) passes. Then from (0.75, 1.5): (2.25, 2.5) has length
    # sqrt(11.3125), the other (-0.75, -0.5) passes
    points = ((3.0, 4.0), (0.0, 1.0))
    found = run("norm_clipping", points, [[0, 1], [0, 1]], weights="uniform", max_norm=2.5)
    short = 2.5 / np.sqrt(11.3125)
    x2 = (0.75 + (2.25 * short - 0.75) / 2, 1.5 + (2.5 * short - 0.5) / 2)
    agree(found, (0.75, 1.5), x2)


@pytest.mark.parametrize("name", ["median", "krum", "trimmed_mean", "geometric_median"])
def test_one_liar_among_five_does_not_matter(name: str) -> None:
    # within the box of the honest four, wherever the fifth goes
    for far in (1e2, 1e6, 1e150):
        points = (*POINTS[:4], (far, -far))
        x = run(name, points, ROUNDS[:1])[0]
        assert -0.1 <= x[0] <= 3.1 and -0.1 <= x[1] <= 5.1
    assert abs(run("fedavg", points, ROUNDS[:1])[0][0]) > 1e4


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("krum", {"num_hostile": 3}),
        ("multikrum", {"num_hostile": 1, "num_kept": 6}),
        ("bulyan", {"num_hostile": 1}),
    ],
)
def test_too_few_clients_are_refused(name: str, hyper: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        run(name, POINTS, ROUNDS, **hyper)
