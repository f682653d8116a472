"""The partition as a picture: who holds how much of which class, for ten clients or for ten thousand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fedscale_local.plots.style import PALETTE, canvas, styled

# After Okabe and Ito; the order keeps neighbours in a stack apart in lightness too.
CLASS_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9",
    "#d55e00", "#e2d53a", "#7d5fc4", "#8c939c", "#a83268",
)  # fmt: skip
MAX_BARS = 60  # clients that are told apart one by one
MAX_COLUMNS = 500  # columns of the picture of many clients


def partition_figure(
    counts: Any = None, class_names: Sequence[str] = (), *, sizes: Sequence[int] | None = None
) -> Figure:
    """Who holds what: `counts` (clients, classes) examples, or only `sizes` (clients,).

    Up to 60 clients and 10 classes: one stacked bar a client. More: clients in the order of their largest
    class; above, their sizes; below, a column a client (or a group of neighbours) in which strong colour is a
    large share.
    """
    if counts is None:
        return size_figure(np.sort(np.asarray(sizes if sizes is not None else []))[::-1])
    table = np.asarray(counts, dtype=np.int64)
    if table.ndim != 2 or table.size == 0:
        return size_figure(np.zeros(len(table)))
    names = [str(class_names[k]) if k < len(class_names) else str(k) for k in range(table.shape[1])]
    if len(table) <= MAX_BARS and table.shape[1] <= len(CLASS_COLOURS):
        return bar_figure(table, names)
    return share_figure(table, names)


@styled
def size_figure(sizes: np.ndarray) -> Figure:
    """Sizes (clients,) in the order given, one column a client; a logarithmic axis for a few giants."""
    figure, axes = canvas(11.0, 3.2)
    shown, per_column = _grouped(np.asarray(sizes, dtype=float)[:, None])
    giants = bool(len(sizes)) and sizes.max() > 30 * max(float(np.median(sizes)), 1.0)
    _columns(axes, shown[:, 0] / np.maximum(per_column, 1), len(sizes), log=giants)
    axes.set_xlabel(_clients_label(per_column, "clients, largest first"))
    return figure


@styled
def bar_figure(table: np.ndarray, names: Sequence[str]) -> Figure:
    """One bar a client, stacked by class: table (clients, classes)."""
    figure, axes = canvas(11.0, 3.6)
    below = np.zeros(len(table))
    left, right = np.arange(len(table)) - 0.41, np.arange(len(table)) + 0.41
    for k, name in enumerate(names):
        top = below + table[:, k]
        corners = np.array([[left, below], [left, top], [right, top], [right, below]])  # (4, 2, clients)
        some = table[:, k] > 0
        if some.any():
            outline = Outline.make_compound_path_from_polys(corners[..., some].transpose(2, 0, 1))
            paint = {"facecolor": CLASS_COLOURS[k], "edgecolor": PALETTE["paper"], "linewidth": 0.5}
            axes.add_patch(PathPatch(outline, gid=f"class-{k}", **paint))
        axes.plot([], [], "s", color=CLASS_COLOURS[k], label=_short(name))
        below = top
    axes.set_xlim(-0.7, len(table) - 0.3)
    axes.set_ylim(0, max(below.max() * 1.04, 1))
    axes.set_xlabel("client")
    axes.set_ylabel("examples")
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    handles, labels = axes.get_legend_handles_labels()  # read from the top of the stack downwards
    axes.legend(
        handles[::-1],
        labels[::-1],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        handlelength=1.0,
        fontsize=9.5,
        labelspacing=0.35,
    )
    return figure


@styled
def share_figure(table: np.ndarray, names: Sequence[str]) -> Figure:
    """Sizes, and the share of every class, of many clients: table (clients, classes)."""
    ordered = table[_by_main_class(table)]
    groups, per_column = _grouped(ordered.astype(float))
    totals = groups.sum(1)
    shares = groups / np.maximum(totals, 1)[:, None]
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    _columns(upper, totals / np.maximum(per_column, 1), len(table))
    # Strength is opacity, so the same picture reads on white and on black paper.
    picture = np.empty((table.shape[1], len(groups), 4))
    picture[..., :3] = to_rgb("#2f80d0")
    picture[..., 3] = shares.T**0.75
    extent = (0, len(table), table.shape[1], 0)
    lower.imshow(picture, aspect="auto", interpolation="nearest", extent=extent, gid="shares")
    every = math.ceil(len(names) / 20)
    lower.set_yticks(np.arange(0, len(names), every) + 0.5, [_short(name, 14) for name in names[::every]])
    lower.grid(False)
    lower.tick_params(axis="y", labelsize=9.5)
    lower.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    lower.set_xlabel(
        _clients_label(per_column, "clients, by their largest class; strong colour: a large share")
    )
    return figure


def _by_main_class(table: np.ndarray) -> np.ndarray:
    """Clients in the order of their largest class, the purest first; the empty ones last."""
    totals = table.sum(1)
    purity = table.max(1) / np.maximum(totals, 1)
    return np.lexsort((-totals, -purity, table.argmax(1), totals == 0))


def _grouped(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of neighbouring rows, so that at most MAX_COLUMNS are left, and how many rows each one holds."""
    columns = min(len(rows), MAX_COLUMNS)
    borders = np.linspace(0, len(rows), columns + 1).round().astype(int)
    sums = np.add.reduceat(rows, borders[:-1], axis=0) if columns else rows
    return sums, np.diff(borders)


def _clients_label(per_column: np.ndarray, words: str) -> str:
    most = int(per_column.max()) if len(per_column) else 1
    return words if most == 1 else f"{words}; a column is the mean of up to {most}"


def _columns(axes: Axes, heights: np.ndarray, clients: int, log: bool = False) -> None:
    edges = np.linspace(0, clients, len(heights) + 1)
    floor = 0.5 if log else 0.0
    paint: dict[str, Any] = {"color": PALETTE["muted"], "alpha": 0.75, "linewidth": 0}
    axes.stairs(np.maximum(heights, floor), edges, baseline=floor, fill=True, gid="sizes", **paint)
    axes.set_xlim(0, max(clients, 1))
    axes.set_ylabel("examples")
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_ylim(floor, max(heights.max(initial=0) * (1.3 if log else 1.05), 1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _short(text: str, limit: int = 24) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
