"""The pictures of a comparison: curves, seeds, clients, the preconditioner; each function is a section of the page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from fedscale_local import plots
from fedscale_local.reports import compare_tables as tables
from fedscale_local.reports.comparison import Comparison
from fedscale_local.reports.histories import PERSONAL, Method
from fedscale_local.reports.measures import Metric, Row
from fedscale_local.reports.parts import csv_text, download, line_key, picture, section, table
from fedscale_local.reports.statistics import estimate

MAX_CURVES = len(plots.PAINT)  # methods that a picture tells apart
MAX_POINTS = 120  # of one mean curve
MAX_DIFFERENCES = 12
AXES = {
    "rounds": ("round", "rounds"),
    "bytes": ("{unit} sent, up and down", "bytes sent"),
    "steps": ("local steps of all clients", "local steps"),
    "simulated": ("{unit}, simulated", "simulated time"),
}
UNITS = {"bytes": plots.byte_unit, "simulated": plots.time_unit}
OF_D = {
    "d_condition": ("condition", "Condition: largest entry over smallest"),
    "d_change": ("relative change", "Change from round to round, relative to its size"),
    "d_floored": ("share of coordinates", "Coordinates held at the floor"),
}
SHARES = np.linspace(0, 1, 51)  # of the clients


def curves(comparison: Comparison) -> str:
    """Mean curves of the metrics against what was spent."""
    rows = comparison.rows[:MAX_CURVES]
    figures = ""
    for key in ("test_accuracy", "test_loss", "train_loss"):
        if key == "train_loss" and comparison.metric.key != key:
            continue
        for axis, (label, title) in AXES.items():
            figures += _curve(comparison, rows, Metric(key), axis, label, title)
    if not figures:
        return ""
    words = "Mean over seeds, in the band of its 95 % interval; the upright line is the budget."
    if len(comparison.rows) > MAX_CURVES:
        words += f" Drawn are the {MAX_CURVES} best of {len(comparison.rows)} methods."
    inside = f'<p class="muted">{words}</p>{_key(rows)}<div class="figures gap">{figures}</div>'
    return section("Curves", inside)


def _key(rows: Sequence[Row]) -> str:
    return line_key([row.method.name for row in rows])


def _curve(
    comparison: Comparison, rows: Sequence[Row], metric: Metric, axis: str, label: str, title: str
) -> str:
    bands = [_band(row.method, metric.key, axis) for row in rows]
    known = [band for band in bands if band is not None and np.isfinite(band.mean).any()]
    if len(known) < len(rows):
        return ""  # a picture without one of the methods would mislead
    scale = 1.0
    if axis in UNITS:
        scale, unit = UNITS[axis](max(float(band.x[-1]) for band in known))
        label = label.format(unit=unit)
    scaled = [plots.Band(band.label, band.x / scale, band.mean, band.half) for band in known]
    limit = comparison.budget.limit / scale if comparison.budget.axis == axis else None
    figure = plots.band_figure(scaled, label, metric.title, percent=metric.larger_is_better, budget=limit)
    caption = f"{metric.title[0].upper()}{metric.title[1:]} by {title}"
    return picture(f"{metric.key}-{axis}", caption, figure)


def _band(method: Method, key: str, axis: str) -> plots.Band | None:
    """The mean curve of a method over the stretch that all its seeds cover."""
    curves = []
    for run in method.runs.values():
        points = run.measured(key)
        if axis not in run.spent or not points.size:
            return None
        curves.append((run.spent[axis][points], run.values[key][points]))
    return _mean_of(method.name, curves)


def _mean_of(name: str, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> plots.Band | None:
    """The mean of curves (x, y), one a seed, over the stretch that all cover; None where there is no such."""
    left, right = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if left > right:
        return None
    first = curves[0][0]
    if all(np.array_equal(x, first) for x, _ in curves):
        at = first[np.unique(np.linspace(0, len(first) - 1, min(len(first), MAX_POINTS)).round().astype(int))]
    else:
        at = np.linspace(left, right, MAX_POINTS)
    heights = np.array([np.interp(at, x, y) for x, y in curves])
    known = [estimate(column.tolist()) for column in heights.T]
    return plots.Band(name, at, np.array([k.mean for k in known]), np.array([k.half for k in known]))


def seeds(comparison: Comparison) -> str:
    """Every run's result, and the differences of each pair."""
    rows = comparison.rows[: 2 * MAX_CURVES]
    known = [row.of("final") for row in rows]
    metric = comparison.metric
    figure = plots.seed_figure(
        [row.method.name for row in rows],
        [row.columns["final"] for row in rows],
        [(one.mean, one.half) for one in known],
        metric.title,
        percent=metric.larger_is_better,
    )
    caption = f"{metric.title[0].upper()}{metric.title[1:]} {comparison.budget.words}, every run"
    words = "A dot is a run; a grey line joins the runs of one seed; the bar below is the mean with its 95 % interval."
    inside = f'<p class="muted">{words}</p>{picture("seeds", caption, figure, wide=True)}'
    return section("Seed by seed", inside + _differences(comparison))


