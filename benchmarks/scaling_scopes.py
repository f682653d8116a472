"""Where each scope of the preconditioner ends on quadratics, whose minimiser is known in closed form.

    python -m benchmarks.scaling_scopes --out FOLDER [--small]

Every trial is a whole run of the platform on generated quadratic clients, on full batches in float64, so nothing is
random but the problem. Every method gets the same number of trials, one a step size, for each number of local steps
and each problem. A trial's step size is LENGTH / local_steps (times 5 for Local SGD, which is not divided by D), and
its number of rounds TRAVEL / LENGTH, so that smaller steps are given the time that they need.

Writes trials.jsonl, table.md and figure.svg into FOLDER; the runs are kept there, and a finished one is not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from fedscale_local import compose, lifecycle, plots
from fedscale_local.config import from_container
from fedscale_local.plots.lines import power_of_ten
from fedscale_local.plots.style import PALETTE, STYLE

DIMENSION = 10
PROBLEM = (
    "data=quadratic", "num_clients=5", f"data.dimension={DIMENSION}", f"data.examples={DIMENSION}",
    "data.condition=30", "data.heterogeneity=1", "client.batch_size=full", "dtype=float64", "diagnostics=drift",
    "engine.workers=1", "engine.mode=stacked", "eval_every=1000000",
)  # fmt: skip
GRADIENT = ("strategy=savic", "scaling=adam", "scaling.beta=0.9", "scaling.alpha=0.1")
CURVATURE = ("strategy=savic", "scaling=oasis", "scaling.beta=0.9", "scaling.alpha=0.01")
LOCAL, MIXED = ("scaling.scope=local",), ("scaling.scope=local", "strategy.mixing=preconditioned")


class Method(NamedTuple):
    overrides: tuple[str, ...]
    colour: str
    mark: str
    unit: float = 1.0
    """What LENGTH is multiplied by."""


METHODS = {
    "Local SGD": Method(("strategy=fedavg",), "muted", "x", 5.0),
    "global, gradient": Method(GRADIENT, "blue", "o"),
    "global, displacement": Method((*GRADIENT, "scaling.statistic=displacement"), "green", "+"),
    "local, plain mean": Method((*GRADIENT, *LOCAL), "orange", "s"),
    "local, preconditioned mixing": Method((*GRADIENT, *MIXED), "purple", "^"),
    "curvature: global": Method(CURVATURE, "blue", "o"),
    "curvature: local, plain mean": Method((*CURVATURE, *LOCAL), "orange", "s"),
    "curvature: local, preconditioned mixing": Method((*CURVATURE, *MIXED), "purple", "^"),
}


class Plan(NamedTuple):
    seeds: tuple[int, ...]
    local_steps: tuple[int, ...]
    lengths: tuple[float, ...]
    travel: float


NEAR = 1e-6
"""What is nearer is drawn here."""
WHOLE = Plan((0, 1, 2), (1, 4, 16), (0.32, 0.16, 0.08), 15.0)
SMALL = Plan((0,), (1, 16), (0.32, 0.16), 10.0)


@dataclass(frozen=True)
class Trial:
    """One run and what came of it; a distance is |x - x*| / |x_0 - x*|."""

    method: str
    seed: int
    local_steps: int
    length: float
    step_size: float
    num_rounds: int
    distance: float | None
    """After the last round; None where it diverged."""
    before: float | None
    """After nine tenths of the rounds: has it settled?"""
    rounds_to_percent: int | None
    rounds_to_permille: int | None
    floored: float | None
    """Share of the global D-hat's coordinates that ended on the floor."""
    traffic: float
    """Bytes per client and round, up and down, in multiples of the model's size."""


def run_dir(out: Path, method: str, seed: int, local_steps: int, length: float) -> Path:
    words = "".join(c if c.isalnum() else "-" for c in method)
    return out / "runs" / f"{words}-s{seed}-h{local_steps}-l{length:g}"


@cache
def composed(method: str) -> dict[str, Any]:
    """The configuration that a method's trials share."""
    return compose.compose([*PROBLEM, *METHODS[method].overrides])


def trial(out: Path, method: str, seed: int, local_steps: int, length: float, travel: float) -> Trial:
    """One run, or what a finished one left."""
    torch.set_num_threads(1)
    folder = run_dir(out, method, seed, local_steps, length)
    step_size, num_rounds = METHODS[method].unit * length / local_steps, round(travel / length)
    if not (folder / "model.safetensors").exists():
        container = composed(method)
        client = {**container["client"], "local_steps": local_steps, "step_size": step_size}
        own = {"seed": seed, "num_rounds": num_rounds, "run_dir": str(folder), "client": client}
        with patch("fedscale_local.reports.write"):  # nobody reads hundreds of reports
            lifecycle.run(from_container({**container, **own}))
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    distances = [line.get("distance") for line in lines]
    spent = sum(
        line[way] - line.get(f"probe_{way}", 0) for line in lines for way in ("bytes_up", "bytes_down")
    )
    return Trial(
        method, seed, local_steps, length, step_size, num_rounds,
        distances[-1], distances[int(0.9 * num_rounds) - 1],
        _first_below(distances, 1e-2), _first_below(distances, 1e-3), lines[-1].get("d_floored"),
        spent / sum(8 * DIMENSION * len(line["clients"]) for line in lines),
    )  # fmt: skip


