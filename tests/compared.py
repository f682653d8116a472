"""Run directories of several methods under several seeds, made from closed forms, for the tests of comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product
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
    with_own_models: bool = False,
) -> Path:
    """One finished run whose test accuracy ends at `final`; `records` replace keys of every record.

    with_own_models: clients.json tells of test examples, under the global model and under each client's own.
    """
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
    for own, above in (("", 0.0), ("personal_", 0.03)) if with_own_models else ():
        clients |= {f"{own}test_loss": (1.5 - final - above + spread).tolist()}
        clients |= {f"{own}test_accuracy": (final + above + spread).tolist()}
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


def grid(path: Path, strategies: Iterable[str], step_sizes: Iterable[float], alphas: Iterable[float]) -> Path:
    """A run for each strategy, step size, alpha and seed of two, whose mean is 0.02 higher for each next strategy."""
    base, asked = run_dirs.config(), list(product(enumerate(strategies), step_sizes, alphas))
    for place, ((above, strategy), step, alpha) in enumerate(asked):
        for seed in (0, 1):
            final = surface(step, alpha) + 0.02 * above + apart(place, seed)
            changes = {
                "client": base["client"] | {"step_size": step},
                "scaling": base["scaling"] | {"alpha": alpha},
            }
            run(path / f"{strategy}-{step}-{alpha}-{seed}", seed, final, strategy=strategy, changes=changes)
    return path


def apart(place: int, seed: int) -> float:
    """What a seed adds, another amount for each method; nothing in the mean over both."""
    return 0.002 * (2 * seed - 1) * (1 + place % 4)


def surface(step_size: float, alpha: float) -> float:
    """An accuracy that is best at 0.01 and 0.001."""
    return float(0.8 - 0.1 * abs(np.log10(step_size) + 2) - 0.05 * abs(np.log10(alpha) + 3))


def tuned(path: Path, strategies: Iterable[str], num_trials: int = 16) -> Path:
    """A tuning of each over step size and alpha, its best trial on the edge; every fifth trial was pruned."""
    draw, told, base = np.random.default_rng(8), [], run_dirs.config()
    space = {"choices": [], "step": None, "is_log": True, "is_int": False}
    for place, strategy in enumerate(strategies):
        trials: list[dict[str, Any]] = []
        for number in range(num_trials):
            step, alpha = (float(f"{10 ** draw.uniform(-4, -2.02):.3g}") for _ in range(2))
            values = {"client.step_size": step, "scaling.alpha": alpha}
            trials.append({"number": number, "values": values, "value": surface(step, alpha), "cells": []})
            trials[-1]["state"] = "pruned" if number % 5 == 4 else "complete"
        best = max((t["value"], t["number"]) for t in trials if t["state"] == "complete")[1]
        trials[best]["values"]["client.step_size"] = 0.0099
        trials[best]["cells"] = [f"{strategy}-{seed}" for seed in range(2)]
        changes = {"client": base["client"] | {"step_size": 0.0099}}
        for seed, cell in enumerate(trials[best]["cells"]):
            final = trials[best]["value"] + apart(place, seed)
            run(path / cell, seed, final, strategy=strategy, changes=changes)
        told.append({
            "name": f"strategy={strategy}", "metric": "test_accuracy", "direction": "maximize", "seeds": [0, 1],
            "space": [space | {"key": key, "low": 1e-4, "high": 1e-2} for key in ("client.step_size", "scaling.alpha")],
            "trials": trials, "best": best,
        })  # fmt: skip
    (path / "tuning.json").write_text(json.dumps({"methods": told}))
    return path
