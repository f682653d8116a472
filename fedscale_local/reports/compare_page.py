"""A comparison as one HTML page: what can be said, tables, pictures (compare_pictures), and what they rest on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import fedscale_local
from fedscale_local.reports import compare_basis as basis
from fedscale_local.reports import compare_pictures as pictures
from fedscale_local.reports import compare_settings as hyper
from fedscale_local.reports import compare_tables as tables
from fedscale_local.reports import facts
from fedscale_local.reports.comparison import Comparison, leads
from fedscale_local.reports.histories import History, differences
from fedscale_local.reports.parts import csv_text, document, download, section, table, tile

MAX_VERDICTS = 12


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
        pictures.curves(comparison),
        pictures.seeds(comparison),
        _pairs(comparison),
        pictures.fairness(comparison),
        hyper.swept(comparison),
        hyper.tuned(comparison),
        pictures.preconditioner(comparison),
        _how(comparison),
        basis.configs(methods),
        basis.partition(methods),
        basis.runs(comparison, runs),
    )
    return document(title, fedscale_local.__version__, f"{len(runs)} run directories", sections)


def _head(comparison: Comparison, title: str, runs: Sequence[History]) -> str:
    seeds = {run.seed for run in runs}
    eyebrow = f"comparison · {len(runs)} runs · {len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
    best = comparison.rows[0]
    known, metric = best.of("final"), comparison.metric
    half = "" if math.isnan(known.half) else f"± {metric.amount(known.half, math.nan)}, "
    decided = sum(pair.is_decided for pair in comparison.pairs)
    is_best = leads(comparison)
    name = f"Best mean {metric.title}" if is_best else f"Leading mean {metric.title}, not decided"
    if len(comparison.rows) == 1:
        name = f"Mean {metric.title}"
    tiles = [
        tile(name, metric.text(known.mean), f"{half}{best.method.name}", main=is_best),
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
    """Data and clients, or the keys of these in which the methods differ."""
    parts = ("data.", "partition.", "num_clients", "clients_per_round")
    told = [{key: value for key, value in run.method.items() if key.startswith(parts)} for run in runs]
    apart = differences(told)
    if apart:
        return f"The runs differ in {', '.join(apart)}, as listed below."
    return f"{facts.data_words([run.run for run in runs])}; {facts.clients_words([run.run for run in runs])}."


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
        words = f"What it took to reach a {tables.target_words(comparison)}, over the seeds that reached it. "
        words += tables.time_words(comparison)
        rows = f'<div class="card scroll">{table(header, body, "named")}</div>'
        save = download("costs.csv", csv_text(header, body), "This table as CSV")
        found += section("Cost to a target", f'<p class="muted">{escape(words)}</p>{rows}{save}')
    return found


def _pairs(comparison: Comparison) -> str:
    told = [pair for pair in comparison.pairs if pair.result is not None and pair.result.estimate.n > 1]
    if not told:
        return ""
    header, body = tables.pair_rows(comparison, told)
    more = f'<p class="muted">The first {tables.SHOWN_PAIRS} of {len(body):,}; the download has all.</p>'
    rows = f'<div class="card scroll">{table(header, body[: tables.SHOWN_PAIRS], "named two")}</div>'
    save = download("pairs.csv", csv_text(header, body), "Every pair as CSV")
    return section("Pair by pair", (more if len(body) > tables.SHOWN_PAIRS else "") + rows + save)


def _how(comparison: Comparison) -> str:
    checks = "".join(f"<p>{escape(words)}</p>" for words in comparison.checks)
    return section("How this is decided", f'<div class="card"><p>{escape(tables.METHOD)}</p>{checks}</div>')
