"""How methods were tuned: what was found, with how many trials, and what is to be known before it is believed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedscale_local.run_dir import TUNING, tunings

EDGE = 0.05
"""A value in this part of a space's width beside its end, on its scale, is at the edge."""

WORDS = (
    "Every method was given these trials over this space. The best one was chosen by the value that is shown, which "
    "flatters each method a little. A pruned trial fell behind the median of those before it."
)


class Tuned(NamedTuple):
    """One method's tuning, as tuning.json has it. best: the place of the best trial; None where none has a value."""

    name: str
    metric: str
    direction: str
    seeds: Sequence[int]
    space: Sequence[Mapping[str, Any]]
    trials: Sequence[Mapping[str, Any]]
    best: int | None

    @property
    def values(self) -> Mapping[str, Any]:
        """Of the best trial, by key."""
        return {} if self.best is None else self.trials[self.best]["values"]

    @property
    def values_text(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values.items())

    @property
    def best_words(self) -> str:
        if self.best is None:
            return f"no trial has a {self.metric}"
        return f"{self.metric} {self.trials[self.best]['value']:.6g} in trial {self.best + 1} of {len(self.trials)}"

    def count(self, state: str) -> int:
        return sum(trial["state"] == state for trial in self.trials)


def read(folder: Path) -> list[Tuned]:
    """The methods that were tuned in this directory; raises RunDirError where tuning.json is malformed."""
    return [Tuned(**{key: method[key] for key in Tuned._fields}) for method in tunings(folder)]


def of_folders(folders: Iterable[Path]) -> list[Tuned]:
    """The same of those of these directories in which methods were tuned."""
    return [one for folder in dict.fromkeys(folders) if (folder / TUNING).exists() for one in read(folder)]


def edge(dimension: Mapping[str, Any], value: Any) -> str:
    """ "lower" or "upper" where the value sits on that edge of its dimension, else "".

    Of choices those have edges that are three numbers or more.

    >>> space = {"choices": [], "low": 0.001, "high": 1.0, "is_log": True}
    >>> edge(space, 0.0011), edge(space, 0.05), edge(space, 0.9)
    ('lower', '', 'upper')
    >>> edge({"choices": ["1", "2", "4"]}, "4"), edge({"choices": ["1", "2"]}, "2"), edge({"choices": ["a", "b"]}, "a")
    ('upper', '', '')
    """
    if dimension["choices"]:
        numbers = sorted(known for known in map(number, dimension["choices"]) if known is not None)
        if len(numbers) < max(3, len(dimension["choices"])):
            return ""
        return {numbers[0]: "lower", numbers[-1]: "upper"}.get(float(value), "")
    low, high, at = (
        math.log(x) if dimension["is_log"] else x for x in (dimension["low"], dimension["high"], value)
    )
    share = (at - low) / (high - low)
    return "lower" if share <= EDGE else "upper" if share >= 1 - EDGE else ""


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def space_text(dimension: Mapping[str, Any]) -> str:
    """
    >>> space_text({"choices": [], "low": 0.001, "high": 1.0, "step": None, "is_log": True, "is_int": False})
    'log 0.001 to 1'
    """
    if dimension["choices"]:
        return ", ".join(dimension["choices"])
    step = f" by {dimension['step']:g}" if dimension["step"] else ""
    return f"{'log ' if dimension['is_log'] else ''}{dimension['low']:g} to {dimension['high']:g}{step}"


def remarks(tuned: Sequence[Tuned]) -> list[str]:
    """Warnings: a best value on the edge of its space, unequal trials, another space or seeds, no value at all."""
    found = []
    for one in tuned:
        name = one.name or "The best trial"
        if one.best is None:
            found.append(f"{name} has no trial with a {one.metric}, so nothing is compared with it.")
        for dimension in one.space:
            key = dimension["key"]
            where = edge(dimension, one.values[key]) if one.values else ""
            if where:
                found.append(
                    f"{name}: {key}={one.values[key]} is on the {where} edge of what was searched "
                    f"({space_text(dimension)}), so there may be better beyond it: widen the space."
                )
    if len({len(one.trials) for one in tuned}) > 1:
        counts = ", ".join(f"{one.name} {len(one.trials)}" for one in tuned)
        found.append(f"Methods were not tuned alike: their trials are {counts}.")
    if len({(one.metric, one.direction, tuple(one.seeds)) for one in tuned}) > 1:
        found.append("Methods were not tuned alike: by another metric or under other seeds.")
    return found


def table(tuned: Sequence[Tuned]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each key of each method."""
    header = ["method", "trials", "pruned", "failed", "best", "key", "searched", "found", "edge"]
    body = []
    for one in tuned:
        best = "-" if one.best is None else f"{one.metric} {one.trials[one.best]['value']:.4g}"
        counts = [str(len(one.trials)), str(one.count("pruned")), str(one.count("fail"))]
        for place, dimension in enumerate(one.space):
            value = one.values.get(dimension["key"])
            where = "" if value is None else edge(dimension, value)
            own = [one.name or "-", *counts, best] if place == 0 else ["", "", "", "", ""]
            found = "-" if value is None else str(value)
            body.append([*own, dimension["key"], space_text(dimension), found, where])
    return header, body


def every_trial(tuned: Sequence[Tuned]) -> tuple[list[str], list[list[Any]]]:
    """Header and a row for each trial, unrounded: for CSV."""
    keys = list(dict.fromkeys(dimension["key"] for one in tuned for dimension in one.space))
    body = [
        [
            one.name,
            trial["number"] + 1,
            trial["state"],
            *(trial["values"].get(key) for key in keys),
            trial["value"],
        ]
        for one in tuned
        for trial in one.trials
    ]
    return ["method", "trial", "state", *keys, tuned[0].metric if tuned else "value"], body
