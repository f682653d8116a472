"""Two methods with equally many tuning trials each, compared by their test loss after the same rounds.

    python -m benchmarks.equal_trials --out FOLDER experiment=shakespeare num_rounds=40

Every trial has the same seed, so the same clients, batches and start. Local SGD has its step size to tune, a quarter of
a decade apart; SAVIC its step size, half a decade apart, and its floor. The best trial is chosen by the test loss that
is reported, for both methods alike, so both figures are a little optimistic by the same procedure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from fedscale_local import compose, experiment

METHODS: dict[str, tuple[list[str], dict[str, tuple[float, ...]]]] = {
    "Local SGD": (
        ["strategy=fedavg"],
        {"client.step_size": (0.056, 0.1, 0.18, 0.3, 0.56, 1.0, 1.8, 3.0, 5.6, 10.0)},
    ),
    "SAVIC, adam": (
        ["strategy=savic", "scaling=adam"],
        {"scaling.alpha": (0.01, 0.001), "client.step_size": (0.001, 0.003, 0.01, 0.03, 0.1)},
    ),
}
"""Overrides of each method and the values that are tried, ten combinations each."""


def trial(overrides: Sequence[str], run_dir: Path) -> dict[str, object]:
    """The last record of one run; a finished one is read and not run again."""
    if not (run_dir / "model.safetensors").exists():
        experiment.run(compose.config([*overrides, "eval_every=1000000", f"run_dir={run_dir}"]))
    last: dict[str, object] = json.loads((run_dir / "rounds.jsonl").read_text().splitlines()[-1])
    return last


def shown(record: dict[str, object], key: str) -> str:
    return "diverged" if record[key] is None else f"{record[key]:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("overrides", nargs="*", help="what both methods share")
    arguments = parser.parse_args()
    print("| method | tried | test loss | test accuracy | on the floor | |\n|---|---|---|---|---|---|")
    for name, (method, tried) in METHODS.items():
        results = {}
        for values in product(*tried.values()):
            chosen = [f"{key}={value}" for key, value in zip(tried, values, strict=True)]
            folder = "-".join((name.replace(", ", "-"), *map(str, values)))
            results[" ".join(chosen)] = trial([*arguments.overrides, *method, *chosen], arguments.out / folder)
        known = {words: record for words, record in results.items() if record["test_loss"] is not None}
        best = min(known, key=lambda words: float(str(known[words]["test_loss"])))
        for words, record in results.items():
            floored = f"{record['d_floored']:.0%}" if "d_floored" in record else ""
            mark = "best" if words == best else ""
            loss, accuracy = shown(record, "test_loss"), shown(record, "test_accuracy")
            print(f"| {name} | {words} | {loss} | {accuracy} | {floored} | {mark} |", flush=True)


if __name__ == "__main__":
    main()
