"""Time, memory and size of a comparison of many long runs.

    python -m benchmarks.compare_size [--methods 20] [--seeds 10] [--rounds 500]

Writes run directories with made-up curves, 20 of 200 clients a round, into a temporary folder, runs
`fedscale-local compare` on them in a process of its own, and prints what that took.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedscale_local import compose
from fedscale_local.config import to_container


def write(path: Path, config: dict[str, Any], step_size: float, final: float) -> None:
    """One finished run whose accuracy goes to `final`."""
    seed, rounds = config["seed"], config["num_rounds"]
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(60, [0.1] * 10, size=200).tolist()
    path.mkdir(parents=True)
    own = config | {"run_dir": str(path), "client": config["client"] | {"step_size": step_size}}
    (path / "config.yaml").write_text(yaml.safe_dump(own, sort_keys=False))
    (path / "partition.json").write_text(json.dumps({"num_clients": 200, "counts": counts}))
    each = {key: draw.uniform(0.5, 1, 200).tolist() for key in ("train_loss", "train_accuracy")}
    (path / "clients.json").write_text(json.dumps(each))
    manifest = {
        "engine": {"name": "in_process"},
        "seed": seed,
        "exit": "done",
        "started": "2026-01-01T00:00:00",
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    lines, times = [], []
    for p in range(1, rounds + 1):
        loss = float(1 - final + np.exp(-p / 60) + 0.01 * draw.normal())
        record = {
            "round": p,
            "clients": sorted(draw.choice(200, 20, replace=False).tolist()),
            "train_loss": loss,
        }
        record |= {
            "test_loss": loss,
            "test_accuracy": 1 - 0.5 * loss,
            "bytes_up": 2_315_040,
            "bytes_down": 2_315_040,
        }
        record |= {
            "failures": [],
            "d_min": 0.001,
            "d_max": loss,
            "d_floored": 0.4,
            "d_change": loss,
            "d_condition": 1000 * loss,
            "d_clock": p,
        }
        lines.append(json.dumps(record) + "\n")
        times.append(json.dumps({"round": p, "round_seconds": 0.7}) + "\n")
    (path / "rounds.jsonl").write_text("".join(lines))
    (path / "timing.jsonl").write_text("".join(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("methods", 20), ("seeds", 10), ("rounds", 500)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    base = to_container(compose.config([f"num_rounds={asked.rounds}"]))
    with tempfile.TemporaryDirectory() as folder:
        for method in range(asked.methods):
            for seed in range(asked.seeds):
                final = 0.8 + 0.001 * method + 0.01 * np.random.default_rng([seed, method]).normal()
                write(Path(folder) / f"{method}-{seed}", base | {"seed": seed}, 0.001 * (method + 1), final)
        page = Path(folder) / "report.html"
        command = [sys.executable, "-m", "fedscale_local.cli", "compare", folder, "--out", str(page)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime
        print(
            f"{asked.methods * asked.seeds} runs of {asked.rounds} rounds: {seconds:.1f} s ({cpu:.1f} s of CPU), "
            f"{used.ru_maxrss / 1024:.0f} MiB at most, ",
            end="",
        )
        print(f"a page of {page.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
