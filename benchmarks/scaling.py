"""What a round costs against clients per round, population, parameters, local steps and workers, as a picture.

    python -m benchmarks.scaling --out benchmarks/results/scaling

writes scaling.json and scaling.svg there. Each point is one whole run of the in-process engine, plain Local SGD; its
figure is the median over the rounds after the first. Along an axis all else stays as it is. Points of all axes are
visited in turn, several times, and the median over visits counts. Two lines are fitted: round time against clients per
round, a straight line whose largest relative departure is told, and against the population, whose spread is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.machine import machine, save
from fedscale_local import compose, lifecycle, reports

EXAMPLES, FEATURES, CLASSES = 200_000, 64, 10
POPULATION, CLIENTS, STEPS, BATCH = 2000, 100, 10, 10
AXES: dict[str, tuple[str, list[int]]] = {
    "clients a round": ("clients_per_round", [10, 30, 100, 300, 1000]),
    "population": ("num_clients", [1_000, 10_000, 100_000]),
    "parameters": ("width", [10, 100, 1_000, 10_000]),
    "local steps": ("client.local_steps", [1, 10, 100]),
    "workers": ("engine.workers", sorted({1, len(os.sched_getaffinity(0))})),
}
WIDTH = "width"
"""Not a key of the configuration: hidden units of an mlp, which sets the number of parameters."""


def settings(data: Path, key: str, value: int, num_rounds: int) -> list[str]:
    """The overrides of one point."""
    chosen: dict[str, Any] = {
        "num_clients": POPULATION,
        "clients_per_round": CLIENTS,
        "client.local_steps": STEPS,
        "client.batch_size": BATCH if key != "num_clients" else EXAMPLES // 100_000,
        "num_rounds": num_rounds,
        "eval_every": num_rounds,
        "checkpoint_every": 0,
        "client.step_size": 0.01,
        "data.path": str(data),
    }
    model = ["model=logistic"]
    if key == WIDTH:
        model = ["model=mlp", f"model.hidden=[{value}]"]
    else:
        chosen[key] = value
    groups = ["data=arrays", "partition=iid", "strategy=fedavg", *model]
    return [*groups, *(f"{name}={setting}" for name, setting in chosen.items())]


def seconds_of_a_round(data: Path, key: str, value: int, num_rounds: int) -> float:
    """Median over the rounds after the first, in which workers are forked."""
    with tempfile.TemporaryDirectory() as folder:
        config = compose.config([*settings(data, key, value, num_rounds), f"run_dir={folder}/run"])
        lifecycle.run(config)
        lines = (Path(folder) / "run" / "timing.jsonl").read_text().splitlines()
        return statistics.median(json.loads(line)["round_seconds"] for line in lines[1:])


def straight_line(x: list[int], y: list[float]) -> tuple[float, float, float]:
    """Intercept and slope of the line with the least relative squares, and its largest relative departure."""
    weights = 1 / np.array(y)
    columns = np.stack([np.ones(len(x)), np.array(x, dtype=float)], axis=1)
    (intercept, slope), *_ = np.linalg.lstsq(columns * weights[:, None], np.array(y) * weights, rcond=None)
    fitted = intercept + slope * np.array(x)
    return float(intercept), float(slope), float(np.abs(fitted / np.array(y) - 1).max())


def whole_scale(data: Path) -> dict[str, Any]:
    """100,000 clients, 1,000 of them a round, logistic regression: seconds of 20 rounds, and the memory it took."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = settings(data, "num_clients", 100_000, 20)
        overrides = [o for o in overrides if not o.startswith("clients_per_round=")]
        config = compose.config([*overrides, "clients_per_round=1000", f"run_dir={folder}/run"])
        began = time.perf_counter()
        lifecycle.run(config)
        took = time.perf_counter() - began
    own, of_a_worker = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    cores = len(os.sched_getaffinity(0))
    return {
        "seconds_of_20_rounds": round(took, 2),
        "peak_gib_at_most": round((own + cores * of_a_worker) / 2**20, 2),
    }


def draw(points: dict[str, list[tuple[int, float]]], to: Path) -> None:
    """One panel an axis, both axes logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(points), figsize=(3 * len(points), 3), constrained_layout=True)
    for panel, (name, pairs) in zip(panels, points.items(), strict=True):
        x, y = zip(*pairs, strict=True)
        panel.plot(x, [1000 * seconds for seconds in y], marker="o")
        panel.set(xscale="log", yscale="log", xlabel=name, ylabel="ms a round" if panel is panels[0] else "")
        panel.grid(True, which="both", alpha=0.3)
    figure.savefig(to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=3, help="%(default)s")
    parser.add_argument("--rounds", type=int, default=8, help="of each run, %(default)s")
    parser.add_argument("--out", type=Path, help="write scaling.json and scaling.svg to this folder")
    arguments = parser.parse_args()
    reports.write = lambda run_dir: run_dir  # type: ignore[assignment,return-value]
    with tempfile.TemporaryDirectory() as folder:
        rng, data = np.random.default_rng(0), Path(folder) / "data.npz"
        x = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
        np.savez(
            data, x=x, y=rng.integers(CLASSES, size=EXAMPLES), x_test=x[:100], y_test=np.zeros(100, dtype=int)
        )
        scale = whole_scale(data)
        print(json.dumps(scale), flush=True)
        seen: dict[tuple[str, int], list[float]] = {}
        for _ in range(arguments.passes):
            for name, (key, values) in AXES.items():
                for value in values:
                    took = seconds_of_a_round(data, key, value, arguments.rounds)
                    seen.setdefault((name, value), []).append(took)
                    print(f"{name} {value}: {1000 * took:.1f} ms a round", flush=True)
    points = {
        name: [(value, statistics.median(seen[name, value])) for value in values]
        for name, (_, values) in AXES.items()
    }
    intercept, slope, departure = straight_line(*map(list, zip(*points["clients a round"], strict=True)))  # type: ignore[arg-type]
    population = [seconds for _, seconds in points["population"]]
    result = {
        "seconds_a_round": points,
        "clients_a_round": {
            "seconds": f"{intercept:.5f} + {slope:.7f} * clients",
            "largest_relative_departure": round(departure, 3),
        },
        "population": {"slowest_over_fastest": round(max(population) / min(population), 3)},
        "hundred_thousand_clients": scale,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(result, indent=2))
    if arguments.out is not None:
        save(result, arguments.out / "scaling.json")
        draw(points, arguments.out / "scaling.svg")


if __name__ == "__main__":
    main()
