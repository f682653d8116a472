"""How many bytes D takes in four bits an entry and refreshed every 3 rounds, and what that does to the accuracy.

    python -m benchmarks.compact_preconditioner --out FOLDER
    python -m benchmarks.compact_preconditioner --out FOLDER num_clients=20 clients_per_round=null

All arms are experiment=quickstart with the same seeds, so the same start, clients and batches. Bytes for D are the
statistic up and the preconditioner down, the probe before the first round included. The difference in accuracy is
paired by seed; its interval is Student's, 95 %, and the seeds are what varies.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedscale_local import compose, lifecycle

SEEDS = range(5)
T_95 = 2.776
"""The 97.5 % point of Student's t with 4 degrees of freedom, that is for 5 seeds."""
ARMS = {
    "plain, every round": ["sending=plain", "scaling.refresh_every=1"],
    "plain, every 3 rounds": ["sending=plain", "scaling.refresh_every=3"],
    "compact, every 3 rounds": ["sending=compact", "scaling.refresh_every=3"],
}


def lines(overrides: Sequence[str], run_dir: Path) -> list[dict[str, Any]]:
    """The rounds of one run; a finished one is read and not run again."""
    if not (run_dir / "model.safetensors").exists():
        lifecycle.run(
            compose.config(["experiment=quickstart", "eval_every=1000000", *overrides, f"run_dir={run_dir}"])
        )
    return [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]


def bytes_for_d(rounds: Sequence[dict[str, Any]]) -> int:
    """Statistic up and preconditioner down, in bytes.

    >>> bytes_for_d([{"bytes_up_by": {"parameters": 5, "statistic": 2}, "bytes_down_by": {"preconditioner": 1}}])
    3
    """
    return sum(
        line["bytes_up_by"].get("statistic", 0) + line["bytes_down_by"].get("preconditioner", 0)
        for line in rounds
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval, of 5 values.

    >>> mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> mean, round(half, 3)
    (3.0, 1.963)
    """
    assert len(values) == len(SEEDS)
    return statistics.fmean(values), T_95 * statistics.stdev(values) / math.sqrt(len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("overrides", nargs="*", help="what all arms share")
    arguments = parser.parse_args()
    sizes: dict[str, float] = {}
    accuracies: dict[str, list[float]] = {}
    for name, arm in ARMS.items():
        runs = [
            lines(
                [*arguments.overrides, *arm, f"seed={seed}"],
                arguments.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}",
            )
            for seed in SEEDS
        ]
        sizes[name] = statistics.fmean(bytes_for_d(run) for run in runs)
        accuracies[name] = [100 * run[-1]["test_accuracy"] for run in runs]
    print("| D | MB for D a run | times fewer | test accuracy, % |\n|---|---|---|---|")
    plain, *others = ARMS
    for name in ARMS:
        mean, half = interval(accuracies[name])
        fewer = sizes[plain] / sizes[name]
        print(f"| {name} | {sizes[name] / 1e6:.1f} | {fewer:.1f} | {mean:.2f} +- {half:.2f} |")
    for name in others:
        differences = [b - a for a, b in zip(accuracies[plain], accuracies[name], strict=True)]
        mean, half = interval(differences)
        print(
            f"\n{name}, minus {plain}, by seed: {', '.join(f'{d:+.2f}' for d in differences)};"
            f" mean {mean:+.2f} +- {half:.2f} percentage points"
        )


if __name__ == "__main__":
    main()
