"""A tuning that is killed at random moments and repeated ends with the study of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from fedscale_local import cli

ARGUMENTS = (
    "tune data=synthetic data.dimension=4 data.num_classes=3 num_clients=4 num_rounds=12 model=logistic "
    "client.local_steps=1 client.batch_size=4 engine.workers=1 checkpoint_every=1 strategy=fedavg,savic "
    "tune.trials=3 tune.prune_after_trials=1 tune.metric=train_loss hydra.sweep.dir=t "
    "client.step_size=tag(log,interval(0.001,1))"
)
KILLS = 3


def start(place: Path, *more: str) -> subprocess.Popen[bytes]:
    place.mkdir(exist_ok=True)
    with (place / "out.txt").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "fedscale_local.cli", *ARGUMENTS.split(), *more],
            cwd=place,
            stdout=out,
            stderr=out,
        )


def finish(place: Path, *more: str) -> None:
    assert start(place, *more).wait() == 0, (place / "out.txt").read_text()


def told(place: Path) -> object:
    return json.loads((place / "t/tuning.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_or_in_parallel_it_ends_with_the_same_trials(tmp_path: Path) -> None:
    draw = random.Random(os.getpid())
    finish(tmp_path / "whole")
    killed = tmp_path / "killed"
    for _ in range(KILLS):
        before, process = len(list(killed.glob("t/*/rounds.jsonl"))), start(killed)
        deadline = time.monotonic() + 300
        while len(list(killed.glob("t/*/rounds.jsonl"))) <= before:
            assert process.poll() is None and time.monotonic() < deadline, (killed / "out.txt").read_text()
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(killed)
    assert told(killed) == told(tmp_path / "whole")
    for name in optuna.get_all_study_names(f"sqlite:///{killed}/t/study.db"):
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{killed}/t/study.db")
        assert len(study.trials) == 3 and all(trial.state.is_finished() for trial in study.trials)
    side_by_side = tmp_path / "side_by_side"
    finish(side_by_side, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert told(side_by_side) == told(tmp_path / "whole")
    assert cli.main(["compare", str(killed / "t"), "--out", str(tmp_path / "page.html")]) == 0
    page = (killed / "t/report.html").read_text()
    assert "<h2>Tuning</h2>" in page and "log 0.001 to 1" in page
