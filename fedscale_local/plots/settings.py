"""A result over one hyper-parameter: a dot a run, a line through the means of what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fedscale_local.plots.lines import y_axis
from fedscale_local.plots.methods import colour_of, dash_of
from fedscale_local.plots.style import PALETTE, canvas, styled

ROOM = 0.07  # of the axis between two ticks, at least


@dataclass(frozen=True)
class Tried:
    """What was reached with each value of a key: x (values,), `each` the runs' results, their means and half-widths."""

    x: Sequence[float]
    each: Sequence[Sequence[float]]
    mean: Sequence[float]
    half: Sequence[float]


@styled
def setting_figure(
    tried: Sequence[Tried], xlabel: str, ylabel: str, *, is_log: bool, percent: bool = False, joined: bool = True
) -> Figure:  # fmt: skip
    """Results over a key, a colour a group; joined: a line through the means, with their intervals."""
    figure, axes = canvas(11.0, 3.6)
    if is_log:
        axes.set_xscale("log")
    for place, one in enumerate(tried):
        colour = PALETTE[colour_of(place)]
        x = [value for value, runs in zip(one.x, one.each, strict=True) for _ in runs]
        y = [result for runs in one.each for result in runs]
        axes.plot(x, y, "o", color=colour, markersize=4.6, alpha=0.5 if joined else 0.85, gid=f"runs-{place}")
        if joined:
            axes.plot(one.x, one.mean, color=colour, linestyle=dash_of(place), gid=f"mean-{place}")
            axes.errorbar(one.x, one.mean, np.nan_to_num(one.half), fmt="none", ecolor=colour, capsize=3)
    every = [result for one in tried for runs in one.each for result in runs]
    y_axis(axes, ylabel, every, "linear" if percent else "auto", percent)
    axes.set_xlabel(xlabel)
    _ticks(axes, sorted({value for one in tried for value in one.x}), is_log)
    return figure


def _ticks(axes: Axes, values: Sequence[float], is_log: bool) -> None:
    """At the values themselves where they are far enough apart."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    scaled = np.log(values) if is_log else np.asarray(values)
    if len(values) > 1 and np.diff(scaled).min() >= ROOM * (scaled[-1] - scaled[0]):
        axes.xaxis.set_major_locator(FixedLocator(list(values)))
        axes.xaxis.set_minor_locator(NullLocator())
    elif not is_log:
        axes.xaxis.set_major_locator(MaxNLocator(8))
