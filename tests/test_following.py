"""What a run makes of what Flower's command says, and of its silence: a stand-in for `flwr` says it here."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from whole_runs import configured

from fedscale_local import processes
from fedscale_local.engines import flower_command, submit
from fedscale_local.errors import FedscaleError
from fedscale_local.parcels import Inbox

RUNNING = {"success": True, "runs": [{"run-id": "7", "status": "running"}]}


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `flwr` do what these lines of sh say, one line a call and the last one from then on."""

    def prepare(*lines: str) -> dict[str, str]:
        program = tmp_path / "bin" / "flwr"
        program.parent.mkdir()
        cases = "\n".join(f"{number}) {line};;" for number, line in enumerate(lines[:-1]))
        calls = f"n=$(cat {tmp_path}/calls 2>/dev/null || echo 0); echo $((n+1)) > {tmp_path}/calls"
        program.write_text(f"#!/bin/sh\n{calls}\ncase $n in\n{cases}\n*) {lines[-1]};;\nesac\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        return dict(os.environ)

    return prepare


def answer(**told: Any) -> str:
    return f"echo '{json.dumps(told)}'"


def test_an_answer_that_says_no_is_a_failure_whatever_the_exit_status(says: Any, tmp_path: Path) -> None:
    env = says("exit 0", answer(**{"success": False, "error-message": "no such run"}) + "; exit 0")
    with pytest.raises(FedscaleError, match="flwr stop failed"):
        flower_command.flwr(["stop", "7"], tmp_path, env)
    with pytest.raises(FedscaleError, match=r"^flwr stop failed: no such run$"):
        flower_command.flwr(["stop", "7"], tmp_path, env)


def test_a_run_that_is_not_taken_is_no_run(says: Any, tmp_path: Path) -> None:
    """`flwr run` ends with status 0 and without a run's id: nothing is followed, and nothing is stopped."""
    env = says(answer(**{"success": False, "error-message": "FAB too large"}))
    config = configured("data=synthetic", settings={"run_dir": str(tmp_path / "run")})
    with pytest.raises(FedscaleError, match=r"^flwr run failed: FAB too large$"):
        submit.run_app(config, tmp_path, env)
    assert (tmp_path / "calls").read_text().strip() == "1"


def test_who_does_not_answer_is_not_waited_for(
    says: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_command, "ANSWER_SECONDS", 1.0)
    env = says(f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    with pytest.raises(FedscaleError, match=r"^flwr list failed: no answer in 1 s$"):
        flower_command.flwr(["list"], tmp_path, env)
    assert not processes.is_alive(int((tmp_path / "pid").read_text()))


def test_a_superlink_that_comes_back_is_asked_again_and_one_that_does_not_is_named(
    says: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured("data=synthetic", settings={"run_dir": "runs/a"})
    env = says("exit 1", answer(success=True, runs=[]), answer(**RUNNING), "exit 1")
    assert submit._row(config, "7", tmp_path, env)["status"] == "running"
    monkeypatch.setattr(submit, "RETURN_SECONDS", 0.5)
    with pytest.raises(
        FedscaleError, match=r"says nothing of the run any more .*fedscale-local resume runs/a"
    ):
        submit._row(config, "7", tmp_path, env)


def test_a_log_that_nobody_writes_any_more_is_not_followed_for_ever(
    says: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SuperLink answers twice, then no more; whoever waits for its log is ended by then, here or remotely."""
    monkeypatch.setattr(submit, "WATCH_SECONDS", 0.1)
    for number, follow in enumerate((_follow, _receive)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (tmp_path / "calls").unlink(missing_ok=True)
        env = says(answer(**RUNNING), answer(**RUNNING), "exit 1") if number == 0 else dict(os.environ)
        follow(folder, env)
        assert int((tmp_path / "calls").read_text()) == 3


def _follow(folder: Path, env: dict[str, str]) -> None:
    follower = flower_command.start(["sleep", "1000"], folder, folder / "log", env)
    with submit._watched(follower, partial(submit._ask, "7", folder, env)):
        assert follower.wait(timeout=60) < 0


def _receive(folder: Path, env: dict[str, str]) -> None:
    inbox = Inbox(folder, keep=1)
    submit._receive(
        inbox, ["sleep", "1000"], folder, folder / "log", env, partial(submit._ask, "7", folder, env)
    )
    assert not inbox.is_complete


def test_who_is_followed_to_the_end_is_asked_no_more(tmp_path: Path) -> None:
    asked = threading.Event()
    with submit._watched(subprocess.Popen(["true"]), asked.set) as _:
        pass
    time.sleep(0.2)
    assert not asked.is_set()
