"""Two methods with equally many step-size trials each, compared by their test loss after the same rounds.

    python -m benchmarks.equal_trials --out FOLDER experiment=shakespeare num_rounds=60

Every trial has the same seed, so the same clients, batches and start. The best trial is chosen by the test loss that is
reported, for both methods alike, so both figures are a little optimistic by the same procedure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fedscale_local import compose, experiment

METHODS = {
    "Local SGD": (("strategy=fedavg",), (0.1, 0.3, 1.0, 3.0, 10.0)),
    "SAVIC, adam": (("strategy=savic", "scaling=adam"), (0.001, 0.003, 0.01, 0.03, 0.1)),
}
"""Overrides and step sizes of each method, half a decade apart."""


def trial(overrides: Sequence[str], run_dir: Path) -> dict[str, object]:
    """The last record of one run; a finished one is read and not run again."""
    if not (run_dir / "model.safetensors").exists():
        experiment.run(compose.config([*overrides, "eval_every=1000000", f"run_dir={run_dir}"]))
    last: dict[str, object] = json.loads((run_dir / "rounds.jsonl").read_text().splitlines()[-1])
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("overrides", nargs="*", help="what both methods share")
    arguments = parser.parse_args()
    print("| method | step size | rounds | test loss | test accuracy | |")
    print("|---|---|---|---|---|---|")
    for name, (method, step_sizes) in METHODS.items():
        results = {}
        for step_size in step_sizes:
            overrides = [*arguments.overrides, *method, f"client.step_size={step_size}"]
            results[step_size] = trial(overrides, arguments.out / f"{name.replace(', ', '-')}-{step_size}")
        known = {step: r["test_loss"] for step, r in results.items() if r["test_loss"] is not None}
        best = min(known, key=lambda step: float(str(known[step])))
        for step_size, record in results.items():
            loss, accuracy = (
                "diverged" if record[key] is None else f"{record[key]:.4f}"
                for key in ("test_loss", "test_accuracy")
            )
            mark = "best" if step_size == best else ""
            print(f"| {name} | {step_size} | {record['round']} | {loss} | {accuracy} | {mark} |", flush=True)


if __name__ == "__main__":
    main()
