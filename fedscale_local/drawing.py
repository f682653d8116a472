"""The values of a trial, drawn by Optuna from the trials before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, product, takewhile
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from fedscale_local.compose_tuning import Dimension

DIGITS = 3
"""Significant digits of a number that is drawn: more would tell nothing, and what is run can be read and repeated."""


def draw(space: Sequence[Dimension], study: optuna.Study, seed: int) -> dict[str, Any] | None:
    """The next values by key: what Optuna's sampler (TPE) makes of this seed and of the trials that are over.

    Where it repeats itself, the first values that were not tried: the same ones would tell the same again. So as many
    trials as a space has values are the whole grid. None where all were tried.
    """
    distributions = {dimension.name: distribution(dimension) for dimension in space}
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32)
    memory = optuna.create_study(sampler=sampler, direction=study.direction)
    memory.add_trials(study.trials)
    params = memory.ask(distributions).params
    drawn = {dimension.name: rounded(params[dimension.name], dimension) for dimension in space}
    tried = {_known(trial.params) for trial in study.trials}
    if _known(drawn) not in tried or not all(is_finite(dimension) for dimension in space):
        return drawn
    names = [dimension.name for dimension in space]
    grid = (dict(zip(names, values, strict=True)) for values in product(*map(every, space)))
    return next((values for values in grid if _known(values) not in tried), None)


def _known(values: Mapping[str, Any]) -> str:
    """The same text for the same values, by whichever sum of steps a number was reached."""
    return repr(sorted((k, v if isinstance(v, str) else f"{v:.12g}") for k, v in values.items()))


def is_finite(dimension: Dimension) -> bool:
    """Has it so many values, and no more?"""
    return bool(dimension.choices) or dimension.is_int or dimension.step is not None


def every(dimension: Dimension) -> Iterator[Any]:
    """The values of a dimension that is_finite, in its order.

    >>> list(every(Dimension("a", low=2, high=7, step=2, is_int=True))), list(every(Dimension("b", choices=("x", "y"))))
    ([2, 4, 6], ['x', 'y'])
    """
    if dimension.choices:
        return iter(dimension.choices)
    low, step = dimension.low, dimension.step or 1
    values = (low + number * step for number in count())
    inside = takewhile(lambda value: value <= dimension.high + step * 1e-9, values)
    return map(int, inside) if dimension.is_int else inside


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
