"""Studies: methods on problems under seeds, tuned with equal trials, compared on one page for each problem.

What a study is stands in conf/experiment/, in the section `study` of a file for each form; every list of overrides
there is in Hydra's grammar. Tuning is that of `fedscale-local tune`, runs are cells of sweeps, pages those of
`fedscale-local compare`.

A study is a folder: images.npz, tuning-*/ and sweeps (each with its report.html), a page for each problem, index.html
with the table and the way to all of these, table.md and results.json. It can be cut off at any time: the same command
goes on, and what is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError

import fedscale_local
from fedscale_local import compose, compose_tuning, config_messages, data, sweep, tune
from fedscale_local.config_base import Count, NonNegative, Section
from fedscale_local.reports import budget, compare_page, comparison, histories, parts, tuning
from fedscale_local.reports.statistics import estimate
from fedscale_local.reports.tuning import Tuned
from fedscale_local.run_dir import SWEEP

SOURCES = ("cifar10", "fashion_mnist_12k")
FORMS = ("small", "medium", "full")
Records = list[dict[str, Any]]
"""The lines of a run's rounds.jsonl."""


# ---------------------------------------------------------------- what a study is


class Images(Section):
    """How much of a set is used: images of each class, for training and for testing, and shrunk by which factor."""

    per_class: Count
    test_per_class: Count
    shrink: Count


class Part(Section):
    """A name, and the overrides that it stands for; the first one tells it from others of its kind."""

    name: str
    overrides: list[str]


class Method(Part):
    """space: what is tuned, as `fedscale-local tune` reads it."""

    space: list[str] = Field(default_factory=list)


class Tuning(Section):
    """As many trials for each method and each kind of work, under these overrides."""

    trials: Count
    overrides: list[str]


class Study(Section):
    """Every method does every kind of work on every problem under every seed."""

    images: Images
    seeds: list[NonNegative]
    tuning: Tuning | None
    problems: list[Part]
    work: list[Part]
    methods: list[Method]

    @property
    def num_runs(self) -> int:
        """Trials and all."""
        each = len(self.methods) * len(self.work)
        trials = self.tuning.trials if self.tuning else 0
        return each * (trials + len(self.problems) * len(self.seeds))


class _Container(Section):
    study: Study


def read(experiment: str) -> Study:
    """The study of this file of conf/experiment/; raises ConfigError."""
    container = {"study": compose.study([f"experiment={experiment}"])}
    try:
        return _Container.model_validate(container).study
    except ValidationError as error:
        raise config_messages.refusal(_Container, container, error) from None


# ---------------------------------------------------------------- images


def images(out: Path, source: str, size: Images) -> str:
    """Write out/images.npz, for data=arrays, unless it is there; what is to be said beside every accuracy on it.

    The first images of each class, in the order of the set, and means over shrink x shrink pixels.
    """
    size_words = f"{size.per_class} + {size.test_per_class} images a class of {source}"
    path, told = out / "images.npz", out / "images.txt"
    wanted = size_words + (f", shrunk {size.shrink} times" if size.shrink > 1 else "")
    if told.exists() and told.read_text().startswith(wanted):
        return told.read_text()
    dataset = data.load(compose.config([f"data={source}"]).data, 0)
    arrays: dict[str, np.ndarray] = {}
    for ending, x, y, count in (
        ("", dataset.x, dataset.y, size.per_class),
        ("_test", dataset.test_x, dataset.test_y, size.test_per_class),
    ):
        rows = torch.cat([torch.nonzero(y == c).flatten()[:count] for c in range(dataset.num_classes)])
        rows = rows.sort().values
        small = F.avg_pool2d(x[rows].float(), size.shrink).round().to(torch.uint8)
        arrays |= {f"x{ending}": small.numpy(), f"y{ending}": y[rows].numpy()}
    out.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    told.write_text(f"{wanted}; {dataset.note}" if dataset.note else wanted)
    return told.read_text()


# ---------------------------------------------------------------- runs


def _launcher(at_once: int) -> list[str]:
    return [] if at_once == 1 else ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={at_once}"]


def runs(folder: Path, shared: Sequence[str], jobs: Sequence[Sequence[str]], at_once: int) -> list[Records]:
    """The records of each of these runs, cells of one sweep. Raises SystemExit if one has failed."""
    planned = compose.Sweep(_launcher(at_once), [[*shared, *job] for job in jobs], str(folder))
    if status := sweep.run(planned):
        raise SystemExit(status)
    rows = json.loads((folder / SWEEP).read_text())["cells"]
    places = {row["overrides"]: folder / row["run_dir"] for row in rows}
    return [records(places[" ".join(own)]) for own in planned.swept]


def records(run_dir: Path) -> Records:
    """The lines of a run's rounds.jsonl."""
    return [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]


