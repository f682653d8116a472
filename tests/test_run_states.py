"""However runs are begun, broken off, carried on and extended: each that ends equals one that was left alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from whole_runs import configured

from fedscale_local import disk, lifecycle, run_dir
from fedscale_local.config import Config, from_container

METHODS = {
    "savic": {"scaling": "adam"},
    "scaffold": {"strategy": "scaffold"},
    "fedadam": {"strategy": "fedadam"},
}
MOST = 12


class Killed(BaseException):
    """From some instant on nothing reaches the disk, as when a process is killed."""


class Dying:
    """Stands for the module os inside fedscale_local.disk: after so many calls none is made any more."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if not callable(real):
            return real

        def call(*arguments: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(*arguments)

        return call


class Lives(RuleBasedStateMachine):
    """One run directory through its lives."""

    whole: ClassVar[dict[tuple[str, int], tuple[bytes, bytes]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.run_dir = self.folder / "run"
        self.rounds = 0
        self.method = "savic"
        self.every = 1

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def config(self, run_dir: Path, rounds: int) -> Config:
        return configured(
            "data=quadratic",
            "data.dimension=3",
            "data.examples=4",
            "num_clients=4",
            "clients_per_round=2",
            "client.local_steps=1",
            "engine.workers=1",
            "engine.mode=looped",
            *(f"{key}={value}" for key, value in METHODS[self.method].items()),
            settings={
                "num_rounds": rounds,
                "eval_every": 3,
                "checkpoint_every": self.every,
                "run_dir": str(run_dir),
            },
        )

    def results(self, run_dir: Path) -> tuple[bytes, bytes]:
        return (run_dir / "rounds.jsonl").read_bytes(), (run_dir / "model.safetensors").read_bytes()

    def left_alone(self, rounds: int) -> tuple[bytes, bytes]:
        key = (self.method, rounds)
        if key not in self.whole:
            place = self.folder / f"whole-{rounds}"
            lifecycle.run(self.config(place, rounds))
            self.whole[key] = self.results(place)
        return self.whole[key]

    @initialize(method=st.sampled_from(sorted(METHODS)), rounds=st.integers(1, 5), every=st.integers(0, 3))
    def choose(self, method: str, rounds: int, every: int) -> None:
        self.method, self.rounds, self.every = method, rounds, every

    def live(self, more: int = 0) -> None:
        if (self.run_dir / "manifest.json").exists():
            self.rounds += more
            lifecycle.resume(self.run_dir, self.config(self.run_dir, self.rounds) if more else None)
        else:
            shutil.rmtree(self.run_dir, ignore_errors=True)
            lifecycle.run(self.config(self.run_dir, self.rounds))

    @rule(calls=st.integers(0, 120))
    def is_killed(self, calls: int) -> None:
        with patch.object(disk, "os", Dying(calls)):
            try:
                self.live()
            except Killed:
                return
        self.check()

    @rule()
    def ends(self) -> None:
        self.live()
        self.check()

    @precondition(lambda self: self.rounds < MOST and (self.run_dir / "manifest.json").exists())
    @rule(more=st.integers(1, 3), calls=st.integers(0, 300))
    def is_extended(self, more: int, calls: int) -> None:
        with patch.object(disk, "os", Dying(calls)):
            try:
                self.live(more)
            except Killed:
                return
        self.check()

    def check(self) -> None:
        # An extension that died before it was written down was none.
        rounds = from_container(run_dir.head(self.run_dir)[0]).num_rounds
        self.rounds = rounds
        assert self.results(self.run_dir) == self.left_alone(rounds)


@pytest.fixture(autouse=True, scope="module")
def without_reports() -> Any:
    with patch("fedscale_local.reports.write"):
        yield


class TestFewLives(Lives.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(
        max_examples=5,
        stateful_step_count=6,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.slow
class TestManyLives(Lives.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(
        max_examples=40, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
    )
