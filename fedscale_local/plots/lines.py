"""Curves against rounds and bytes: loss, accuracy, and how the preconditioner moves."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedscale_local.plots.style import PALETTE, canvas, styled

MAX_POINTS = 5000  # points of one curve

Rounds = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Series:
    """One curve: x and y (points,), a label for the legend, a name of PALETTE, a dash of matplotlib."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "blue"
    dash: Any = "-"


def points(rounds: Rounds, key: str, against: str = "round") -> tuple[list[float], list[float]]:
    """(x, y) of one key over the rounds in which it has a value; x: "round", or "bytes" up and down so far.

    >>> rounds = [{"round": 1, "a": 0.5, "bytes_up": 2, "bytes_down": 3}, {"round": 2, "a": None}]
    >>> points(rounds, "a"), points(rounds, "a", "bytes")
    (([1.0], [0.5]), ([5.0], [0.5]))
    """
    xs, ys, total = [], [], 0.0
    for record in rounds:
        total += (record.get("bytes_up") or 0) + (record.get("bytes_down") or 0)
        if record.get(key) is not None:
            xs.append(total if against == "bytes" else float(record["round"]))
            ys.append(float(record[key]))
    return thinned(xs), thinned(ys)


def thinned(values: list[float], limit: int = MAX_POINTS) -> list[float]:
    """At most `limit` + 1 of the values, evenly spaced, the first and the last among them.

    >>> thinned([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], limit=3)
    [0.0, 3.0, 6.0]
    """
    step = math.ceil(len(values) / limit)
    return values if step <= 1 else values[::step] + ([values[-1]] if (len(values) - 1) % step else [])


BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def byte_unit(most: float) -> tuple[float, str]:
    """The decimal unit in which this many bytes read best, and its size: (1e6, "MB") for 5e7."""
    power = min(int(math.log10(most) // 3), len(BYTE_UNITS) - 1) if most >= 1 else 0
    return 1000.0**power, BYTE_UNITS[power]


def time_unit(most: float) -> tuple[float, str]:
    """The unit in which so many seconds read best, and its size: (60.0, "minutes") for 600."""
    return next(
        ((size, unit) for size, unit in ((3600.0, "hours"), (60.0, "minutes")) if most >= 5 * size),
        (1.0, "seconds"),
    )


@styled
def curves(
    series: Sequence[Series],
    xlabel: str,
    ylabel: str,
    *,
    scale: str = "auto",
    percent: bool = False,
    mark: tuple[float, float, str] | None = None,
) -> Figure:
    """Curves over a common axis; `mark` is one point (x, y, words) to name in the picture.

    scale: "linear", "log" or "auto" (log where positive values span a factor of 50).
    """
    figure, axes = canvas()
    few = max((len(one.x) for one in series), default=0) <= 40
    for one in series:
        axes.plot(
            one.x,
            one.y,
            color=PALETTE[one.colour],
            linestyle=one.dash,
            label=one.label,
            gid=_gid(one.label),
            marker="o" if few else None,
            markersize=3.2,
        )
    if mark is not None:
        _mark(axes, *mark)
    x_axis(axes, xlabel, [x for one in series for x in one.x])
    y_axis(axes, ylabel, [y for one in series for y in one.y], scale, percent)
    _legend(axes, len(series))
    return figure


def loss_figure(rounds: Rounds, against: str = "round") -> Figure | None:
    """Training and test loss against rounds or bytes; None where no round has either."""
    scale, xlabel = _against(rounds, against)
    series = []
    for label, key, colour, dash in (
        ("training loss", "train_loss", "orange", (0, (4, 1.6))),
        ("test loss", "test_loss", "blue", "-"),
    ):
        x, y = points(rounds, key, against)
        if x:
            series.append(Series(label, [value / scale for value in x], y, colour, dash))
    return curves(series, xlabel, series[0].label if len(series) == 1 else "loss") if series else None


def accuracy_figure(rounds: Rounds, against: str = "round") -> Figure | None:
    """Test accuracy against rounds or bytes, its best point named; None where no round has one."""
    scale, xlabel = _against(rounds, against)
    x, y = points(rounds, "test_accuracy", against)
    if not x:
        return None
    x = [value / scale for value in x]
    best = int(np.argmax(y))
    series = [Series("test accuracy", x, y, "green")]
    mark = (x[best], y[best], f"best {y[best]:.1%}")
    return curves(series, xlabel, "test accuracy", scale="linear", percent=True, mark=mark)


def privacy_figures(rounds: Rounds) -> list[tuple[str, Figure]]:
    """(caption, figure) of the privacy lost so far; [] where no round has an epsilon."""
    x, y = points(rounds, "epsilon")
    return [("Epsilon so far", curves([Series("epsilon", x, y, "purple")], "round", "epsilon"))] if x else []


def preconditioner_figures(rounds: Rounds) -> list[tuple[str, Figure]]:
    """(caption, figure) for each diagnostic of D-hat that the rounds have; [] for a method without one."""
    figures = []
    low, high = (dict(zip(*points(rounds, key), strict=True)) for key in ("d_min", "d_max"))
    both = [r for r in low if r in high and low[r] > 0 and high[r] > 0]
    if both:
        caption = "Range of the preconditioner: smallest to largest entry"
        figures.append((caption, band(both, [low[r] for r in both], [high[r] for r in both])))
    for key, label, colour, caption in (
        ("d_condition", "condition", "purple", "Condition: largest entry over smallest"),
        ("d_change", "relative change", "orange", "Change from round to round, relative to its size"),
    ):
        x, y = points(rounds, key)
        if x:
            scale = "log" if min(y) > 0 else "auto"
            figures.append((caption, curves([Series(label, x, y, colour)], "round", label, scale=scale)))
    x, y = points(rounds, "d_floored")
    if x:
        one = Series("at the floor", x, y, "green")
        figure = curves([one], "round", "share of coordinates", scale="linear", percent=True)
        figures.append(("Coordinates held at the floor", figure))
    return figures


@styled
def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], ylabel: str = "entries") -> Figure:
    """The range low..high (points,) on a logarithmic axis, its two borders drawn as curves."""
    figure, axes = canvas()
    marker = "o" if len(x) <= 40 else None
    axes.fill_between(x, low, high, color=PALETTE["blue"], alpha=0.16, linewidth=0, gid="range")
    for label, values, dash in (("largest", high, "-"), ("smallest", low, (0, (4, 1.6)))):
        axes.plot(
            x,
            values,
            color=PALETTE["blue"],
            linestyle=dash,
            label=label,
            gid=_gid(label),
            marker=marker,
            markersize=3.2,
        )
    x_axis(axes, "round", x)
    y_axis(axes, ylabel, [*low, *high], "log", False)
    _legend(axes, 2)
    return figure