def tuned(folder: Path, shared: Sequence[str], study: Study, work: Part, at_once: int) -> dict[str, Tuned]:
    """For each method, by its name, what `fedscale-local tune` finds. Raises SystemExit if a trial has failed.

    Best is the lowest test loss after the last round. Methods with the same space are tuned side by side.
    """
    assert study.tuning is not None
    asked = [*shared, *work.overrides, *study.tuning.overrides, *_launcher(at_once)]
    asked += [f"tune.trials={study.tuning.trials}", "tune.prune=false", f"hydra.sweep.dir={folder}"]
    apart = {method.name: [*method.overrides, *work.overrides[:1]] for method in study.methods}
    for space, group in groupby(study.methods, key=lambda method: method.space):
        alike = list(group)
        plans = [compose_tuning.tuning([*asked, *method.overrides, *space]) for method in alike]
        planned = plans[0]._replace(
            methods=[plan.methods[0] for plan in plans], apart=[apart[method.name] for method in alike]
        )
        if status := tune.run(planned):
            raise SystemExit(status)
    found = {one.name: one for one in tuning.read(folder)}
    return {name: found[" ".join(own)] for name, own in apart.items()}


def chosen(one: Tuned) -> list[str]:
    """The best values as overrides; the first that were tried where all trials diverged."""
    values = one.values or one.trials[0]["values"]
    return [f"{key}={value}" for key, value in values.items()]


def on_edge(one: Tuned) -> bool:
    """Does a best value sit on the edge of its space?"""
    return any(one.values and tuning.edge(space, one.values[space["key"]]) for space in one.space)


Results = list[dict[str, Any]]
"""A row for each run: problem, work, method, seed, what was tuned, and how it did."""


class Found(NamedTuple):
    """All that a study found. note: of the images; tuned: work -> method -> its tuning."""

    note: str
    results: Results
    tuned: dict[str, dict[str, Tuned]]


def run(out: Path, experiment: str, study: Study, source: str, at_once: int) -> Found:
    """Every run, tuning first, and a page for each problem."""
    note = images(out, source, study.images)
    setting = [f"experiment={experiment}", "study=null"]
    model = compose.config(setting).model.name
    shared = [*setting, "data=arrays", f"data.path={out / 'images.npz'}", f"model={model}"]
    by_work: dict[str, dict[str, Tuned]] = {}
    results: Results = []
    for problem in study.problems:
        folders = []
        for work in study.work:
            if study.tuning is not None and work.name not in by_work:
                by_work[work.name] = tuned(out / f"tuning-{_file(work)}", shared, study, work, at_once)
            known = by_work.get(work.name, {})
            values = {m.name: chosen(known[m.name]) if m.name in known else [] for m in study.methods}
            jobs = [[*m.overrides, *values[m.name], f"seed={s}"] for m in study.methods for s in study.seeds]
            folders.append(out / f"{_file(problem)}-{_file(work)}")
            done = iter(runs(folders[-1], [*shared, *work.overrides, *problem.overrides], jobs, at_once))
            results += [
                {
                    "problem": problem.name,
                    "work": work.name,
                    "method": method.name,
                    "seed": seed,
                    "chosen": " ".join(values[method.name]),
                    "on_edge": method.name in known and on_edge(known[method.name]),
                    **_reached(next(done)),
                }
                for method in study.methods
                for seed in study.seeds
            ]
        every = [one for known in by_work.values() for one in known.values()]
        (out / f"{_file(problem)}.html").write_text(page(folders, every), encoding="utf-8")
    return Found(note, results, by_work)


def _reached(lines: Records) -> dict[str, Any]:
    """After the last round, and the best accuracy of all rounds that were evaluated."""
    best = max((line["test_accuracy"] for line in lines if line["test_accuracy"] is not None), default=None)
    last = lines[-1]
    return {"test_accuracy": last["test_accuracy"], "best_accuracy": best, "test_loss": last["test_loss"]}


def _file(part: Part) -> str:
    """
    >>> _file(Part(name="#C = 2", overrides=[])), _file(Part(name="share 0.3", overrides=[]))
    ('C-2', 'share-0.3')
    """
    return re.sub(r"[^\w.]+", "-", part.name).strip("-")


# ---------------------------------------------------------------- pages and tables


def page(folders: Sequence[Path], tuned: Sequence[Tuned]) -> str:
    """The comparison of all runs in these folders, as `fedscale-local compare` writes it, with how they were tuned.

    At as many rounds as all have, or at as many local steps where work is divided into rounds in several ways.
    """
    found, left_out = histories.gather(folders)
    for history in found:
        history.spent.pop("seconds", None)  # runs shared the machine
    same = len({history.rounds[-1] for history in found}) == 1
    least = None if same else float(min(history.spent["steps"][-1] for history in found))
    chosen = None if least is None else budget.Budget("steps", least)
    known = [*tuning.remarks(tuned), *left_out]
    return compare_page.page(comparison.compare(histories.methods(found), chosen, None, known, tuned))


