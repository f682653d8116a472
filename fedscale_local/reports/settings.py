"""How a result depends on hyper-parameters: what was tried, in groups that differ by numbers alone.

The methods of a sweep that share every choice (strategy, rule, scheme, ...) and differ in numbers are a group, and so
are the trials of one method that was tuned. A group over two keys or more is told by maps, a pair of keys each; over
one key by a line.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from fedscale_local.reports.histories import differences, names
from fedscale_local.reports.measures import Metric, Row
from fedscale_local.reports.statistics import Estimate, estimate
from fedscale_local.reports.tuning import Tuned, number

MAX_VALUES = 12  # of a key; more are put together in intervals
MAX_INTERVALS = 6
SPAN = 10  # positive values further apart than this are told on a logarithmic scale


class Setting(NamedTuple):
    """What was reached with these numbers: a result for each seed, none where `lost` says why there is none."""

    name: str
    values: Mapping[str, float]
    results: tuple[float, ...]
    lost: str = ""


class Axis(NamedTuple):
    """The places of one key: as many marks as labels are values, one more are the borders of intervals."""

    key: str
    labels: tuple[str, ...]
    marks: tuple[float, ...]
    is_log: bool

    def place(self, value: float) -> int:
        """
        >>> intervals("a", 0.01, 1.0, True, 2).place(0.05), exact("a", [4.0, 1.0]).place(4.0)
        (0, 1)
        """
        if len(self.marks) == len(self.labels):
            return min(range(len(self.marks)), key=lambda i: abs(self.marks[i] - value))
        return min(max(bisect_right(self.marks, value) - 1, 0), len(self.labels) - 1)


class Group(NamedTuple):
    """Settings that differ by the numbers of these axes alone; along: "b follows a", where a key goes with another.

    held: may keys that are not looked at be held, since each combination was asked for? In a search they are drawn.
    """

    name: str
    axes: tuple[Axis, ...]
    settings: tuple[Setting, ...]
    along: tuple[str, ...] = ()
    held: bool = True


class Map(NamedTuple):
    """The settings of a group in the cells (row, column) of two of its axes; held: the numbers of the other keys."""

    name: str
    down: Axis
    across: Axis
    cells: Mapping[tuple[int, int], Sequence[Setting]]
    held: str = ""


def of_methods(rows: Sequence[Row], metric: Metric) -> list[Group]:
    """The groups among methods that are compared; [] where no two of them differ by numbers alone."""
    configurations = [row.method.any_run.method for row in rows]
    keys = differences(configurations)
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row, one in zip(rows, configurations, strict=True):
        choices = tuple("number" if _is_number(one.get(key)) else repr(one.get(key, ...)) for key in keys)
        alike.setdefault(choices, []).append(row)
    told = [_choices(group[0].method.any_run.method) for group in alike.values()]
    called = names(told) if len(told) > 1 else [""]
    groups = [_of_rows(name, group, keys) for name, group in zip(called, alike.values(), strict=True)]
    return [group for group in groups if len(group.settings) > 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _choices(configuration: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in configuration.items() if not _is_number(value)}


def _of_rows(name: str, rows: Sequence[Row], keys: Sequence[str]) -> Group:
    """These methods, which have numbers under the same keys."""
    configurations = [row.method.any_run.method for row in rows]
    varied = [key for key in keys if len({one.get(key) for one in configurations}) > 1]
    settings = []
    for row, one in zip(rows, configurations, strict=True):
        lost = [seed for seed, value in row.columns["final"].items() if math.isnan(value)]
        results = () if lost else tuple(row.columns["final"].values())
        words = f"diverged or not measured under seed {', '.join(map(str, lost))}" if lost else ""
        settings.append(Setting(row.method.name, {key: float(one[key]) for key in varied}, results, words))
    free, along = independent(varied, settings)
    return Group(
        name, tuple(exact(key, [s.values[key] for s in settings]) for key in free), tuple(settings), along
    )


def independent(keys: Sequence[str], settings: Sequence[Setting]) -> tuple[list[str], tuple[str, ...]]:
    """The keys without those that go one to one with an earlier one, and a word on each that does."""
    free: list[str] = []
    along: list[str] = []
    for key in keys:
        for before in free:
            pairs = {(setting.values[before], setting.values[key]) for setting in settings}
            if len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}):
                along.append(f"{key} follows {before}")
                break
        else:
            free.append(key)
    return free, tuple(along)


def exact(key: str, values: Sequence[float]) -> Axis:
    """A place for each value; intervals where that were more than MAX_VALUES."""
    marks = sorted(set(values))
    is_log = marks[0] > 0 and marks[-1] / marks[0] >= SPAN
    if len(marks) > MAX_VALUES:
        return intervals(key, marks[0], marks[-1], is_log, MAX_INTERVALS)
    return Axis(key, tuple(f"{mark:g}" for mark in marks), tuple(marks), is_log)


def intervals(key: str, low: float, high: float, is_log: bool, count: int) -> Axis:
    """`count` equal parts of the key's scale.

    >>> intervals("a", 0.01, 1.0, True, 2).labels
    ('0.01 to 0.1', '0.1 to 1')
    """
    if is_log:
        marks = [low * (high / low) ** (i / count) for i in range(count + 1)]
    else:
        marks = [low + (high - low) * i / count for i in range(count + 1)]
    words = [f"{mark:.2g}" if is_log else f"{mark:.4g}" for mark in marks]
    labels = tuple(f"{a} to {b}" for a, b in pairwise(words))
    return Axis(key, labels, tuple(marks), is_log)


# ---------------------------------------------------------------- trials


def of_tuned(one: Tuned) -> list[Group]:
    """The trials of a method, in groups that share what is not a number."""
    alike: dict[str, list[Mapping[str, Any]]] = {}
    spaces = [d for d in one.space if all(number(choice) is not None for choice in d["choices"])]
    chosen = [d["key"] for d in one.space if d not in spaces]
    for trial in one.trials:
        words = " ".join(f"{key}={trial['values'][key]}" for key in chosen)
        alike.setdefault(" ".join(filter(None, (one.name, words))), []).append(trial)
    groups = []
    for name, trials in alike.items():
        count = min(max(math.isqrt(len(trials)), 2), MAX_INTERVALS)
        axes = tuple(_axis_of(dimension, count) for dimension in spaces)
        settings = tuple(_of_trial(one, trial, [axis.key for axis in axes]) for trial in trials)
        groups.append(Group(name, axes, settings, held=False))
    return [group for group in groups if sum(bool(s.results) for s in group.settings) > 1 and group.axes]


def _axis_of(dimension: Mapping[str, Any], count: int) -> Axis:
    """The values that a key of the space has, where they are few, else `count` intervals of it."""
    key, low, high = dimension["key"], dimension["low"], dimension["high"]
    if dimension["choices"]:
        return exact(key, [float(choice) for choice in dimension["choices"]])
    step = dimension["step"] or (1 if dimension["is_int"] else 0)
    if step and (high - low) / step < MAX_INTERVALS:
        return exact(key, [low + step * i for i in range(int((high - low) / step + 1e-9) + 1)])
    return intervals(key, low, high, dimension["is_log"], count)


def _of_trial(one: Tuned, trial: Mapping[str, Any], keys: Sequence[str]) -> Setting:
    values = {key: float(trial["values"][key]) for key in keys}
    lost = {"pruned": "pruned", "fail": "failed"}.get(trial["state"], "")
    if not lost and trial["value"] is None:
        lost = "diverged"
    return Setting(f"trial {trial['number'] + 1}", values, () if lost else (trial["value"],), lost)


# ---------------------------------------------------------------- maps


def maps(group: Group, larger_is_better: bool) -> list[Map]:
    """A map for each pair of the group's axes, those that show most settings first.

    A map over two of more than two keys shows the settings that have the other numbers of the best one, where they can
    be held; where they were drawn it shows all.
    """
    found = [_map(group, a, b, larger_is_better) for a, b in combinations(group.axes, 2)]
    found = [one for one in found if len(one.down.labels) > 1 and len(one.across.labels) > 1]
    return sorted(found, key=lambda one: -sum(map(len, one.cells.values())))


def _map(group: Group, a: Axis, b: Axis, larger_is_better: bool) -> Map:
    others = [axis for axis in group.axes if axis not in (a, b)]
    settings, held = list(group.settings), ""
    if others and group.held:
        best = best_of(settings, larger_is_better)
        at = {axis.key: axis.place(best.values[axis.key]) for axis in others}
        settings = [s for s in settings if all(x.place(s.values[x.key]) == at[x.key] for x in others)]
        held = ", ".join(f"{axis.key}={axis.labels[at[axis.key]]}" for axis in others)
    if group.held:
        a, b = (_shown(axis, settings) for axis in (a, b))
    down, across = (a, b) if len(a.labels) >= len(b.labels) else (b, a)
    cells: dict[tuple[int, int], list[Setting]] = {}
    for one in settings:
        cells.setdefault((down.place(one.values[down.key]), across.place(one.values[across.key])), []).append(
            one
        )
    return Map(group.name, down, across, cells, held)


def _shown(axis: Axis, settings: Sequence[Setting]) -> Axis:
    """The axis without values that none of the settings has."""
    if len(axis.marks) > len(axis.labels):
        return axis
    return exact(axis.key, [setting.values[axis.key] for setting in settings])


def best_of(settings: Sequence[Setting], larger_is_better: bool) -> Setting:
    """The one with the best mean, the first of several; the first of all where none has one."""
    known = [setting for setting in settings if setting.results]
    sign = -1 if larger_is_better else 1
    return min(known or settings[:1], key=lambda one: sign * mean_of([one]).mean if known else 0.0)


def mean_of(settings: Sequence[Setting]) -> Estimate:
    """Of one setting the mean over seeds and its interval; of several the mean of their means, without one."""
    means = [estimate(one.results) for one in settings if one.results]
    if len(means) == 1:
        return means[0]
    return Estimate(estimate([one.mean for one in means]).mean, math.nan, len(means))
