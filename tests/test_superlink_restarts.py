"""The SuperLink dies and comes back, or freezes, while the command lives: a run goes on, or ends with an error."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import real_processes
import whole_runs
from real_processes import federated, lines, nothing_left

from fedscale_local import federation
from fedscale_local.engines import flower_command, submit
from fedscale_local.errors import FedscaleError

NODES, ROUNDS = 2, 6
until = partial(real_processes.until, seconds=400)
PROBLEM = ("data=synthetic", "partition=natural", "model=logistic", "scaling=adam", "eval_clients=false")
PROBLEM += (f"num_clients={NODES}", "clients_per_round=null", f"num_rounds={ROUNDS}", "checkpoint_every=1")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
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


def test_a_run_survives_a_superlink_that_is_started_again_and_ends_at_one_that_is_frozen(
    nodes: Path, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"

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
    on_nodes = {"superlink.federation": str(nodes), "round_timeout": 120.0}
    try:
        with pytest.raises(
            FedscaleError, match=r"says nothing of the run any more .*: no answer in 30 s"
        ) as told:
            whole_runs.run(run_dir, *PROBLEM, "engine=superlink", settings=on_nodes)
    finally:
        helper.join()
        os.kill(superlink(), signal.SIGKILL)
    assert f"carry on with: fedscale-local resume {run_dir}" in told.value.__notes__
    found = lines(run_dir)
    assert 3 <= len(found) < ROUNDS
    assert all(line["failures"] == [] for line in found), "what was under way is not lost"
