"""Real signals on a real federation: a node killed in a round and started again, and the command interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from whole_runs import configured

from fedscale_local import experiment, federation
from fedscale_local.engines import flower_command

NODES = 3
PROBLEM = ["data=synthetic", "partition=natural", "model=logistic", "strategy=fedavg", "engine=superlink"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc"),
]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "federation"
    federation.up(folder, NODES)
    yield folder
    federation.down(folder)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(condition: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_node_killed_in_a_round_is_missed_and_welcomed_back(nodes: Path, tmp_path: Path) -> None:
    run_dir, problems = tmp_path / "run", []

    def trouble() -> None:
        try:
            until(lambda: len(lines(run_dir)) == 1)
            time.sleep(2)
            os.kill(federation.status(nodes)["processes"]["1"], signal.SIGKILL)
            assert federation.status(nodes)["processes"]["1"] is None
            until(lambda: len(lines(run_dir)) == 3)
            federation.start_node(nodes, 1, NODES, federation.status(nodes)["address"])
        except BaseException as error:
            problems.append(error)

    settings = {"num_clients": NODES, "clients_per_round": None, "num_rounds": 7, "round_timeout": 40.0}
    settings |= {"superlink.federation": str(nodes), "run_dir": str(run_dir)}
    helper = threading.Thread(target=trouble)
    helper.start()
    with patch("fedscale_local.reports.write"):
        experiment.run(configured(*PROBLEM, settings=settings))
    helper.join()
    assert not problems
    found = lines(run_dir)
    assert [line["round"] for line in found] == list(range(1, 8))
    missing = [[failure["client"] for failure in line["failures"]] for line in found]
    assert missing[0] == [] and missing[2] == [1] and missing[-1] == []
    assert all(clients in ([], [1]) for clients in missing)
    assert all(line["train_loss"] is not None for line in found)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_command_leaves_the_federation_and_nothing_else(
    sign: signal.Signals, nodes: Path, tmp_path: Path
) -> None:
    run_dir, outside = tmp_path / "run", tmp_path / "tmp"
    outside.mkdir()
    overrides = [*PROBLEM, f"num_clients={NODES}", "clients_per_round=null", "num_rounds=50"]
    overrides += [f"superlink.federation={nodes}", f"run_dir={run_dir}"]
    command = [sys.executable, "-m", "fedscale_local.cli", "run", *overrides]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(outside)}, stderr=subprocess.PIPE) as process:
        until(lambda: bool(lines(run_dir)))
        process.send_signal(sign)
        process.wait(60)
    assert process.returncode == (130 if sign == signal.SIGINT else -signal.SIGKILL)
    until(lambda: not list(outside.glob("fedscale-*")), 60)
    home = nodes / "superlink"
    if sign == signal.SIGINT:  # the run was stopped, so the nodes are free for another
        said = flower_command.flwr(["list", flower_command.HERE], home, flower_command.environment(home))
        assert [row["status"] for row in said["runs"]] == ["finished:stopped"]
    assert all(federation.status(nodes)["processes"].values())
