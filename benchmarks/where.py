"""Where the time of a round goes, by the part of the program that takes it, and what of it is arithmetic.

    python -m benchmarks.where --work W0,W1,W2,W3 [--scaling adam|oasis] --out FILE.json

The works of benchmarks.peers, in process, with one worker on one thread, so that one profile sees all of a round. A
built-in function counts for the one that calls it: what a product takes is told by the function that asks for it. A
profile makes what is called often look dearer than it is, messages above all; benchmarks.micro times those. The
arithmetic is that of all products and convolutions at the speed of a large product of torch's on one thread, seen
beside: what a program needs at least that leaves them to that library. Where the library does not use the widest
vectors of a processor, what is compiled here does, and may need less.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.machine import gemm_peak, machine, save
from benchmarks.peers import work as works
from benchmarks.peers.__main__ import OURS, arrays, gflop, overrides
from fedscale_local import compose, lifecycle, reports, rounds

UNSEEN = 2
"""The first rounds, in which memory is taken and what is kept is made."""
PARTS = {
    "batches drawn and gathered": ("data/", "randomness.py"),
    "local steps": (
        "dense.py",
        "tasks.py",
        "client_step.py",
        "curvature.py",
        "scaling.py",
        "local_rule",
        "models/",
        "/torch/",
        "clients/training.py",
        "native.py",
    ),
    "checks of replies": ("replies.py", "quorum.py"),
    "aggregation": ("server_step.py", "server_rule", "vector.py"),
    "bytes counted": ("ledger.py",),
    "messages": (
        "wire.py",
        "flower_adapter.py",
        "in_process.py",
        "client_grid.py",
        "chunks.py",
        "strategies/",
        "clients/",
        "/flwr/",
        "sending.py",
        "codecs/",
    ),
}
"""Whose file has one of these in its path; the first that fits. All else is "the rest"."""
MOST = 6
"""Functions that are named."""


def part_of(path: str) -> str:
    return next((part for part, marks in PARTS.items() if any(mark in path for mark in marks)), "the rest")


def profile(folder: Path, work: works.Work, scaling: str) -> pstats.Stats:
    """All rounds but the first."""
    profiler, one_round = cProfile.Profile(), rounds._round

    def seen(experiment: Any, strategy: Any, grid: Any, round: int, *more: Any) -> Any:
        if round <= UNSEEN:
            return one_round(experiment, strategy, grid, round, *more)
        with profiler:
            return one_round(experiment, strategy, grid, round, *more)

    with (
        tempfile.TemporaryDirectory() as place,
        patch.object(rounds, "_round", seen),
        patch.object(reports, "write", lambda run_dir: run_dir),
    ):
        asked = [*overrides(folder, work, Path(place) / "run", scaling), "engine.workers=1"]
        lifecycle.run(compose.config(asked))
    return pstats.Stats(profiler)


def seconds(stats: pstats.Stats, num_rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Of one round: by part, and by function; a built-in one is its callers'."""
    functions: Counter[tuple[str, str]] = Counter()
    for (path, _, name), (_, _, own, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        if path == "~":
            for (caller_path, _, caller), (_, _, part, _) in callers.items():
                functions[caller_path, caller] += part / num_rounds
        else:
            functions[path, name] += own / num_rounds
    parts: Counter[str] = Counter()
    for (path, _), took in functions.items():
        parts[part_of(path)] += took
    most = {f"{Path(path).name}:{name}": took for (path, name), took in functions.most_common(MOST)}
    return dict(parts.most_common()), most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default=",".join(works.WORKS), help="%(default)s")
    parser.add_argument("--scaling", default="", choices=OURS, help="default: Local SGD")
    parser.add_argument("--out", type=Path, help="write the result to this file, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    everything: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine()}
    for name in arguments.work.split(","):
        work = works.WORKS[name]
        with tempfile.TemporaryDirectory() as place:
            data, initial = arrays(work)
            works.save(work, Path(place), data, initial)
            arithmetic = gflop(work, data) / gemm_peak()
            stats = profile(Path(place), work, arguments.scaling)
        parts, most = seconds(stats, work.num_rounds - UNSEEN)
        whole = sum(parts.values())
        everything[name] = {"seconds": whole, "arithmetic": arithmetic, "parts": parts, "functions": most}
        print(f"\n{name}: {whole:.3f} s a round on one core; {arithmetic:.3f} s of arithmetic at the peak\n")
        print("| part | share | |\n|---|---|---|")
        for part, took in parts.items():
            print(f"| {part} | {took / whole:.1%} | |")
        for function, took in most.items():
            print(f"| | {took / whole:.1%} | {function} |", flush=True)
        save(everything, arguments.out)


if __name__ == "__main__":
    main()
