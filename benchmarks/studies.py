"""What the studies share: images at a size for two cores, runs as cells of a sweep, equal tuning trials, tables.

A study is a folder: images.npz, sweeps in it (each with its report.html), table.md and results.json. It can be cut off
at any time: the same command goes on, and what is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from fedscale_local import compose, data, sweep
from fedscale_local.reports.statistics import estimate
from fedscale_local.run_dir import SWEEP

SOURCES = ("cifar10", "fashion_mnist_12k")
Record = dict[str, Any]
"""The last line of a run's rounds.jsonl."""


class Images(NamedTuple):
    """How much of a set is used: images of each class, for training and for testing, and shrunk by which factor."""

    per_class: int
    test_per_class: int
    shrink: int


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
    parts: dict[str, np.ndarray] = {}
    for ending, x, y, count in (
        ("", dataset.x, dataset.y, size.per_class),
        ("_test", dataset.test_x, dataset.test_y, size.test_per_class),
    ):
        rows = torch.cat([torch.nonzero(y == c).flatten()[:count] for c in range(dataset.num_classes)])
        rows = rows.sort().values
        small = F.avg_pool2d(x[rows].float(), size.shrink).round().to(torch.uint8)
        parts |= {f"x{ending}": small.numpy(), f"y{ending}": y[rows].numpy()}
    out.mkdir(parents=True, exist_ok=True)
    np.savez(path, **parts)
    told.write_text(f"{wanted}; {dataset.note}" if dataset.note else wanted)
    return told.read_text()


def runs(folder: Path, shared: Sequence[str], jobs: Sequence[Sequence[str]], at_once: int) -> list[Record]:
    """The last record of each of these runs, cells of one sweep. Raises SystemExit if one has failed."""
    launcher = [] if at_once == 1 else ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={at_once}"]
    planned = compose.Sweep(launcher, [[*shared, *job] for job in jobs], str(folder))
    if status := sweep.run(planned):
        raise SystemExit(status)
    rows = json.loads((folder / SWEEP).read_text())["cells"]
    places = {row["overrides"]: folder / row["run_dir"] for row in rows}
    return [last(places[" ".join(own)]) for own in planned.swept]


def last(run_dir: Path) -> Record:
    """The last record of a run."""
    record: Record = json.loads((run_dir / "rounds.jsonl").read_text().splitlines()[-1])
    return record


def best(trials: Mapping[str, Mapping[str, object]]) -> str:
    """The trial, by its name, that ended with the lowest test loss; one that diverged only where all did."""
    known = {name: float(str(t["test_loss"])) for name, t in trials.items() if t["test_loss"] is not None}
    return min(known, key=known.__getitem__) if known else next(iter(trials))


def tuned(
    folder: Path,
    shared: Sequence[str],
    methods: Mapping[str, Sequence[str]],
    tried: Mapping[str, Sequence[Sequence[str]]],
    at_once: int,
) -> dict[str, list[str]]:
    """For each method the overrides that do best of those that are tried for it; equally many for all.

    Best is the lowest test loss after the last round; seeds of the trials are in `shared`.
    """
    assert len({len(values) for values in tried.values()}) == 1, "equally many trials for all"
    trials = [(name, list(values)) for name in methods for values in tried[name]]
    records = runs(folder, shared, [[*methods[name], *values] for name, values in trials], at_once)
    found: dict[str, list[str]] = {}
    for name in methods:
        mine = {
            " ".join(values): record
            for (of, values), record in zip(trials, records, strict=True)
            if of == name
        }
        found[name] = best(mine).split()
    return found


def spread(values: Sequence[float | None]) -> str:
    """Mean and half of its 95 % interval in percent; the mean alone of one seed; how many diverged."""
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values):
        return f"diverged in {len(values) - len(known)} of {len(values)}"
    found = estimate(known)
    return f"{found.mean:.1f}" if found.n == 1 else f"{found.mean:.1f} ± {found.half:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(out: Path, text: str, results: Sequence[Mapping[str, Any]]) -> None:
    """table.md and results.json, and the table on the terminal."""
    (out / "table.md").write_text(text)
    (out / "results.json").write_text(json.dumps(list(results), indent=1) + "\n")
    print(text, end="")


def main(doc: str | None, forms: Mapping[str, Any], study: Callable[[Path, Any, str, int], object]) -> None:
    """A study's command line: in which form, on which images, where to."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for images, sweeps and table")
    parser.add_argument("--form", choices=forms, default="full", help="how much of it (default: full)")
    parser.add_argument("--data", choices=SOURCES, default="cifar10", help="which images")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side")
    arguments = parser.parse_args()
    study(arguments.out.resolve(), forms[arguments.form], arguments.data, arguments.at_once)
