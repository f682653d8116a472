"""The values of a trial, drawn by Optuna from the trials before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fedscale_local.compose_tuning import Dimension

DIGITS = 3
"""Significant digits of a number that is drawn: more would tell nothing, and what is run can be read and repeated."""


def draw(space: Sequence[Dimension], study: optuna.Study, seed: int) -> dict[str, Any]:
    """The next values by key: what Optuna's sampler (TPE) makes of this seed and of the trials that are over."""
    distributions = {dimension.name: distribution(dimension) for dimension in space}
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32)
    memory = optuna.create_study(sampler=sampler, direction=study.direction)
    memory.add_trials(study.trials)
    params = memory.ask(distributions).params
    return {dimension.name: rounded(params[dimension.name], dimension) for dimension in space}


def distribution(dimension: Dimension) -> BaseDistribution:
    """
    >>> distribution(Dimension("client.step_size", low=0.01, high=1, is_log=True))
    FloatDistribution(high=1.0, log=True, low=0.01, step=None)
    """
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.is_int:
        return IntDistribution(
            int(dimension.low), int(dimension.high), log=dimension.is_log, step=int(dimension.step or 1)
        )
    return FloatDistribution(dimension.low, dimension.high, log=dimension.is_log, step=dimension.step)


def rounded(value: Any, dimension: Dimension) -> Any:
    """
    >>> rounded(0.123456, Dimension("a", low=0, high=1)), rounded(0.123456, Dimension("a", low=0.1234, high=1))
    (0.123, 0.1234)
    """
    if isinstance(value, float) and dimension.step is None:
        return min(max(float(f"{value:.{DIGITS}g}"), dimension.low), dimension.high)
    return value


def end(dimension: Dimension, place: int) -> str:
    """The text of a value at one end of the dimension: 0 or -1."""
    ends = dimension.choices or (dimension.low, dimension.high)
    return text(int(ends[place]) if dimension.is_int else ends[place])


def text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
