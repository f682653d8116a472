"""Figures of a run: functions from numbers to matplotlib figures, and from a figure to SVG inside a page.

Nothing here touches pyplot, a display or a random number: the same numbers give the same bytes. A figure
is drawn in the colours of `PALETTE`; inside a page each becomes `var(--name, colour)`, so that one picture
serves light and dark.
"""

from __future__ import annotations

from fedscale_local.plots.lines import (
    Series,
    accuracy_figure,
    byte_unit,
    curves,
    loss_figure,
    points,
    preconditioner_figures,
)
from fedscale_local.plots.shards import partition_figure
from fedscale_local.plots.style import save, svg

__all__ = [
    "Series",
    "accuracy_figure",
    "byte_unit",
    "curves",
    "loss_figure",
    "partition_figure",
    "points",
    "preconditioner_figures",
    "save",
    "svg",
]
