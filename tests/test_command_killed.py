"""A run on SuperNodes whose command, and then whose SuperLink, are ended: each time it can be carried on.

A SuperLink that comes back, or freezes, while the command lives: the run goes on, or ends with an error.

A federation of its own, of two nodes: every message to one starts a process there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import real_processes
import whole_runs
from real_processes import federated, lines, nothing_left

from fedscale_local import federation
from fedscale_local.engines import flower_command, submit
from fedscale_local.errors import FedscaleError

NODES = 2
until = partial(real_processes.until, seconds=400)
OURS = ("data=synthetic", "partition=natural", "model=logistic", "scaling=adam", "eval_clients=false")
OURS += (f"num_clients={NODES}", "clients_per_round=null")
LOOPED = ("engine.mode=looped", "engine.workers=1")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc"),
]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Path]:
    with federated(tmp_path / "federation", NODES) as folder:
        yield folder


@pytest.fixture
def outside(nodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with nothing_left(nodes, tmp_path / "tmp", monkeypatch) as folder:
        yield folder


def test_a_run_whose_command_and_superlink_are_killed_ends_with_the_bytes_of_an_undisturbed_one(
    nodes: Path, outside: Path, tmp_path: Path
) -> None:
    run_dir, rounds = tmp_path / "run", 8
    overrides = [
        *OURS,
        f"num_rounds={rounds}",
        "checkpoint_every=1",
        f"superlink.federation={nodes}",
        f"run_dir={run_dir}",
        "engine=superlink",
    ]
    home = nodes / "superlink"

    def disturbed(arguments: list[str], at: int, trouble: Callable[[int], None]) -> tuple[int, str]:
        """Status and message of a command that meets with trouble after round `at`."""
        command = [sys.executable, "-m", "fedscale_local.cli", *arguments]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            until(lambda: len(lines(run_dir)) >= at or process.poll() is not None)
            time.sleep(0.5)  # within the next round
            trouble(process.pid)
            said = process.communicate(timeout=400)[1]
        until(lambda: not list(outside.glob("fedscale-*")))
        assert len(lines(run_dir)) < rounds
        return process.returncode, said

    assert disturbed(["run", *overrides], 1, lambda process: os.kill(process, signal.SIGINT))[0] == 130
    told = flower_command.flwr(["list", flower_command.HERE], home, flower_command.environment(home))
    assert {row["status"] for row in told["runs"]} <= {"finished:stopped", "finished:completed"}

    carry_on = ["resume", str(run_dir)]
    assert disturbed(carry_on, 2, lambda process: os.kill(process, signal.SIGKILL))[0] == -signal.SIGKILL

    def end_superlink(process: int) -> None:
        os.kill(federation.status(nodes)["processes"]["superlink"], signal.SIGKILL)

    status, said = disturbed(carry_on, 3, end_superlink)
    assert (status, said.count("fedscale-local: ")) == (1, 1)
    assert "the SuperLink says nothing of the run any more" in said
    assert f"carry on with fedscale-local resume {run_dir}" in said and "Traceback" not in said
    status, said = disturbed(carry_on, 99, lambda process: None)
    assert status == 1 and "nobody answers there" in said
    assert federation.restart(nodes) == 1
    done = subprocess.run(
        [sys.executable, "-m", "fedscale_local.cli", *carry_on], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    here = whole_runs.run(tmp_path / "here", *OURS, *LOOPED, f"num_rounds={rounds}")
    assert (
        tuple((run_dir / name).read_bytes() for name in ("rounds.jsonl", "model.safetensors")) == here.bytes
    )


def test_a_run_survives_a_superlink_that_is_started_again_and_ends_at_one_that_is_frozen(
    nodes: Path, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, rounds = tmp_path / "run", 6

    def superlink() -> int:
        process: int = federation.status(nodes)["processes"]["superlink"]
        return process

    def trouble() -> None:
        until(lambda: len(lines(run_dir)) == 1)
        time.sleep(1)  # within round 2
        os.kill(superlink(), signal.SIGKILL)
        time.sleep(3)
        federation.start_superlink(nodes)
        until(lambda: len(lines(run_dir)) >= 3)
        os.kill(superlink(), signal.SIGSTOP)

    monkeypatch.setattr(submit, "WATCH_SECONDS", 5.0)
    monkeypatch.setattr(flower_command, "ANSWER_SECONDS", 30.0)
    helper = threading.Thread(target=trouble)
    helper.start()
    on_nodes = {"superlink.federation": str(nodes), "round_timeout": 120.0, "num_rounds": rounds}
    try:
        with pytest.raises(
            FedscaleError, match=r"says nothing of the run any more .*: no answer in 30 s"
        ) as told:
            whole_runs.run(run_dir, *OURS, "checkpoint_every=1", "engine=superlink", settings=on_nodes)
    finally:
        helper.join()
        os.kill(superlink(), signal.SIGKILL)
    assert f"carry on with: fedscale-local resume {run_dir}" in told.value.__notes__
    found = lines(run_dir)
    assert 3 <= len(found) < rounds
    assert all(line["failures"] == [] for line in found), "what was under way is not lost"
