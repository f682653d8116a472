"""Time, memory and size of a comparison of many long runs.

    python -m benchmarks.compare_size [--methods 20] [--seeds 10] [--rounds 500] [--check]

Writes run directories with made-up curves, 20 of 200 clients a round, into a temporary folder, runs
`fedscale-local compare` on them in a process of its own, and prints what that took. With --check it exits with 1 where
that is more than 10 s, 1 GiB or 5 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

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


class Taken(NamedTuple):
    """What a comparison took: wall clock and processor time in seconds, MiB of memory at most, MB of the page."""

    seconds: float
    cpu_seconds: float
    memory: float
    page: float


LIMITS = {"seconds": 10.0, "memory": 1024.0, "page": 5.0}
UNITS = {"seconds": "s", "memory": "MiB", "page": "MB"}


def beyond(taken: Taken) -> list[str]:
    """Each limit that is not kept, in words."""
    found = ((key, getattr(taken, key), limit) for key, limit in LIMITS.items())
    return [
        f"{key}: {has:.4g} {UNITS[key]}, at most {limit:g} are allowed"
        for key, has, limit in found
        if has > limit
    ]


def make(folder: Path, methods: int, seeds: int, rounds: int) -> None:
    """The run directories."""
    base = to_container(compose.config([f"num_rounds={rounds}"]))
    for method in range(methods):
        for seed in range(seeds):
            final = 0.8 + 0.001 * method + 0.01 * np.random.default_rng([seed, method]).normal()
            write(folder / f"{method}-{seed}", base | {"seed": seed}, 0.001 * (method + 1), final)


def measure(folder: Path) -> Taken:
    """Compare what is in the folder."""
    page = folder / "report.html"
    command = [sys.executable, "-m", "fedscale_local.cli", "compare", str(folder), "--out", str(page)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return Taken(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, page.stat().st_size / 1e6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("methods", 20), ("seeds", 10), ("rounds", 500)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--check", action="store_true", help="exit with 1 over 10 s, 1 GiB or 5 MB")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), asked.methods, asked.seeds, asked.rounds)
        taken = measure(Path(folder))
    print(
        f"{asked.methods * asked.seeds} runs of {asked.rounds} rounds: {taken.seconds:.1f} s "
        f"({taken.cpu_seconds:.1f} s of CPU), {taken.memory:.0f} MiB at most, a page of {taken.page:.2f} MB"
    )
    wrong = beyond(taken) if asked.check else []
    for words in wrong:
        print(words)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