def _first_below(distances: Sequence[float | None], bound: float) -> int | None:
    """The first round after which the distance is at most `bound`."""
    return next((i + 1 for i, d in enumerate(distances) if d is not None and d <= bound), None)


def best(trials: Sequence[Trial]) -> Trial:
    """Of one problem's trials, which differ in step size alone: the one that ends nearest to the minimiser."""
    return min(trials, key=lambda t: float("inf") if t.distance is None else t.distance)


def of(trials: Sequence[Trial], **wanted: object) -> list[Trial]:
    return [t for t in trials if all(getattr(t, key) == value for key, value in wanted.items())]


def spread(values: Sequence[float | None]) -> str:
    """Mean and range over the problems."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"diverged in {len(values) - len(known)} of {len(values)}"
    return f"{sum(known) / len(known):.2g} ({min(known):.2g} to {max(known):.2g})"


def table(trials: Sequence[Trial], plan: Plan) -> str:
    largest, smallest = max(plan.lengths), min(plan.lengths)
    head = ["local steps", "method", f"distance, length {largest:g}", f"distance, length {smallest:g}"]
    head += ["best of the trials", "rounds to 1e-2", "rounds to 1e-3", "on the floor", "traffic"]
    rows = []
    for h in plan.local_steps:
        for method in METHODS:
            mine = of(trials, method=method, local_steps=h)
            chosen = [best(of(mine, seed=seed)) for seed in plan.seeds]
            floors = [t.floored for t in chosen if t.floored is not None]
            rows.append([
                str(h), method,
                *(spread([t.distance for t in of(mine, length=length)]) for length in (largest, smallest)),
                spread([t.distance for t in chosen]),
                *(_fastest(mine, plan.seeds, key) for key in ("rounds_to_percent", "rounds_to_permille")),
                f"{sum(floors) / len(floors):.0%}" if floors else "",
                f"{sum(t.traffic for t in mine) / len(mine):.2f} d",
            ])  # fmt: skip
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _fastest(trials: Sequence[Trial], seeds: Sequence[int], key: str) -> str:
    """Rounds of the trial that gets there first: mean over the problems in which one does, and how many these are."""
    firsts = [min((n for t in of(trials, seed=s) if (n := getattr(t, key))), default=None) for s in seeds]
    known = [n for n in firsts if n is not None]
    if not known:
        return "never"
    mean = f"{sum(known) / len(known):.0f}"
    return mean if len(known) == len(firsts) else f"{mean} (in {len(known)} of {len(firsts)})"


def figure(trials: Sequence[Trial], plan: Plan) -> Figure:
    """Distance against step size, a column for each number of local steps; range over the problems as bars."""
    kinds = (("D from gradients", False), ("D from curvature", True))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        drawn = Figure(figsize=(9.6, 6.6), layout="constrained")
        grid = drawn.subplots(2, len(plan.local_steps), sharex=True, sharey="row", squeeze=False)
        for row, (kind, is_curvature) in zip(grid, kinds, strict=True):
            for axes, h in zip(row, plan.local_steps, strict=True):
                for name, method in METHODS.items():
                    if name != "Local SGD" and name.startswith("curvature") != is_curvature:
                        continue
                    _curve(axes, of(trials, method=name, local_steps=h), plan.lengths, name, method)
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.xaxis.set_minor_locator(NullLocator())
                axes.set_xticks(plan.lengths)
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
                axes.set_title(f"{kind}, {h} local step{'s' if h > 1 else ''}", fontsize=10.5)
            row[0].set_ylabel("distance to the minimiser")
        for axes in grid[-1]:
            axes.set_xlabel("length of a round")
        entries = list(METHODS)[:5]
        handles = {line.get_label(): line for line in grid[0][0].containers}
        drawn.legend([handles[name] for name in entries], entries, loc="outside upper center", ncols=3)
    return drawn


def _curve(axes: Axes, trials: Sequence[Trial], lengths: Sequence[float], name: str, method: Method) -> None:
    groups = [[t.distance and max(t.distance, NEAR) for t in of(trials, length=length)] for length in lengths]
    known = [(length, g) for length, g in zip(lengths, groups, strict=True) if g and None not in g]
    means = [sum(g) / len(g) for _, g in known]
    low = [mean - min(g) for mean, (_, g) in zip(means, known, strict=True)]
    high = [max(g) - mean for mean, (_, g) in zip(means, known, strict=True)]
    axes.errorbar(
        [length for length, _ in known], means, (low, high), label=name, color=PALETTE[method.colour],
        marker=method.mark, markersize=6, linewidth=1.4, elinewidth=0.8, fillstyle="none",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, table and figure")
    parser.add_argument("--small", action="store_true", help="one problem, two step sizes, short runs")
    arguments = parser.parse_args()
    plan, out = SMALL if arguments.small else WHOLE, arguments.out
    jobs = [
        (out, method, seed, h, length, plan.travel)
        for method in METHODS for seed in plan.seeds for h in plan.local_steps for length in plan.lengths
    ]  # fmt: skip
    if arguments.small:
        trials = [trial(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            trials = list(pool.map(trial, *zip(*jobs, strict=True)))
    (out / "trials.jsonl").write_text("".join(json.dumps(asdict(t)) + "\n" for t in trials))
    (out / "table.md").write_text(table(trials, plan))
    plots.save(figure(trials, plan), out / "figure.svg")
    print(table(trials, plan), end="")


if __name__ == "__main__":
    main()
