"""A run that was killed, carried on, ends with the same bytes as one that was left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedscale_local import compose, lifecycle

SMALL = (
    "num_clients=12",
    "clients_per_round=4",
    "num_rounds=6",
    "model=logistic",
    "client.local_steps=2",
    "engine.workers=1",
    "checkpoint_every=2",
)
METHODS = {
    "fedavg": ("strategy=fedavg",),
    "adam": ("scaling=adam",),
    "oasis, seldom refreshed": ("scaling=oasis", "scaling.refresh_every=2"),
    "displacement": ("scaling=adam", "scaling.statistic=displacement"),
    "own D, mixed, momentum kept": (
        "scaling=adam",
        "scaling.scope=local",
        "strategy.mixing=preconditioned",
        "client.momentum=0.5",
        "client.momentum_buffer=kept",
    ),
    "momentum averaged": ("scaling=adam", "client.momentum=0.5", "client.momentum_buffer=averaged"),
    "Flower's FedAdam": (
        "strategy=flower",
        "strategy._target_=flwr.serverapp.strategy.FedAdam",
        "+strategy.fraction_train=0.34",
    ),
    "Flower's FedAvgM": (
        "strategy=flower",
        "strategy._target_=flwr.serverapp.strategy.FedAvgM",
        "+strategy.server_momentum=0.9",
    ),
}


def results(run_dir: Path) -> tuple[bytes, bytes]:
    return (run_dir / "rounds.jsonl").read_bytes(), (run_dir / "model.safetensors").read_bytes()


@pytest.mark.parametrize("overrides", METHODS.values(), ids=METHODS.keys())
def test_resume_at_every_checkpoint_ends_with_the_same_bytes(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    whole = lifecycle.run(compose.config([*SMALL, *overrides, f"run_dir={tmp_path / 'whole'}"]))
    for stop in (2, 4, 6):
        copy = tmp_path / f"stopped-{stop}"
        shutil.copytree(whole, copy)
        (copy / "model.safetensors").unlink()
        for kept in (copy / "checkpoints").iterdir():
            if int(kept.stem.removeprefix("round-")) > stop:
                kept.unlink()
        assert results(lifecycle.resume(copy)) == results(whole)


def test_a_torn_checkpoint_is_passed_over_and_a_torn_line_forgotten(tmp_path: Path) -> None:
    whole = lifecycle.run(compose.config([*SMALL, f"run_dir={tmp_path / 'whole'}"]))
    copy = tmp_path / "torn"
    shutil.copytree(whole, copy)
    newest = copy / "checkpoints" / "round-000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with (copy / "rounds.jsonl").open("a") as file:
        file.write('{"round": 7, "cli')
    assert results(lifecycle.resume(copy)) == results(whole)


def test_killed_and_resumed_run_equals_the_undisturbed_one(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fedscale_local.cli",
        "run",
        *SMALL,
        "num_rounds=300",
        "checkpoint_every=5",
    ]
    subprocess.run([*command, f"run_dir={tmp_path / 'whole'}"], check=True, capture_output=True)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, f"run_dir={killed}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(killed.glob("checkpoints/round-000[0-9][1-9]*.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").exists()
    subprocess.run(
        [sys.executable, "-m", "fedscale_local.cli", "resume", str(killed)], check=True, capture_output=True
    )
    assert results(killed) == results(tmp_path / "whole")
