"""Figures of a run: functions from numbers to matplotlib figures, and from a figure to SVG inside a page.

Nothing here touches pyplot, a display or a random number: the same numbers give the same bytes. A figure
is drawn in the colours of `PALETTE`; inside a page each becomes `var(--name, colour)`, so that one picture
serves light and dark.
"""

from __future__ import annotations

from fedscale_local.plots.drift import drift_figures
from fedscale_local.plots.lines import (
    Series,
    accuracy_figure,
    byte_unit,
    curves,
    loss_figure,
    points,
    preconditioner_figures,
    privacy_figures,
    time_unit,
)
from fedscale_local.plots.methods import (
    PAINT,
    Band,
    band_figure,
    difference_figure,
    seed_figure,
)
from fedscale_local.plots.settings import Tried, setting_figure
from fedscale_local.plots.shards import partition_figure
from fedscale_local.plots.style import save, svg

__all__ = [
    "PAINT",
    "Band",
    "Series",
    "Tried",
    "accuracy_figure",
    "band_figure",
    "byte_unit",
    "curves",
    "difference_figure",
    "drift_figures",
    "loss_figure",
    "partition_figure",
    "points",
    "preconditioner_figures",
    "privacy_figures",
    "save",
    "seed_figure",
    "setting_figure",
    "svg",
    "time_unit",
]
