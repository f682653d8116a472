"""One run as one HTML page: text, tables and inline pictures, nothing from the network, no script."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import yaml
from matplotlib.figure import Figure

from fedscale_local import plots
from fedscale_local.reports import facts, quantities
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
from fedscale_local.run_dir import Run

SHOWN_ROUNDS = 1000  # rows of the table; the download has all
SHOWN_FAILURES = 100
D_WORDS = "How the diagonal that scales the local steps developed, after its floor was applied."
DRIFT_WORDS = "How far the clients parted in each round, and how long their steps were."
PART_COLOURS = {
    "clients": "blue",
    "evaluate": "green",
    "aggregate": "purple",
    "configure": "orange",
    "other": "muted",
}


def page(run: Run) -> str:
    """The whole report of one run; the same run gives the same text."""
    title = f"{facts.method_name(run)} on {run.config.get('data', {}).get('name', 'data')}"
    sections = (
        _head(run, title),
        _curves(run),
        _privacy(run),
        _diagnostics("Preconditioner", D_WORDS, "d", plots.preconditioner_figures(run.rounds)),
        _diagnostics("Drift", DRIFT_WORDS, "drift", plots.drift_figures(run.rounds)),
        _partition(run),
        _time(run),
        _failures(run),
        _rounds(run),
        _config(run),
        _manifest(run),
    )
    version = str(run.manifest.get("fedscale_local", ""))
    return document(title, version, run.path.name, sections)


def _head(run: Run, title: str) -> str:
    numbers = facts.summary(run)
    status = numbers.status.split(":")[0]
    kind = status if status in ("done", "running", "interrupted", "failed") else "running"
    of = f" of {numbers.planned_rounds}" if numbers.planned_rounds else ""
    started = str(run.manifest.get("started") or "")[:16].replace("T", " ")
    facts_line = [
        f"{numbers.num_rounds}{of} rounds",
        facts.engine_words(run),
        f"seed {run.manifest.get('seed', '?')}",
    ]
    eyebrow = " · ".join(filter(None, [*facts_line, started]))
    return f"""<header>
