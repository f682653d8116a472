"""How many replies a round needs, and what happens with fewer: the model, the records and the error."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from whole_runs import NATURAL, Run, run, save_arrays

from clients import training
from fedscale_local import flower_adapter as adapter
from fedscale_local import quorum
from fedscale_local.engines.in_process import FIRST_NODE, InProcessGrid
from fedscale_local.errors import FedscaleError
from fedscale_local.run_dir import read

CLIENTS = 4
SETTINGS: dict[str, Any] = {"num_rounds": 3, "client.local_steps": 2, "client.batch_size": "full"}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    x, y = zip(*[(rng.normal(size=(5, 3)), rng.integers(0, 2, 5)) for _ in range(CLIENTS)], strict=True)
    return save_arrays(tmp_path_factory.mktemp("arrays") / "four.npz", list(x), list(y))


def small(run_dir: Path, arrays: Path, **settings: Any) -> Run:
    return run(
        run_dir,
        *NATURAL,
        "strategy=fedavg",
        "model=logistic",
        "engine.mode=looped",
        settings=SETTINGS | {"data.path": str(arrays)} | settings,
    )


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """Call of the grid, from 1 -> the clients that do not answer it."""
    absent: dict[int, set[int]] = {}
    send, calls = InProcessGrid.send_and_receive, []

    def losing(grid: InProcessGrid, messages: Iterable[Message], **options: Any) -> list[Message]:
        calls.append(list(messages))
        lost = {client + FIRST_NODE for client in absent.get(len(calls), set())}
        reached = [message for message in calls[-1] if message.metadata.dst_node_id not in lost]
        replies = list(send(grid, reached, **options))
        for message in calls[-1]:  # sent, but never answered
            if message.metadata.dst_node_id in lost:
                adapter.stamp(message, f"lost by {message.metadata.dst_node_id}")
        return replies

    monkeypatch.setattr(InProcessGrid, "send_and_receive", losing)
    monkeypatch.setattr(quorum, "PAUSE_SECONDS", 0.0)
    return absent


def test_a_round_with_too_few_replies_is_skipped(
    silent: dict[int, set[int]], arrays: Path, tmp_path: Path
) -> None:
    silent[2] = {0, 1}
    three = small(tmp_path / "3", arrays, min_replies=3)
    reasons = [failure["reason"] for failure in three.lines[1]["failures"]]
    assert reasons == ["no reply in time"] * 2 + ["2 of 4 replies can be used, min_replies=3: none is used"]
    assert [line["train_loss"] is None for line in three.lines] == [False, True, False]


def test_as_many_as_needed_are_enough(silent: dict[int, set[int]], arrays: Path, tmp_path: Path) -> None:
    silent[2] = {0, 1}
    two = small(tmp_path / "2", arrays, min_replies=2)
    assert [failure["client"] for failure in two.lines[1]["failures"]] == [0, 1]
    assert two.lines[1]["train_loss"] is not None


def test_waiting_ends_as_if_nobody_had_been_late(
    silent: dict[int, set[int]], arrays: Path, tmp_path: Path
) -> None:
    whole = small(tmp_path / "whole", arrays)
    silent[5], silent[6] = {0, 3}, {3}  # round 2 of the second run, and the first time they are asked again
    waited = small(tmp_path / "waited", arrays, min_replies=4, on_too_few="wait")
    np.testing.assert_array_equal(waited.model, whole.model)
    assert waited.lines[1]["failures"] == []
    extra = waited.lines[1]["bytes_down"] / whole.lines[1]["bytes_down"]
    assert extra == (4 + 2 + 1) / 4, "what is sent again is counted again"


def test_stopping_is_an_error_that_names_clients_and_leaves_what_was_done(
    silent: dict[int, set[int]], arrays: Path, tmp_path: Path
) -> None:
    silent[2] = {1}
    with pytest.raises(FedscaleError, match=r"3 of 4 replies .*min_replies=4 \(client 1: no reply in time\)"):
        small(tmp_path / "stop", arrays, min_replies=4, on_too_few="stop")
    left = read(tmp_path / "stop")
    assert [line["round"] for line in left.rounds] == [1]
    assert left.manifest["exit"].startswith("failed")


THEIRS = {
    "client.name": "custom",
    "client._target_": "foreign_app.sleeping",
    "client.learning-rate": 0.1,
    "dtype": "float64",
    "strategy": {"name": "flower", "_target_": "flwr.serverapp.strategy.FedAvg"},
}


@pytest.mark.timeout(60, method="thread")  # the usual one has an alarm of its own
@pytest.mark.parametrize("app", ["ours", "ours, on workers", "theirs"])
def test_a_client_that_hangs_costs_one_round_timeout(
    app: str, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = training._batches

    def hanging(experiment: Any, order: training.Order) -> Any:
        if (order.client, order.round) == (2, 2):
            time.sleep(100_000)
        return batches(experiment, order)

    monkeypatch.setattr(training, "_batches", hanging)
    more = THEIRS | {"client.file": str(arrays)} if app == "theirs" else {}
    more |= {"engine.workers": 4 if "workers" in app else 1, "round_timeout": 4.0}
    found = small(tmp_path / "run", arrays, **more)
    late = [[failure["client"] for failure in line["failures"]] for line in found.lines]
    assert late[0] == late[2] == []
    assert late[1] == [2] if "workers" in app else 2 in late[1], (
        "in one process those behind it in turn as well"
    )
    assert all("no reply in time" in failure["reason"] for failure in found.lines[1]["failures"])
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
