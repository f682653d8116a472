"""A comparison as one HTML page: verdicts, tables, curves, dots, and everything they rest on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import yaml

import fedscale_local
from fedscale_local import plots
from fedscale_local.reports import compare_tables as tables
from fedscale_local.reports import facts, tuning
from fedscale_local.reports.comparison import Comparison
from fedscale_local.reports.histories import History, Method, differences
from fedscale_local.reports.measures import Metric, Row
from fedscale_local.reports.parts import (
    csv_text,
    document,
    download,
    flat,
    fold,
    named,
    picture,
    section,
    table,
    tile,
)
from fedscale_local.reports.statistics import estimate

MAX_CURVES = len(plots.PAINT)  # methods that a picture tells apart
MAX_POINTS = 120  # of one mean curve
MAX_VERDICTS = 12
MAX_DIFFERENCES = 12
MAX_CONFIGS = 40
AXES = {
    "rounds": ("round", "rounds"),
    "bytes": ("{unit} sent, up and down", "bytes sent"),
    "steps": ("local steps of all clients", "local steps"),
    "seconds": ("seconds", "time"),
}
OF_D = {
    "d_condition": ("condition", "Condition: largest entry over smallest"),
    "d_change": ("relative change", "Change from round to round, relative to its size"),
    "d_floored": ("share of coordinates", "Coordinates held at the floor"),
}
SHARES = np.linspace(0, 1, 51)  # of the clients


def page(comparison: Comparison) -> str:
    """The whole page; the same runs give the same text."""
    methods = [row.method for row in comparison.rows]
    runs = [run for method in methods for run in method.runs.values()]
    sets = sorted({str(run.run.config.get("data", {}).get("name", "data")) for run in runs})
    title = f"{len(methods)} method{'' if len(methods) == 1 else 's'} on {', '.join(sets)}"
    sections = (
        _head(comparison, title, runs),
        _verdicts(comparison),
        _results(comparison),
        _curves(comparison),
        _seeds(comparison),
        _pairs(comparison),
        _fairness(comparison),
        _tuning(comparison),
        _preconditioner(comparison),
        _how(comparison),
        _configs(methods),
        _partition(methods),
        _runs(comparison, runs),
    )
    return document(title, fedscale_local.__version__, f"{len(runs)} run directories", sections)


def _head(comparison: Comparison, title: str, runs: Sequence[History]) -> str:
    seeds = {run.seed for run in runs}
    eyebrow = f"comparison · {len(runs)} runs · {len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
    best = comparison.rows[0]
    known, metric = best.of("final"), comparison.metric
    half = "" if math.isnan(known.half) else f"± {metric.amount(known.half, math.nan)}, "
    decided = sum(pair.is_decided for pair in comparison.pairs)
    tiles = [
        tile(f"Best mean {metric.title}", metric.text(known.mean), f"{half}{best.method.name}", main=True),
        tile("Pairs decided", f"{decided} of {len(comparison.pairs)}", comparison.budget.words),
        tile("Seeds", str(len(seeds)), f"{len(runs)} runs in all"),
    ]
    if comparison.noise is not None:
        s = metric.amount(comparison.noise[0], math.nan) if comparison.noise[0] else "0"
        unit = " points" if metric.larger_is_better else ""
        tiles.append(tile("Noise between seeds", f"{s}{unit}", "standard deviation of one run"))
    words = _description(runs)
    return f"""<header>