<div class="eyebrow"><b class="badge {kind}">{escape(status)}</b><span>{escape(eyebrow)}</span></div>
<h1>{escape(title)}</h1>
<p class="lead">{escape(facts.method_words(run))}</p>
<p class="muted">{escape(facts.data_words([run]))}; {escape(facts.clients_words([run]))}.</p>
{"".join(f'<p class="note">{escape(str(note))}</p>' for note in facts.notes(run))}
<div class="tiles">{"".join(_tiles(run, numbers))}</div>
</header>
"""


def _tiles(run: Run, numbers: facts.Summary) -> Iterable[str]:
    accuracy, loss, percent = numbers.test_accuracy, numbers.test_loss, quantities.percent_text
    if accuracy is not None:
        below = facts.measured_words(run, accuracy, numbers.best_accuracy, percent)
        yield tile("Test accuracy", percent(accuracy[0]), below, main=True)
    if loss is not None:
        below = facts.measured_words(run, loss, numbers.best_loss, quantities.loss_text)
        yield tile("Test loss", quantities.loss_text(loss[0]), below, main=accuracy is None)
    if numbers.train_loss is not None:
        value, when = numbers.train_loss
        yield tile("Training loss", quantities.loss_text(value), f"round {when}, clients' mean")
    if facts.privacy_words(run):
        about = run.manifest["privacy"]
        below = f"{about.get('kind')}, at delta {about.get('delta')}"
        yield tile("Epsilon", quantities.epsilon_text(run.rounds[-1].get("epsilon")), below)
    both = f"{quantities.bytes_text(numbers.bytes_up)} up, {quantities.bytes_text(numbers.bytes_down)} down"
    yield tile("Sent", quantities.bytes_text(numbers.bytes_up + numbers.bytes_down), both)
    if numbers.seconds is not None:
        pace = f"{numbers.num_rounds / numbers.seconds:.3g} rounds a second" if numbers.seconds > 0 else ""
        yield tile("Time", quantities.seconds_text(numbers.seconds), pace)
    if numbers.num_failures:
        yield tile("Failed replies", f"{numbers.num_failures:,}", "left out, listed below")


def _curves(run: Run) -> str:
    figures = [
        picture("accuracy-rounds", "Accuracy by round", plots.accuracy_figure(run.rounds)),
        picture("loss-rounds", "Loss by round", plots.loss_figure(run.rounds)),
        picture("accuracy-bytes", "Accuracy by bytes sent", plots.accuracy_figure(run.rounds, "bytes")),
        picture("loss-bytes", "Loss by bytes sent", plots.loss_figure(run.rounds, "bytes")),
    ]
    return section("Progress", f'<div class="figures">{"".join(figures)}</div>') if any(figures) else ""


def _privacy(run: Run) -> str:
    words = facts.privacy_words(run)
    return _diagnostics("Privacy", f"{escape(words)}.", "privacy", plots.privacy_figures(run.rounds))


def _diagnostics(title: str, words: str, name: str, found: Sequence[tuple[str, Figure]]) -> str:
    """A section of small figures, (caption, figure) each; nothing where there are none."""
    figures = "".join(picture(f"{name}-{i}", caption, figure) for i, (caption, figure) in enumerate(found))
    inside = f'<p class="muted">{words}</p><div class="figures">{figures}</div>'
    return section(title, inside) if found else ""


def _partition(run: Run) -> str:
    if run.partition is None:
        return ""
    names = run.partition.get("classes") or ()
    figure = plots.partition_figure(run.partition.get("counts"), names, sizes=run.partition.get("sizes"))
    words = f'<p class="muted">{escape(facts.partition_words(run))}</p>'
    return section(
        "Who holds what", words + picture("partition", "Training examples by client", figure, wide=True)
    )


def _time(run: Run) -> str:
    parts = facts.seconds_of_parts(run)
    total = sum(parts.values())
    if not total:
        return ""
    shares = {part: parts[part] / total for part in PART_COLOURS if parts[part] >= 0.002 * total}
    bar, key = "", ""
    for part, share in shares.items():
        paint = f"background:var(--{PART_COLOURS[part]})"
        bar += f'<i style="flex:{100 * share:.4g};{paint}"></i>'
        key += (
            f'<span><i style="{paint}"></i>{part} {quantities.seconds_text(parts[part])} ({share:.0%})</span>'
        )
    inside = f'<div class="card"><div class="bar">{bar}</div><div class="key">{key}</div></div>'
    return section("Where the time went", inside)


def _failures(run: Run) -> str:
    counts = facts.failure_counts(run)
    if not counts:
        return ""
    each = [
        (r["round"], f.get("client"), f.get("reason")) for r in run.rounds for f in r.get("failures") or []
    ]
    rows = [
        (when, "-" if client is None else client, reason) for when, client, reason in each[:SHOWN_FAILURES]
    ]
    more = f" The list below shows the first {SHOWN_FAILURES}." if len(each) > SHOWN_FAILURES else ""
    words = f'<p class="muted">A failed reply was left out of its round, the run went on.{more}</p>'
    reasons = table(("times", "reason"), [(n, reason) for reason, n in counts[:20]], "words")
    listed = fold(f"Round by round ({len(each):,})", table(("round", "client", "reason"), rows, "words"))
    return section("Failures", f'{words}<div class="card scroll">{reasons}</div>{listed}')


def _rounds(run: Run) -> str:
    if not run.rounds:
        return ""
    text = rounds_csv(run)
    link = download(f"{run.path.name}-rounds.csv", text)
    header, *rows = list(csv.reader(io.StringIO(text)))
    kept = [i for i, name in enumerate(header) if name not in ("clients", "failures")]
    shown = [[_cell(row[i]) for i in kept] for row in rows[-SHOWN_ROUNDS:]]
    words = (
        f"<p>The last {SHOWN_ROUNDS} of {len(rows):,}; the download has all.</p>"
        if len(rows) > SHOWN_ROUNDS
        else ""
    )
    cells = table([header[i].replace("_", " ") for i in kept], shown)
    return section(
        "Records", fold(f"All rounds ({len(rows):,})", f'{link}{words}<div class="scroll">{cells}</div>')
    )


def _cell(text: str) -> str:
    """A number of the table, short enough to compare by eye."""
    if text.lstrip("-").isdigit():
        return f"{int(text):,}"
    try:
        return f"{float(text):.5g}"
    except ValueError:
        return text


def rounds_csv(run: Run) -> str:
    """Every round as CSV: what was recorded, and the seconds it took; empty where there is no value.

    Sampled clients are joined by spaces; a failure reads "client 3: reason". No cell begins like a formula.
    """
    seconds = {record.get("round"): record.get("round_seconds") for record in run.timing}
    keys = list(dict.fromkeys(key for record in run.rounds for key in record if _is_column(key)))
    first = [
        k
        for k in ("round", "clients", "train_loss", "test_loss", "test_accuracy", "bytes_up", "bytes_down")
        if k in keys
    ]
    keys = [*first, *(key for key in keys if key not in first)]
    cells: list[list[Any]] = []
    for record in run.rounds:
        clients, failures = record.get("clients") or [], record.get("failures") or []
        values = {
            **record,
            "clients": " ".join(map(str, clients)),
            "failures": "; ".join(map(_failure, failures)),
        }
        tail = [len(clients), len(failures), seconds.get(record["round"])]
        cells.append([values.get(key) for key in keys] + tail)
    return csv_text([*keys, "num_clients", "num_failures", "round_seconds"], cells)


def _is_column(key: str) -> bool:
    return bool(key) and (key[0].isalnum() or key[0] == "_")


def _failure(failure: dict[str, Any]) -> str:
    client = failure.get("client")
    return f"client {'unknown' if client is None else client}: {failure.get('reason', 'unknown')}"


def _config(run: Run) -> str:
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return fold("Configuration", f"<pre>{escape(text)}</pre>")


def _manifest(run: Run) -> str:
    rows = [(key, value) for key, value in flat(run.manifest)]
    return fold("Manifest: versions, hardware, engine", f'<div class="scroll">{named(rows)}</div>')
