"""Methods beside each other: their mean curves with intervals, their result under every seed, their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedscale_local.plots.lines import x_axis, y_axis
from fedscale_local.plots.style import PALETTE, canvas, styled

# Colour and dash of each method, in the order of a table; neighbours differ in both.
PAINT: tuple[tuple[str, str], ...] = (
    ("blue", ""), ("orange", "7 3"), ("green", "2 2"), ("purple", "9 3 2 3"),
    ("red", "12 3"), ("cyan", "4 2"), ("olive", "6 2 1 2 1 2"), ("brown", "1 2"),
)  # fmt: skip


@dataclass(frozen=True)
class Band:
    """A mean curve (points,) and the half-width of its interval (points,), NaN where there is none."""

    label: str
    x: np.ndarray
    mean: np.ndarray
    half: np.ndarray


def dash_of(place: int) -> Any:
    """The dash of the method at this place of a table, as matplotlib takes it."""
    lengths = PAINT[place % len(PAINT)][1].split()
    return (0, tuple(float(length) / 1.8 for length in lengths)) if lengths else "-"


def colour_of(place: int) -> str:
    """The name of its colour in PALETTE."""
    return PAINT[place % len(PAINT)][0]


@styled
def band_figure(
    bands: Sequence[Band | None], xlabel: str, ylabel: str, *,
    percent: bool = False, budget: float | None = None,
) -> Figure:  # fmt: skip
    """Mean curves, each in a band as wide as its interval; an upright line where the budget ends.

    The place of a band is that of its method in the table; None: this method has no such curve.
    """
    figure, axes = canvas(5.4, 3.3)
    drawn = [(place, band) for place, band in enumerate(bands) if band is not None]
    few = max(len(band.x) for _, band in drawn) <= 40
    every: list[float] = []
    for place, band in drawn:
        colour = PALETTE[colour_of(place)]
        low, high = band.mean - np.nan_to_num(band.half), band.mean + np.nan_to_num(band.half)
        if np.isfinite(band.half).any():
            axes.fill_between(band.x, low, high, color=colour, alpha=0.15, linewidth=0, gid=f"band-{place}")
        axes.plot(
            band.x, band.mean, color=colour, linestyle=dash_of(place), gid=f"mean-{place}",
            marker="o" if few else None, markersize=3.2,
        )  # fmt: skip
        every += [value for value in band.mean if np.isfinite(value)]
        every += [value for value in (*low, *high) if np.isfinite(value) and (value > 0 or min(every) <= 0)]
    if budget is not None:
        axes.axvline(budget, color=PALETTE["muted"], linewidth=0.9, linestyle=(0, (2, 3)), gid="budget")
    x_axis(axes, xlabel, [float(x) for _, band in drawn for x in band.x])
    y_axis(axes, ylabel, every, "linear" if percent else "auto", percent)
    return figure


@styled
def seed_figure(
    names: Sequence[str], values: Sequence[dict[int, float]], estimates: Sequence[tuple[float, float]],
    xlabel: str, percent: bool = False,
) -> Figure:  # fmt: skip
    """Every run's result as a dot, a row a method; a line joins the runs of one seed; mean and interval below.

    values: seed -> result of each method; estimates: (mean, half-width) of each.
    """
    figure, axes = canvas(11.0, 0.9 + 0.52 * len(names))
    for seed in dict.fromkeys(seed for column in values for seed in column):
        known = [
            (column[seed], place)
            for place, column in enumerate(values)
            if np.isfinite(column.get(seed, np.nan))
        ]
        x, y = [value for value, _ in known], [place - 0.12 for _, place in known]
        axes.plot(x, y, color=PALETTE["muted"], linewidth=0.8, alpha=0.45, gid=f"seed-{seed}")
    for place, (column, (mean, half)) in enumerate(zip(values, estimates, strict=True)):
        colour = PALETTE[colour_of(place)] if place < len(PAINT) else PALETTE["muted"]
        x = [value for value in column.values() if np.isfinite(value)]
        axes.plot(
            x, [place - 0.12] * len(x), "o", color=colour, markersize=4.6, alpha=0.85, gid=f"runs-{place}"
        )
        _interval(axes, mean, half, place + 0.2, colour)
    _rows(axes, names)
    _value_axis(axes, xlabel, percent)
    return figure


@styled
def difference_figure(
    names: Sequence[str], differences: Sequence[Sequence[float]], estimates: Sequence[tuple[float, float]],
    decided: Sequence[bool], xlabel: str,
) -> Figure:  # fmt: skip
    """The difference of each pair under every seed, with mean and interval; an upright line at no difference."""
    figure, axes = canvas(11.0, 0.9 + 0.62 * len(names))
    axes.axvline(0.0, color=PALETTE["ink"], linewidth=0.9, gid="zero")
    for place, (each, (mean, half), is_decided) in enumerate(
        zip(differences, estimates, decided, strict=True)
    ):
        colour = PALETTE["green" if is_decided else "muted"]
        axes.plot(
            each,
            [place - 0.14] * len(each),
            "o",
            color=colour,
            markersize=4.2,
            alpha=0.7,
            gid=f"pairs-{place}",
        )
        _interval(axes, mean, half, place + 0.18, colour)
    _rows(axes, names)
    _value_axis(axes, xlabel, percent=False)
    return figure


def _interval(axes: Axes, mean: float, half: float, height: float, colour: str) -> None:
    if np.isfinite(half):
        axes.plot([mean - half, mean + half], [height] * 2, color=colour, linewidth=3.2, alpha=0.55)
    if np.isfinite(mean):
        axes.plot([mean], [height], "|", color=colour, markersize=11, markeredgewidth=2.4)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=PALETTE["ink"])
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)


def _value_axis(axes: Axes, label: str, percent: bool) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(8))
    form = (lambda value, _: f"{round(100 * value, 3):g}%") if percent else (lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(FuncFormatter(form))
    axes.margins(x=0.06)
