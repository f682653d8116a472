"""What a comparison rests on: configurations and their differences, who held what, every run and its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import yaml

from fedscale_local import plots
from fedscale_local.reports import facts
from fedscale_local.reports.comparison import Comparison
from fedscale_local.reports.histories import History, Method, differences
from fedscale_local.reports.parts import csv_text, download, flat, fold, named, picture, section, table

MAX_COLUMNS = 8  # methods beside each other in the table of differences
MAX_CONFIGS = 40


def configs(methods: Sequence[Method]) -> str:
    configurations = [method.any_run.method for method in methods]
    keys = differences(configurations)
    shown = [[key, *(_cell(one, key) for one in configurations[:MAX_COLUMNS])] for key in keys]
    header = ["key", *(method.name for method in methods[:MAX_COLUMNS])]
    inside = f'<div class="card scroll">{table(header, shown, "words")}</div>' if len(methods) > 1 else ""
    every = [
        [method.name, *(_cell(one, key) for key in keys)]
        for method, one in zip(methods, configurations, strict=True)
    ]
    inside += download("differences.csv", csv_text(["method", *keys], every), "All differences as CSV")
    free = [key for method in methods for key in differences([run.free for run in method.runs.values()])]
    if free:
        keys_told = ", ".join(dict.fromkeys(free))
        inside += (
            f"<p>Runs of one method differ in what decides nothing of a result: {escape(keys_told)}.</p>"
        )
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


def partition(methods: Sequence[Method]) -> str:
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


def runs(comparison: Comparison, runs: Sequence[History]) -> str:
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
    every = [
        [of[id(run)].method.name, str(run.run.path), *(manifest.get(key) for key in keys)]
        for run, manifest in zip(runs, manifests, strict=True)
    ]
    save = download("manifests.csv", csv_text(["method", "run", *keys], every), "Every manifest as CSV")
    common = named((key, manifests[0][key]) for key in same)
    inside = fold(f"Every run ({len(runs)}), and where their manifests differ", listed)
    inside += fold("What all manifests have in common", f'<div class="scroll">{common}</div>')
    return section("Runs", inside + save)