def _gid(label: str) -> str:
    return re.sub(r"\W+", "-", label)


def _against(rounds: Rounds, against: str) -> tuple[float, str]:
    if against == "round":
        return 1.0, "round"
    total = sum((record.get("bytes_up") or 0) + (record.get("bytes_down") or 0) for record in rounds)
    scale, unit = byte_unit(total)
    return scale, f"{unit} sent, up and down"


def x_axis(axes: Axes, label: str, x: Sequence[float]) -> None:
    """Label and ticks of the axis that holds these values."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=label == "round", min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    if len(set(x)) == 1:
        room = 0.9 if label == "round" else 0.5 * x[0] or 1.0
        axes.set_xlim(x[0] - room, x[0] + room)


def y_axis(axes: Axes, label: str, y: Sequence[float], scale: str, percent: bool) -> None:
    """Label, scale and ticks of the axis that holds these values; scale: linear, log or auto."""
    axes.set_ylabel(label)
    low, high = (min(y), max(y)) if len(y) else (0.0, 1.0)
    if scale == "log" or (scale == "auto" and low > 0 and high / low >= 50):
        axes.set_yscale("log")
        decades = math.log10(high) - math.log10(low)
        if decades < 0.02:  # a constant: one decade around it
            axes.set_ylim(low / 3.2, high * 3.2)
        wide = decades >= 2
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=7))
        plain = low >= 1e-4 and high < 1e5  # one way of writing for all ticks of an axis
        form = (lambda value, _: f"{value:,g}") if plain else (lambda value, _: power_of_ten(value))
        axes.yaxis.set_major_formatter(FuncFormatter(form))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if high - low < 1e-9 * max(abs(high), 1e-300):
        axes.set_ylim(low - 0.1 * (abs(low) or 1), high + 0.1 * (abs(high) or 1))
    if percent:
        bottom, top = axes.get_ylim()
        room = 0.12 * (top - bottom)  # for the words beside the best point
        axes.set_ylim(max(bottom, -0.02), top + room)
        formatter = FuncFormatter(
            lambda share, _: f"{round(100 * share, 3):g}%" if 0 <= share < 1.0001 else ""
        )
    else:
        formatter = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(formatter)


def power_of_ten(value: float) -> str:
    """How a tick of a logarithmic axis reads, without markup.

    >>> power_of_ten(0.001), power_of_ten(1.0), power_of_ten(3e-9)
    ('10⁻³', '1', '3·10⁻⁹')
    """
    if value == 1:
        return "1"
    exponent = math.floor(math.log10(value) + 1e-12)
    digits = f"{value / 10.0**exponent:.3g}"
    return ("" if digits == "1" else f"{digits}·") + "10" + str(exponent).translate(SUPERSCRIPTS)


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _mark(axes: Axes, x: float, y: float, words: str) -> None:
    axes.plot([x], [y], "o", color=PALETTE["ink"], markersize=4.5, gid="mark")
    left = x > 0.5 * sum(axes.get_xlim())
    axes.annotate(
        words,
        (x, y),
        xytext=(0, 7),
        textcoords="offset points",
        ha="right" if left else "left",
        color=PALETTE["ink"],
    )


def _legend(axes: Axes, entries: int) -> None:
    if entries > 1:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=entries if entries <= 3 else 2, borderaxespad=0.2
        )
