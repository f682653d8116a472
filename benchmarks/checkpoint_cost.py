"""What a checkpoint after every round costs: wall time with one, over wall time without, in interleaved pairs.

    python -m benchmarks.checkpoint_cost --out benchmarks/results/checkpoint_cost.json

The data set and the network are the default ones (fashion_mnist_12k, mlp). A pair is two whole runs, from the
configuration to model.safetensors with the last checkpoint on disk; which of the two goes first alternates. The report
is left out, as it is the same for both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine, save
from fedscale_local import compose, lifecycle, reports


def seconds(overrides: list[str], every: int) -> float:
    """Wall time of one run."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        config = compose.config([*overrides, f"checkpoint_every={every}", f"run_dir={folder}/run"])
        began = time.perf_counter()
        lifecycle.run(config)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="%(default)s")
    parser.add_argument("--out", type=Path, help="write the result to this file, as JSON")
    parser.add_argument("overrides", nargs="*", default=["num_rounds=40"], help="%(default)s")
    arguments = parser.parse_args()
    reports.write = lambda run_dir: run_dir  # type: ignore[assignment,return-value]
    seconds(arguments.overrides, 1)  # so that the first pair finds everything loaded
    pairs = []
    for number in range(arguments.pairs):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        took = {every: seconds(arguments.overrides, every) for every in order}
        pairs.append((round(took[0], 3), round(took[1], 3)))
        print(f"without {took[0]:.3f} s, with {took[1]:.3f} s, ratio {took[1] / took[0]:.4f}", flush=True)
    ratios = sorted(with_ / without for without, with_ in pairs)
    result = {
        "claim": "a run with a checkpoint after every round costs at most 3 % more wall time than one without",
        "median_ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "seconds_without_and_with": pairs,
        "overrides": arguments.overrides,
        "machine": machine(),
    }
    print(f"median ratio {result['median_ratio']}")
    save(result, arguments.out)


if __name__ == "__main__":
    main()
