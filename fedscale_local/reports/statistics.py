"""The statistics of a comparison: means with intervals, paired differences, p-values, Holm's correction, ranks.

Pure functions of numbers. A value is one run's result under one seed; values of two methods under the same seed form
a pair, because they share clients, batches and start.

The decision between two methods is the paired t-test on the differences over seeds (Student 1908), corrected over all
pairs by Holm (1979). The sign-flip permutation test (Fisher 1935) needs no normality and is shown beside it; it cannot
decide with few seeds, since n pairs give no two-sided p below 2 / 2^n: 0.0625 with five.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

LEVEL = 0.05  # of every test; intervals hold with 1 - LEVEL
MIN_SEEDS = 5  # fewer pairs name no winner
EXACT_UP_TO = 15  # pairs whose sign flips are enumerated
DRAWS = 20_000  # sign flips drawn at random beyond that


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds and the half-width of its 95 % interval, which is NaN for fewer than two."""

    mean: float
    half: float
    n: int


@dataclass(frozen=True)
class Paired:
    """Differences over seeds: their estimate, the p of the t-test and of the sign flips, and how the latter was found.

    Both p are NaN for fewer than two pairs; `exact` says that every sign flip was enumerated.
    """

    estimate: Estimate
    t_p: float
    flip_p: float
    exact: bool


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval by Student's t, for values that are independent and roughly normal.

    >>> found = estimate([1.0, 2.0, 3.0])
    >>> found.mean, round(found.half, 4), found.n
    (2.0, 2.4841, 3)
    """
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, 0)
    array = np.asarray(values, dtype=float)
    if n == 1:
        return Estimate(float(array[0]), math.nan, 1)
    quantile = float(stdtrit(n - 1, 1 - LEVEL / 2))
    return Estimate(float(array.mean()), quantile * float(array.std(ddof=1)) / math.sqrt(n), n)


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """first - second, pair by pair: first and second (n,), in the same order of seeds.

    >>> result = paired([3.0, 5.0, 4.0], [2.0, 3.0, 3.0])
    >>> round(result.estimate.mean, 3), round(result.t_p, 4), result.flip_p
    (1.333, 0.0572, 0.25)
    """
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    known = estimate(differences.tolist())
    if known.n < 2:
        return Paired(known, math.nan, math.nan, True)
    flip_p, exact = sign_flips(differences)
    return Paired(known, t_test(differences), flip_p, exact)


def t_test(differences: np.ndarray) -> float:
    """Two-sided p of Student's test that differences (n,), n >= 2, have mean zero.

    Equal differences have no spread to judge by: p is 1 where they are zero and 0 where they are not.
    """
    n, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * abs(mean) or error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(n - 1, -abs(mean / error)))


def sign_flips(differences: np.ndarray) -> tuple[float, bool]:
    """Two-sided p of differences (n,) under random changes of sign, and whether it is exact.

    If the methods are alike, each difference is as likely as its negative. p is the share of sign patterns whose mean
    is at least as far from zero: of all patterns for up to 15 pairs, else of 20,000 drawn ones with the observed
    pattern counted among them (Phipson and Smyth 2010), so that p is never zero.

    >>> sign_flips(np.array([1.0, 1.0, 1.0, 1.0, 1.0]))
    (0.0625, True)
    """
    n = len(differences)
    observed = abs(float(differences.sum()))
    enough = observed - 1e-12 * float(np.abs(differences).sum())  # sums that are equal but for rounding count
    if n <= EXACT_UP_TO:
        patterns = (
            np.arange(2 ** (n - 1))[:, None] >> np.arange(n)
        ) & 1  # one of each pattern and its mirror image
        sums = np.abs((1 - 2 * patterns) @ differences)
        return float((sums >= enough).mean()), True
    stream = np.random.default_rng(0)  # the same files give the same p
    patterns = stream.integers(0, 2, (DRAWS, n), dtype=np.int8)
    sums = np.abs((1.0 - 2.0 * patterns) @ differences)
    return float((1 + (sums >= enough).sum()) / (1 + DRAWS)), False


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given: the chance of any false finding stays below the level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def mean_ranks(values: np.ndarray, larger_is_better: bool) -> np.ndarray:
    """Mean rank (methods,) of values (seeds, methods) over the seeds; 1 is best, equals share (Friedman 1937).

    >>> mean_ranks(np.array([[0.9, 0.8, 0.8], [0.7, 0.9, 0.6]]), True).tolist()
    [1.5, 1.75, 2.75]
    """
    better = (
        values[:, :, None] < values[:, None, :]
        if larger_is_better
        else values[:, :, None] > values[:, None, :]
    )
    equal = values[:, :, None] == values[:, None, :]
    return (better.sum(2) + (equal.sum(2) + 1) / 2).mean(0)


def noise_floor(groups: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """(s, reach) of results of one method under different seeds; None where no group has two.

    groups: the results of each method. s is the standard deviation, pooled over methods with their degrees of freedom;
    two runs of one method differ by less than reach = t s sqrt(2) in 95 % of cases.

    >>> [round(number, 3) for number in noise_floor([[1.0, 3.0], [2.0]])]
    [1.414, 25.412]
    """
    freedom = sum(len(group) - 1 for group in groups if group)
    if freedom == 0:
        return None
    squares = math.fsum((len(group) - 1) * float(np.var(group, ddof=1)) for group in groups if len(group) > 1)
    s = math.sqrt(squares / freedom)
    return s, float(stdtrit(freedom, 1 - LEVEL / 2)) * s * math.sqrt(2)
