"""Run directories of several methods under several seeds, made from closed forms, for the tests of comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import run_dirs


@cache
def sampled(seed: int, num_rounds: int, clients: int = 5) -> list[list[int]]:
    """The clients of each round under this seed, the same for every method."""
    draw = np.random.default_rng([seed, 1])
    return [sorted(draw.choice(20, clients, replace=False).tolist()) for _ in range(num_rounds)]


def run(
    path: Path,
    seed: int,
    final: float,
    *,
    strategy: str = "fedavg",
    num_rounds: int = 6,
    bytes_up: int = 1000,
    bytes_down: int = 1000,
    tau: float = 2.0,
    changes: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    records: Mapping[str, Any] | None = None,
) -> Path:
    """One finished run whose test accuracy ends at `final`; `records` replace keys of every record."""
    config = run_dirs.config(
        seed=seed, num_rounds=num_rounds, num_clients=20, clients_per_round=5, run_dir=str(path),
        strategy={"name": strategy, "weighting": "examples", "mixing": "mean"},
    ) | dict(changes or {})  # fmt: skip
    lines = []
    for p, clients in enumerate(sampled(seed, num_rounds), start=1):
        rest = np.exp(-p / tau) - np.exp(-num_rounds / tau)
        record = {
            "round": p, "clients": clients, "train_loss": 2 - final + rest, "test_loss": 1.5 - final + rest,
            "test_accuracy": final - 0.6 * rest, "bytes_up": bytes_up, "bytes_down": bytes_down, "failures": [],
        }  # fmt: skip
        if strategy == "savic":
            record |= {"d_condition": 90.0 + 10 * p, "d_change": 1 / p, "d_floored": 0.2 + 0.1 / p}
        lines.append(record | dict(records or {}))
    whole = run_dirs.manifest(seed=seed, **dict(manifest or {}))
    spread = np.linspace(-0.1, 0.1, 20)
    clients = {"train_loss": (1.5 - final + spread).tolist(), "train_accuracy": (final + spread).tolist()}
    return run_dirs.write(
        path, lines, config=config, manifest=whole, timing=run_dirs.timing(num_rounds),
        partition=partition(seed), clients=clients,
    )  # fmt: skip


@cache
def partition(seed: int) -> dict[str, Any]:
    """Who holds what under this seed."""
    draw = np.random.default_rng([seed, 2])
    counts = draw.multinomial(60, [0.25] * 4, size=20)
    return {"num_clients": 20, "classes": ["a", "b", "c", "d"], "counts": counts.tolist()}


def methods(path: Path, finals: Mapping[str, Iterable[float]], **options: Any) -> Path:
    """A run for each value, under seeds 0, 1, ...: strategy name -> final accuracies; returns the directory of all."""
    for strategy, values in finals.items():
        for seed, final in enumerate(values):
            run(path / f"{strategy}-{seed}", seed, float(final), strategy=strategy, **options)
    return path
