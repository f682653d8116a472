"""Run directories as a run writes them, made from closed forms, for the tests of reports and progress."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def config(**changes: Any) -> dict[str, Any]:
    """A resolved configuration; `changes` replace whole keys."""
    whole = {
        "seed": 0,
        "num_clients": 200,
        "clients_per_round": 20,
        "num_rounds": 60,
        "run_dir": None,
        "dtype": "float32",
        "eval_every": 1,
        "eval_clients": True,
        "checkpoint_every": 20,
        "client": {
            "local_steps": 10, "local_epochs": None, "step_size": 0.002, "batch_size": 32, "momentum": 0.0,
            "momentum_buffer": "reset", "weight_decay": 0.0, "drop_last": False,
        },
        "scaling": {
            "rule": "adam", "beta": 0.999, "alpha": 1e-4, "floor": "max", "upper_bound": None,
            "scope": "global", "statistic": "gradient", "combine": "square_of_mean", "refresh_every": 1,
            "start": "statistic",
        },
        "strategy": {"name": "savic", "weighting": "examples", "mixing": "mean"},
        "data": {"name": "fashion_mnist_12k", "path": None, "download": False},
        "partition": {"scheme": "dirichlet", "alpha": 0.3, "min_examples": 10},
        "model": {"name": "cnn"},
        "engine": {"name": "in_process", "mode": "auto", "workers": "auto"},
        "tracking": {"name": "none"},
    }  # fmt: skip
    return {**whole, **changes}


def manifest(**changes: Any) -> dict[str, Any]:
    """A manifest of a finished run."""
    whole = {
        "fedscale_local": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "flwr": "1.41.0", "numpy": "2.4.6"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "hardware": {"machine": "x86_64", "cpus": 2, "memory_gib": 15.6, "gpu": None},
        "engine": {"name": "in_process", "mode": "stacked", "workers": 2},
        "seed": 0,
        "started": "2026-11-23T20:15:03+00:00",
        "finished": "2026-11-23T20:15:49+00:00",
        "exit": "done",
        "num_parameters": 28938,
        "data_note": "",
    }
    return {**whole, **changes}


def rounds(
    number: int, *, eval_every: int = 1, scaled: bool = True, accuracy: bool = True
) -> list[dict[str, Any]]:
    """Records of a run that learns: loss falls exponentially with some noise, D-hat settles."""
    draw = np.random.default_rng(7)
    records = []
    for p in range(1, number + 1):
        evaluated = p % eval_every == 0 or p == number
        tilt = float(draw.normal())
        record: dict[str, Any] = {
            "round": p,
            "clients": sorted(draw.choice(200, 20, replace=False).tolist()),
            "train_loss": 0.35 + 1.9 * np.exp(-p / 12) + 0.03 * tilt,
            "test_loss": 0.46 + 1.8 * np.exp(-p / 14) + 0.01 * tilt if evaluated else None,
            "test_accuracy": 0.83 - 0.7 * np.exp(-p / 9) - 0.004 * tilt if evaluated and accuracy else None,
            "bytes_up": 20 * 4 * 28938,
            "bytes_down": 20 * 4 * 28938 * 2,
            "failures": [],
        }
        if scaled:
            low, high = 1e-4, 0.02 + 0.1 / p * np.exp(0.2 * tilt)
            record |= {
                "d_min": low,
                "d_max": high,
                "d_condition": high / low,
                "d_change": 0.8 / p,
                "d_clock": p,
            }
            record |= {"d_floored": 0.4 + 0.3 / p}
        records.append(record)
    return records


def timing(number: int) -> list[dict[str, float]]:
    """Seconds of each round, dominated by the clients."""
    parts = {
        "configure_seconds": 0.01,
        "clients_seconds": 0.6,
        "aggregate_seconds": 0.04,
        "evaluate_seconds": 0.1,
    }
    return [{"round": p, "round_seconds": 0.77, **parts} for p in range(1, number + 1)]


def partition(clients: int, classes: int = 10, examples: int = 12_000, alpha: float = 0.3) -> dict[str, Any]:
    """Dirichlet shards of balanced classes: the counts, not the examples."""
    draw = np.random.default_rng(3)
    per_class = [
        draw.multinomial(examples // classes, draw.dirichlet([alpha] * clients)) for _ in range(classes)
    ]
    names = FASHION if classes == 10 else tuple(f"class {k}" for k in range(classes))
    return {"num_clients": clients, "classes": list(names), "counts": np.array(per_class).T.tolist()}


def write(
    path: Path,
    records: list[dict[str, Any]],
    *,
    config: dict[str, Any],
    manifest: dict[str, Any],
    partition: dict[str, Any] | None = None,
    timing: list[dict[str, float]] | None = None,
    clients: dict[str, list[float]] | None = None,
) -> Path:
    """Write a run directory with these pieces; returns its path."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    if partition is not None:
        (path / "partition.json").write_text(json.dumps(partition), encoding="utf-8")
    if clients is not None:
        (path / "clients.json").write_text(json.dumps(clients), encoding="utf-8")
    for name, lines in (("rounds", records), ("timing", timing)):
        if lines is not None:
            (path / f"{name}.jsonl").write_text("".join(map(line, lines)), encoding="utf-8")
    return path


def line(record: dict[str, Any]) -> str:
    """One record as the line that a run appends."""
    return json.dumps(record, allow_nan=False) + "\n"


def usual(path: Path, number: int = 60, clients: int = 200, **options: Any) -> Path:
    """A finished run with every piece."""
    return write(
        path,
        rounds(number, **options),
        config=config(num_rounds=number, num_clients=clients),
        manifest=manifest(),
        partition=partition(clients),
        timing=timing(number),
    )