def _differences(comparison: Comparison) -> str:
    pairs = [pair for pair in comparison.pairs if pair.result is not None and pair.result.estimate.n > 1]
    pairs = sorted(pairs, key=lambda pair: not pair.is_decided)[:MAX_DIFFERENCES]
    if not pairs:
        return ""
    metric = comparison.metric
    finals = {row.method.name: row.columns["final"] for row in comparison.rows}
    scale = 100 if metric.larger_is_better else -1
    each = [
        [scale * (finals[pair.first.name][seed] - finals[pair.second.name][seed]) for seed in pair.seeds]
        for pair in pairs
    ]
    known = [tables.ahead_by(pair, metric) for pair in pairs]
    figure = plots.difference_figure(
        [f"{pair.first.name}\nover {pair.second.name}" for pair in pairs],
        each,
        [(one.mean, one.half) for one in known],
        [pair.is_decided for pair in pairs],
        f"ahead by ({'points of test accuracy' if metric.larger_is_better else metric.title})",
    )
    words = "A dot is one seed; the bar is the mean with its 95 % interval; green where the difference is decided."
    return f'<p class="muted">{words}</p>' + picture("differences", "Paired differences", figure, wide=True)


def fairness(comparison: Comparison) -> str:
    """How the last model does from client to client, in each of the metrics that clients.json has."""
    inside = ""
    for key in tables.of_model(comparison):
        header, body = tables.fairness(comparison, key)
        words = f"{tables.fairness_words(comparison, key)}; mean over seeds ± half of the 95 % interval."
        rows = f'<div class="card scroll">{table(header, body, "named")}</div>'
        save = download(f"clients-{key}.csv", csv_text(header, body), "This table as CSV")
        inside += f'<p class="muted">{escape(words)}</p>{rows}{save}'
    if not inside:
        return ""
    figures = "".join(_over_clients(comparison, key) for key in comparison.clients)
    inside += f'{_key(comparison.rows[:MAX_CURVES])}<div class="figures gap">{figures}</div>'
    return section("From client to client", inside)


def _over_clients(comparison: Comparison, key: str) -> str:
    """The distribution of this key of clients.json: its quantiles, worst first, a band a method."""
    metric, bands = Metric(key), []
    for row in comparison.rows[:MAX_CURVES]:
        curves = []
        for run in row.method.runs.values():
            worst_first = SHARES if metric.larger_is_better else 1 - SHARES
            curves.append((100 * SHARES, np.quantile(run.clients_at_end[key], worst_first)))
        bands.append(_mean_of(row.method.name, curves))
    label = "% of the clients, worst first"
    figure = plots.band_figure(bands, label, metric.title, percent=metric.is_share)
    own = ", each with a model of its own" if key.startswith(PERSONAL) else ""
    caption = f"{metric.title[0].upper()}{metric.title[1:]} from client to client{own}"
    return picture(f"clients-{key}", caption, figure)


def preconditioner(comparison: Comparison) -> str:
    """How D developed under the methods that have one."""
    rows, figures = comparison.rows[:MAX_CURVES], ""
    for key, (label, caption) in OF_D.items():
        bands = []
        for row in rows:
            runs = row.method.runs.values()
            known = [(run.spent["rounds"], run.of_d[key]) for run in runs if key in run.of_d]
            bands.append(_mean_of(row.method.name, known) if len(known) == len(runs) else None)
        if any(band is not None for band in bands):
            figure = plots.band_figure(bands, "round", label, percent=key == "d_floored")
            figures += picture(key, caption, figure)
    if not figures:
        return ""
    words = "The diagonal that scales the local steps, after its floor was applied; methods without one are left out."
    return section(
        "Preconditioner",
        f'<p class="muted">{words}</p>{_key(rows)}<div class="figures gap">{figures}</div>',
    )
