"""A sweep that is killed at random moments and finished by the same command tells what an undisturbed one tells."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ARGUMENTS = (
    "run -m data=synthetic data.dimension=4 data.num_classes=3 num_clients=4 num_rounds=12 model=logistic "
    "client.local_steps=1 client.batch_size=4 engine.workers=1 checkpoint_every=1 "
    "strategy=fedavg,savic,scaffold seed=range(5) hydra.sweep.dir=s"
)
NUM_CELLS, NUM_ROUNDS, KILLS = 15, 12, 5


def start(place: Path) -> subprocess.Popen[bytes]:
    place.mkdir(exist_ok=True)
    with (place / "out.txt").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "fedscale_local.cli", *ARGUMENTS.split()],
            cwd=place,
            stdout=out,
            stderr=out,
        )


def finish(place: Path) -> None:
    process = start(place)
    assert process.wait() == 0, (place / "out.txt").read_text()


def rounds_done(place: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (place / "s").glob("*/rounds.jsonl"))


def kill_after(place: Path, num_rounds: int, seconds: float) -> None:
    """Kill the sweep when it has done so many more rounds, and a little later."""
    before, process = rounds_done(place), start(place)
    while rounds_done(place) < before + num_rounds:
        assert process.poll() is None, (place / "out.txt").read_text()
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it was killed"


def told(place: Path) -> dict[str, bytes]:
    """Everything that the seeds determine, and the report without its time stamps."""
    folder = place / "s"
    names = ("rounds.jsonl", "model.safetensors", "partition.json", "config.yaml")
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for name in names
        for path in folder.glob(f"*/{name}")
    }
    stamps = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d")
    for name in ("report.html", "sweep.json"):
        found[name] = stamps.sub(b"", (folder / name).read_bytes())
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_five_times_it_ends_with_the_same_report(tmp_path: Path) -> None:
    draw = random.Random(os.getpid())
    finish(tmp_path / "whole")
    for _ in range(KILLS):
        kill_after(tmp_path / "killed", draw.randrange(NUM_CELLS * NUM_ROUNDS // 6), draw.uniform(0, 0.5))
    assert rounds_done(tmp_path / "killed") < NUM_CELLS * NUM_ROUNDS
    finish(tmp_path / "killed")
    whole, killed = told(tmp_path / "whole"), told(tmp_path / "killed")
    assert len(whole) == 4 * NUM_CELLS + 2 and whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []
    resumed = [
        path
        for path in (tmp_path / "killed" / "s").glob("*/manifest.json")
        if b"resumed" in path.read_bytes()
    ]
    assert resumed, "no kill has hit a run that was under way"