<div class="eyebrow"><b class="badge open">{escape(comparison.budget.words)}</b><span>{escape(eyebrow)}</span></div>
<h1>{escape(title)}</h1>
<p class="muted">{escape(words)}</p>
{"".join(f'<p class="note">{escape(note)}</p>' for note in comparison.notes)}
<div class="tiles">{"".join(tiles)}</div>
</header>
"""


def _description(runs: Sequence[History]) -> str:
    told = {f"{facts.data_words(run.run)}; {facts.clients_words(run.run)}." for run in runs}
    return told.pop() if len(told) == 1 else "The runs differ in their data or clients, as listed below."


def _verdicts(comparison: Comparison) -> str:
    if not comparison.pairs:
        return section(
            "What can be said", '<p class="card">There is one method only, so nothing to compare.</p>'
        )
    order = {"better": 0, "open": 1, "few": 2}
    pairs = sorted(comparison.pairs, key=lambda pair: order[tables.badge(pair)[0]])
    lines = [
        f'<li><b class="badge {kind}">{words}</b><span>{escape(pair.words)}</span></li>'
        for pair in pairs
        for kind, words in [tables.badge(pair)]
    ]
    more = len(lines) - MAX_VERDICTS
    inside = f'<div class="card"><ul class="verdicts">{"".join(lines[:MAX_VERDICTS])}</ul></div>'
    if more > 0:
        inside += f'<p class="muted">{more:,} more pairs are in the table below.</p>'
    return section("What can be said", f'{inside}<p class="muted">{escape(comparison.noise_words)}</p>')


def _results(comparison: Comparison) -> str:
    header, body = tables.results(comparison)
    words = f"Mean over seeds ± half of the 95 % interval, {comparison.budget.words}. "
    words += "The mean of a curve is the area under it, over its width."
    save = download("runs.csv", csv_text(*tables.per_run(comparison)), "Every run as CSV")
    inside = (
        f'<p class="muted">{escape(words)}</p><div class="card scroll">{table(header, body, "named")}</div>'
    )
    save += download("methods.csv", csv_text(header, body), "This table as CSV")
    found = section("Results", inside + save)
    header, body = tables.costs(comparison)
    if body:
        words = f"What it took to reach a {tables.target_words(comparison)}, over the seeds that reached it."
        rows = f'<div class="card scroll">{table(header, body, "named")}</div>'
        save = download("costs.csv", csv_text(header, body), "This table as CSV")
        found += section("Cost to a target", f'<p class="muted">{escape(words)}</p>{rows}{save}')
    return found


# ---------------------------------------------------------------- pictures


def _key(rows: Sequence[Row]) -> str:
    """Which line is which method, once for all pictures."""
    lines = ""
    for place, row in enumerate(rows):
        colour, dash = plots.PAINT[place]
        stroke = f'stroke="var(--{colour})" stroke-width="2.6" stroke-dasharray="{dash}"'
        lines += f'<span><svg viewBox="0 0 44 14" aria-hidden="true"><path d="M0 7H44" {stroke}/></svg>'
        lines += f"{escape(row.method.name)}</span>"
    return f'<div class="card key">{lines}</div>'


def _curves(comparison: Comparison) -> str:
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


def _curve(
    comparison: Comparison, rows: Sequence[Row], metric: Metric, axis: str, label: str, title: str
) -> str:
    bands = [_band(row.method, metric.key, axis) for row in rows]
    known = [band for band in bands if band is not None and np.isfinite(band.mean).any()]
    if len(known) < len(rows):
        return ""  # a picture without one of the methods would mislead
    scale = 1.0
    if axis == "bytes":
        scale, unit = plots.byte_unit(max(float(band.x[-1]) for band in known))
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


def _seeds(comparison: Comparison) -> str:
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


def _fairness(comparison: Comparison) -> str:
    """How the last model does from client to client."""
    header, body = tables.fairness(comparison)
    if not body:
        return ""
    words = f"{tables.fairness_words(comparison)}; mean over seeds ± half of the 95 % interval. The deviation is the "
    words += "standard deviation over clients, the root of the variance."
    inside = (
        f'<p class="muted">{escape(words)}</p><div class="card scroll">{table(header, body, "named")}</div>'
    )
    inside += download("clients.csv", csv_text(header, body), "This table as CSV")
    inside += _over_clients(comparison, comparison.clients, "clients", "from client to client")
    if comparison.personal:
        words = "from client to client, each with a model of its own"
        inside += _over_clients(comparison, comparison.personal, "own-models", words)
    return section("From client to client", inside)


def _over_clients(comparison: Comparison, key: str, name: str, words: str) -> str:
    """The picture of this key of clients.json: its quantiles, worst first, a band a method."""
    metric, bands = Metric(key), []
    for row in comparison.rows[:MAX_CURVES]:
        curves = []
        for run in row.method.runs.values():
            worst_first = SHARES if metric.larger_is_better else 1 - SHARES
            curves.append((100 * SHARES, np.quantile(run.clients_at_end[key], worst_first)))
        bands.append(_mean_of(row.method.name, curves))
    label = "% of the clients, worst first"
    figure = plots.band_figure(bands, label, metric.title, percent=metric.larger_is_better, width=11.0)
    caption = f"{metric.title[0].upper()}{metric.title[1:]} {words}"
    return picture(name, caption, figure, wide=True)


def _preconditioner(comparison: Comparison) -> str:
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
        "Preconditioner", f'<p class="muted">{words}</p>{_key(rows)}<div class="figures gap">{figures}</div>'
    )


# ---------------------------------------------------------------- what it rests on


def _pairs(comparison: Comparison) -> str:
    told = [pair for pair in comparison.pairs if pair.result is not None and pair.result.estimate.n > 1]
    if not told:
        return ""
    header, body = tables.pair_rows(comparison, told)
    more = f'<p class="muted">The first {tables.SHOWN_PAIRS} of {len(body):,}; the download has all.</p>'
    rows = f'<div class="card scroll">{table(header, body[: tables.SHOWN_PAIRS], "named two")}</div>'
    save = download("pairs.csv", csv_text(header, body), "Every pair as CSV")
    return section("Pair by pair", (more if len(body) > tables.SHOWN_PAIRS else "") + rows + save)


def _tuning(comparison: Comparison) -> str:
    """What was searched, with how many trials, and what was found."""
    if not comparison.tuned:
        return ""
    header, body = tuning.table(comparison.tuned)
    inside = f'<p class="muted">{escape(tuning.WORDS)}</p><div class="card scroll">{table(header, body, "named")}</div>'
    inside += download("trials.csv", csv_text(*tuning.every_trial(comparison.tuned)), "Every trial as CSV")
    return section("Tuning", inside)


def _how(comparison: Comparison) -> str:
    checks = "".join(f"<p>{escape(words)}</p>" for words in comparison.checks)
    return section("How this is decided", f'<div class="card"><p>{escape(tables.METHOD)}</p>{checks}</div>')


def _configs(methods: Sequence[Method]) -> str:
    configurations = [method.any_run.method for method in methods]
    keys = differences(configurations)
    shown = [[key, *(_cell(one, key) for one in configurations[:MAX_CURVES])] for key in keys]
    header = ["key", *(method.name for method in methods[:MAX_CURVES])]
    inside = f'<div class="card scroll">{table(header, shown, "words")}</div>' if len(methods) > 1 else ""
    every = [
        [method.name, *(_cell(one, key) for key in keys)]
        for method, one in zip(methods, configurations, strict=True)
    ]
    inside += download("differences.csv", csv_text(["method", *keys], every), "All differences as CSV")
    for method in methods[:MAX_CONFIGS]:
        config = {
            key: value for key, value in method.any_run.run.config.items() if key not in ("seed", "run_dir")
        }
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, default_flow_style=False)
        inside += fold(f"Configuration: {method.name}", f"<pre>{escape(text)}</pre>")
    if len(methods) > MAX_CONFIGS:
        inside += f"<p>The first {MAX_CONFIGS} of {len(methods)}; the others differ from them by the table above.</p>"
    return section("What differs", inside)


def _cell(configuration: Any, key: str) -> str:
    return str(configuration[key]) if key in configuration else "-"


def _partition(methods: Sequence[Method]) -> str:
    """The partition of the first run, and how many others there are."""
    by_digest: dict[str, History] = {}
    for run in (run for method in methods for run in method.runs.values()):
        by_digest.setdefault(run.holders, run)
    known = [run for digest, run in by_digest.items() if digest]
    if not known:
        return ""
    first = known[0].run
    assert first.partition is not None
    names = first.partition.get("classes") or ()
    figure = plots.partition_figure(first.partition.get("counts"), names, sizes=first.partition.get("sizes"))
    words = facts.partition_words(first)
    if len(known) > 1:
        words += (
            f" Shown is the partition of seed {known[0].seed}, one of {len(known)}: each seed draws its own."
        )
    inside = f'<p class="muted">{escape(words)}</p>'
    return section(
        "Who holds what", inside + picture("partition", "Training examples by client", figure, wide=True)
    )


def _told(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest without sums that "How this is decided" speaks of; of its stops only the changes accepted then."""
    told = {key: value for key, value in manifest.items() if key not in ("common_random_numbers", "resumed")}
    resumed = manifest.get("resumed")
    notes = [n for entry in resumed for n in entry.get("notes", ())] if isinstance(resumed, list) else []
    changes = [note for note in notes if str(note).startswith("a change is accepted")]
    return told | ({"resumed": "; ".join(changes)} if changes else {})


def _runs(comparison: Comparison, runs: Sequence[History]) -> str:
    manifests = [dict(flat(_told(run.run.manifest))) for run in runs]
    keys = list(dict.fromkeys(key for manifest in manifests for key in manifest))
    same = [key for key in keys if len({manifest.get(key) for manifest in manifests}) == 1]
    other = [key for key in keys if key not in same and key not in ("seed", "started", "finished")]
    of = {id(run): row for row in comparison.rows for run in row.method.runs.values()}
    rows = []
    for run, manifest in zip(runs, manifests, strict=True):
        final = comparison.metric.text(of[id(run)].columns["final"][run.seed])
        told = [manifest.get(key, "-") for key in other]
        started = manifest.get("started", "-")[:19].replace("T", " ")
        rows.append([of[id(run)].method.name, run.run.path, run.seed, final, started, *told])
    header = ["method", "run", "seed", comparison.metric.title, "started", *other]
    listed = f'<div class="scroll">{table(header, rows, "named two")}</div>'
    common = named((key, manifests[0][key]) for key in same)
    inside = fold(f"Every run ({len(runs)}), and where their manifests differ", listed)
    return section(
        "Runs", inside + fold("What all manifests have in common", f'<div class="scroll">{common}</div>')
    )
