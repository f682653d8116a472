"""The fault table on a real federation, with real signals: what a run records, how it ends, and what is left of it.

One federation serves all cases; each has to leave it whole.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import faulty_app
import numpy as np
import pytest
import real_processes
import whole_runs
from real_processes import federated, lines, marked, nothing_left, with_words
from whole_runs import save_arrays

from fedscale_local import federation, keys, processes

NODES, ROUNDS = 4, 10
until = partial(real_processes.until, seconds=400)
AWAY = "its node is not there"
OURS = ("data=synthetic", "partition=natural", "model=logistic", "scaling=adam")
THEIRS = ("data=arrays", "partition=natural", "strategy._target_=flwr.serverapp.strategy.FedAvg")
LOOPED = ("engine.mode=looped", "engine.workers=1")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("device_faults"),
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc"),
]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with federated(tmp_path_factory.mktemp("federation"), NODES) as folder:
        yield folder


@pytest.fixture
def outside(nodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with nothing_left(nodes, tmp_path / "tmp", monkeypatch) as folder:
        yield folder


def run(run_dir: Path, *overrides: str, **settings: Any) -> whole_runs.Run:
    return whole_runs.run(
        run_dir, *overrides, settings={"num_clients": NODES, "clients_per_round": None} | settings
    )


def failed(found: whole_runs.Run) -> list[list[int]]:
    """The clients that failed, round by round."""
    return [[failure["client"] for failure in line["failures"]] for line in found.lines]


@contextmanager
def meanwhile(trouble: Callable[[], None]) -> Iterator[None]:
    problems: list[BaseException] = []

    def work() -> None:
        try:
            trouble()
        except BaseException as error:
            problems.append(error)

    helper = threading.Thread(target=work)
    helper.start()
    yield
    helper.join()
    assert not problems


def test_clients_that_misbehave_are_dropped_and_named(
    nodes: Path, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They raise, return nonsense or 100 MB of it or nothing, hang or die; the others' work is what remains."""
    rng = np.random.default_rng(3)
    x = [rng.normal(size=(n, 3)) for n in (5, 8, 4, 6)]
    arrays = save_arrays(tmp_path / "four.npz", x, [rng.integers(0, 4, len(part)) for part in x])
    settings = {"num_rounds": 6, "dtype": "float64", "client.local_steps": 3, "round_timeout": 90.0}
    settings |= {"data.path": str(arrays), "client.file": str(arrays), "client.learning-rate": 0.1}
    on_nodes = {"superlink.federation": str(nodes)}
    found = run(
        tmp_path / "run",
        *THEIRS,
        "client._target_=faulty_app.app",
        "engine=superlink",
        **settings,
        **on_nodes,
    )
    told = {
        (line["round"], failure["client"]): failure["reason"]
        for line in found.lines
        for failure in line["failures"]
    }
    for case, (_, reason) in faulty_app.FAULTS.items():
        assert told.get(case, "").startswith(reason), f"round and client {case}"
    busy = {case: reason for case, reason in told.items() if case not in faulty_app.FAULTS}
    assert all(round in (4, 5) and client in (2, 3) for round, client in busy), busy
    assert set(busy.values()) <= {"no reply in time"}, (
        "who hung or died is free again within two minutes or so"
    )
    assert found.lines[-1]["failures"] == []
    assert max(len(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) < 2000

    monkeypatch.setattr(faulty_app, "FAULTS", told)
    here = run(tmp_path / "here", *THEIRS, "client._target_=faulty_app.absent", *LOOPED, **settings)
    assert failed(here) == failed(found)
    assert here.bytes[1] == found.bytes[1]


def test_a_node_killed_in_a_round_is_missed_and_welcomed_back_and_one_that_stays_away_is_missed(
    nodes: Path, outside: Path, tmp_path: Path
) -> None:
    """Nor does a run end, or fail, when the command dies by which its log is followed."""
    back, gone, run_dir = 1, 2, tmp_path / "run"

    def trouble() -> None:
        until(lambda: len(lines(run_dir)) == 1)
        (follower,) = with_words("log", with_words("--stream", marked(f"TMPDIR={outside}")))
        os.kill(follower, signal.SIGKILL)
        time.sleep(2)  # within round 2
        for node in (back, gone):
            os.kill(federation.status(nodes)["processes"][str(node)], signal.SIGKILL)
        assert federation.status(nodes)["processes"][str(back)] is None
        until(lambda: len(lines(run_dir)) == 3)
        federation.start_node(nodes, back, NODES, federation.status(nodes)["address"])

    settings = {"num_rounds": ROUNDS, "round_timeout": 90.0, "superlink.federation": str(nodes)}
    with meanwhile(trouble):
        found = run(run_dir, *OURS, "engine=superlink", **settings)
    assert [line["round"] for line in found.lines] == list(range(1, ROUNDS + 1))
    missing = failed(found)
    assert missing[0] == [] and missing[2] == [back, gone] and missing[-1] == [gone]
    assert all(client in (back, gone) for clients in missing for client in clients)
    assert all(line["train_loss"] is not None for line in found.lines)
    assert federation.restart(nodes) == 1
    assert all(federation.status(nodes)["processes"].values())


def test_strangers_are_refused_and_reported(nodes: Path, outside: Path, tmp_path: Path) -> None:
    """A key that nobody registered, a CA of its own, and a registered node that claims another's client."""
    elsewhere, address = tmp_path / "elsewhere", federation.status(nodes)["address"]
    homes = {name: elsewhere / name for name in ("unregistered", "wrong CA", "replaying")}
    for name, home in homes.items():
        home.mkdir(parents=True)
        keys.write_federation(home, ["127.0.0.1"], 1)
        shutil.copy(nodes / "federation.json", home)
        if name != "wrong CA":
            shutil.copy(nodes / "ca.crt", home / "nodes" / "0")
    os.kill(federation.status(nodes)["processes"]["3"], signal.SIGKILL)
    shutil.copy(nodes / "nodes" / "3" / "key", homes["replaying"] / "nodes" / "0")
    logs = {name: home / "nodes" / "0" / "supernode.log" for name, home in homes.items()}
    try:
        for name in ("unregistered", "wrong CA"):
            federation.start_node(homes[name], 0, 1, address)
        until(lambda: "certificate verify failed" in logs["wrong CA"].read_text().lower())
        until(lambda: "failed to activate" in logs["unregistered"].read_text().lower())
        until(lambda: federation._online(nodes / "superlink") == NODES - 1)  # a key serves one node at a time
        federation.start_node(homes["replaying"], 0, 1, address)
        until(lambda: federation._online(nodes / "superlink") == NODES)
        settings = {"num_rounds": 2, "eval_clients": False}
        found = run(
            tmp_path / "run", *OURS, "engine=superlink", **settings, **{"superlink.federation": str(nodes)}
        )
        for name, log in logs.items():
            print(name, log.read_text())
    finally:
        for home in homes.values():
            processes.end(processes.processes_of(home / "nodes" / "0"))
    claim = (
        "the node registered as client-3 says that it serves client 0: refused, its name is that of another"
    )
    reasons = [[failure["reason"] for failure in line["failures"]] for line in found.lines]
    assert set(reasons[0]) == {claim, "its node serves client 0", AWAY} and set(reasons[1]) == {AWAY}
    with whole_runs.absent(3):
        here = run(tmp_path / "here", *OURS, *LOOPED, **settings)
    assert here.bytes[1] == found.bytes[1]
    assert federation.restart(nodes) == 1