def index(title: str, words: Sequence[str], tables: Mapping[str, Table], study: Study, found: Found) -> str:
    """The page of the whole study: its tables, what is to be known of the tuning, the way to every other page."""

    def link(place: str, words: str) -> str:
        return f'<li><a href="{escape(place)}">{escape(words)}</a></li>'

    body = "".join(f'<p class="muted">{escape(line)}</p>' for line in words)
    for name, (head, rows) in tables.items():
        body += (f"<h3>{escape(name)}</h3>" if name else "") + '<div class="card scroll">'
        body += parts.table(head, rows, "named") + "</div>"
    sections = [f"<header>\n<h1>{escape(title)}</h1>\n</header>\n", parts.section("Results", body)]
    pages = [
        link(f"{_file(problem)}.html", f"All methods and work on {problem.name}")
        for problem in study.problems
    ]
    sections.append(parts.section("Comparisons", f'<div class="card"><ul>{"".join(pages)}</ul></div>'))
    if found.tuned:
        tuned = [one for known in found.tuned.values() for one in known.values()]
        told = "".join(f'<p class="note">{escape(words)}</p>' for words in tuning.remarks(tuned))
        told += f'<div class="card scroll">{parts.table(*tuning.table(tuned), "named")}</div>'
        names = [work for work in study.work if work.name in found.tuned]
        pages = [link(f"tuning-{_file(work)}/report.html", f"The trials at {work.name}") for work in names]
        sections.append(parts.section("Tuning", f'{told}<div class="card"><ul>{"".join(pages)}</ul></div>'))
    pages = [
        link(f"{_file(problem)}-{_file(work)}/report.html", f"{problem.name}, {work.name}")
        for problem in study.problems
        for work in study.work
    ]
    sections.append(parts.section("Sweeps", f'<div class="card"><ul>{"".join(pages)}</ul></div>'))
    return parts.document(title, fedscale_local.__version__, f"{len(found.results)} runs", sections)


def spread(values: Sequence[float | None]) -> str:
    """Mean and half of its 95 % interval in percent; the mean alone of one seed; how many diverged."""
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values):
        return f"diverged in {len(values) - len(known)} of {len(values)}"
    found = estimate(known)
    return f"{found.mean:.1f}" if found.n == 1 else f"{found.mean:.1f} ± {found.half:.1f}"


def cell(results: Results, key: str, **where: str) -> str:
    """The spread over seeds of this key of the results with these names."""
    return spread([row[key] for row in results if where.items() <= row.items()])


Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


Tables = Callable[[Study, Found], tuple[list[str], dict[str, Table]]]
"""What a study says of its results: sentences, and tables by their names."""


def write(out: Path, title: str, study: Study, found: Found, tables: Tables) -> None:
    """index.html, table.md and results.json, and the tables on the terminal."""
    words, tabled = tables(study, found)
    text = "".join(f"{line}\n" for line in words)
    for name, (head, rows) in tabled.items():
        text += f"\n{name}\n\n" if name else "\n"
        text += markdown(head, rows)
    (out / "index.html").write_text(index(title, words, tabled, study, found), encoding="utf-8")
    (out / "table.md").write_text(text)
    (out / "results.json").write_text(json.dumps(found.results, indent=1) + "\n")
    print(text, end="")
    print(f"{'study':<8}{out / 'index.html'}")


def main(doc: str | None, name: str, tables: Tables) -> None:
    """A study's command line: in which form, on which images, where to."""
    title = (doc or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--out", type=Path, required=True, help="folder for images, sweeps, pages and tables")
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="full",
        help=f"the file conf/experiment/{name}_FORM.yaml (default: full)",
    )
    parser.add_argument(
        "--problem", action="append", metavar="NAME", help="only this one, and those of more --problem"
    )
    parser.add_argument("--data", choices=SOURCES, default="cifar10", help="which images")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side")
    arguments = parser.parse_args()
    experiment, out = f"{name}_{arguments.form}", arguments.out.resolve()
    study = read(experiment)
    if arguments.problem:
        names = [problem.name for problem in study.problems]
        if unknown := set(arguments.problem) - set(names):
            parser.error(f"--problem={min(unknown)}: expected one of {', '.join(names)}")
        asked = [problem for problem in study.problems if problem.name in arguments.problem]
        study = study.model_copy(update={"problems": asked})
    print(f"{'study':<8}{study.num_runs} runs")
    found = run(out, experiment, study, arguments.data, arguments.at_once)
    write(out, title, study, found, tables)
