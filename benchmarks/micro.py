"""What the machinery costs beside the arithmetic: messages and aggregation, a checkpoint, the start of a run.

    python -m benchmarks.micro --out benchmarks/results/micro.json

Messages and aggregation: whole rounds of the in-process engine in which local training takes no time (each client
answers with a prepared model), one worker, 100 clients, a model of 100,000 parameters. A round is configured, packed,
delivered, unpacked, answered, checked, counted by the ledger and aggregated; evaluation and the record are left out.
The start: `--help`, imports, and a run with no rounds worth mentioning beyond them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.machine import machine, save
from clients.training import ClientUpdate, Order
from fedscale_local import compose, lifecycle, reports
from fedscale_local.experiment import Experiment

CLIENTS, ROUNDS = 100, 12
WORK = ["model=mlp", "model.hidden=[126]", "partition=iid", "num_clients=200", f"clients_per_round={CLIENTS}"]
WORK += [f"num_rounds={ROUNDS}", f"eval_every={ROUNDS}", "checkpoint_every=0", "engine.workers=1"]
STRATEGIES = {
    "fedavg": ["strategy=fedavg"],
    "savic, adam": ["strategy=savic", "scaling=adam"],
    "Flower's FedAvg": ["strategy._target_=flwr.serverapp.strategy.FedAvg", "strategy.fraction_train=0.5"],
}


def at_once(built: Experiment, cohort: Sequence[Order]) -> list[ClientUpdate]:
    """What `clients.training.train` answers, without the training."""
    (d,) = built.task.initial_params.shape
    if d not in READY:
        READY[d] = torch.full((d,), 0.01)
    statistic = {order.client: READY[d] if order.measure else None for order in cohort}
    return [
        ClientUpdate(order.client, 60, 10, 1.0, READY[d], order.buffers, statistic[order.client])
        for order in cohort
    ]


READY: dict[int, torch.Tensor] = {}


def microseconds_a_client(overrides: list[str]) -> float:
    """Median over the rounds after the first two."""
    parts = ("configure_seconds", "clients_seconds", "aggregate_seconds")
    with tempfile.TemporaryDirectory() as folder, patch("clients.client_app.train", at_once):
        lifecycle.run(compose.config([*WORK, *overrides, f"run_dir={folder}/run"]))
        lines = [
            json.loads(line) for line in (Path(folder) / "run" / "timing.jsonl").read_text().splitlines()
        ]
    return 1e6 * statistics.median(sum(line[part] for part in parts) for line in lines[2:]) / CLIENTS


def seconds(*command: str) -> float:
    """Wall time of a process."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def start() -> dict[str, float]:
    """Seconds: the help text; imports; a whole run of one round with its report; and what it adds to its imports."""
    imports = "import flwr.serverapp, flwr.clientapp, torch, matplotlib.pyplot"
    with tempfile.TemporaryDirectory() as folder:
        run = ["-m", "fedscale_local.cli", "run", "num_clients=10", "clients_per_round=null", "num_rounds=1"]
        took: dict[str, list[float]] = {"help": [], "imports": [], "one round": []}
        for number in range(5):
            took["help"].append(seconds("-m", "fedscale_local.cli", "--help"))
            took["imports"].append(seconds("-c", imports))
            took["one round"].append(seconds(*run, f"run_dir={folder}/{number}"))
    median = {name: round(statistics.median(values), 3) for name, values in took.items()}
    return median | {"beyond imports": round(median["one round"] - median["imports"], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=5, help="%(default)s")
    parser.add_argument("--out", type=Path, help="write the result to this file, as JSON")
    arguments = parser.parse_args()
    seen: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    with patch.object(reports, "write", lambda run_dir: run_dir):
        for _ in range(arguments.passes):
            for name, overrides in STRATEGIES.items():
                seen[name].append(microseconds_a_client(overrides))
    result: dict[str, Any] = {
        "microseconds_a_client_and_round": {
            name: round(statistics.median(values), 1) for name, values in seen.items()
        },
        "parameters": int(next(iter(READY))),
        "start_seconds": start(),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(result, indent=2))
    save(result, arguments.out)


if __name__ == "__main__":
    main()
