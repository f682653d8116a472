"""sys.exit() of a user's code is a failure of its client, or of the run: never an end that looks like success."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import touchy_model
import whole_runs
from flwr.app import ConfigRecord, RecordDict
from whole_runs import NATURAL, configured

from clients.client_app import app
from fedscale_local import chunk, cli
from fedscale_local import flower_adapter as adapter
from fedscale_local.config import to_json

SIZES, BAD = (9, 3, 4, 7), 2
SETTINGS: dict[str, Any] = {"num_rounds": 3, "client.local_steps": 2, "client.batch_size": "full"}
FEDAVG = ("strategy._target_=flwr.serverapp.strategy.FedAvg", "client._target_=exiting_app.app")
THEIRS = {"client.learning-rate": 0.1, "dtype": "float64"}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(5)
    x, y = [rng.normal(size=(n, 3)) for n in SIZES], [rng.integers(0, 3, n) for n in SIZES]
    return whole_runs.save_arrays(tmp_path_factory.mktemp("arrays") / "four.npz", x, y)


@pytest.fixture(scope="module")
def touchy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return touchy_model.save(tmp_path_factory.mktemp("arrays") / "four.npz", SIZES, {BAD: touchy_model.EXIT})


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_exits_fails_its_client(workers: int, touchy: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"data.path": str(touchy), "engine.workers": workers, "eval_clients": False}
    overrides = (*NATURAL, "model=custom", "model._target_=touchy_model.Touchy", "strategy=fedavg")
    done = whole_runs.run(tmp_path / "run", *overrides, "engine.mode=looped", settings=settings)
    assert [line["failures"] for line in done.lines] == [
        [{"client": BAD, "reason": f"client {BAD}, round {round}, train: SystemExit: 0"}]
        for round in (1, 2, 3)
    ]
    with whole_runs.absent(BAD):
        without = whole_runs.run(tmp_path / "without", *overrides, "engine.mode=looped", settings=settings)
    np.testing.assert_array_equal(done.model, without.model)


def test_a_client_app_that_exits_fails_its_client_which_keeps_nothing_of_that_call(
    arrays: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | THEIRS | {"data.path": str(arrays), "client.file": str(arrays)}
    done = whole_runs.run(tmp_path / "run", *NATURAL, *FEDAVG, settings=settings)
    failed = {"client": 1, "reason": "SystemExit: 0"}
    assert [line["failures"] for line in done.lines] == [[], [failed], [failed]], (
        "it counts one call, not two"
    )


def test_on_a_node_a_client_app_that_exits_answers_with_an_error(arrays: Path) -> None:
    config = configured(*NATURAL, *FEDAVG, settings=THEIRS | {"data.path": str(arrays)})
    context = adapter.new_context(3, {"partition-id": 1}, {"config": to_json(config)})
    context.state["calls"] = ConfigRecord({"count": 1})
    message = adapter.stamp(
        adapter.message_to(3, RecordDict({"config": ConfigRecord({"server-round": 2})})), "1"
    )
    assert str(app(message, context).error.reason) == "SystemExit: 0"
    assert context.state["calls"] == ConfigRecord({"count": 1})


@pytest.mark.parametrize("kind", ["train", adapter.CHUNK])
def test_on_a_node_what_exits_before_it_is_a_model_is_an_error(kind: str, arrays: Path) -> None:
    overrides = ("model=custom", "model._target_=exiting_app.Model", "+model.is_made=false")
    config = configured(*NATURAL, *overrides, settings={"data.path": str(arrays)})
    context = adapter.new_context(3, {"partition-id": 1}, {"config": to_json(config)})
    told = RecordDict({"config": ConfigRecord({"server-round": 1})})
    content = chunk.pack([chunk.Part(1, told, RecordDict())]) if kind == adapter.CHUNK else told
    reply = app(adapter.stamp(adapter.message_to(3, content, kind), "1"), context)
    assert "calling it raised SystemExit: no such device" in str(reply.error.reason)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("exiting_app.Model +model.is_made=false", "calling it raised SystemExit: no such device"),
        ("exiting_app.Model +model.is_made=true", "it fails on two examples, float32 (2, 3): 0; make"),
    ],
)
def test_a_model_that_exits_before_the_run_is_refused(
    model: str, says: str, arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*NATURAL, f"data.path={arrays}", "model=custom", *f"model._target_={model}".split()]
    assert cli.main(["run", *overrides, f"run_dir={tmp_path / 'run'}"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_strategy_that_exits_ends_the_run_with_an_error(
    arrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    overrides = [
        *NATURAL,
        f"data.path={arrays}",
        "strategy._target_=exiting_app.Strategy",
        "engine.mode=looped",
    ]
    assert cli.main(["run", *overrides, "num_rounds=3", f"run_dir={run_dir}"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("fedscale-local: sys.exit() was called in a round; carry on with: ")
    assert json.loads((run_dir / "manifest.json").read_text())["exit"].startswith("failed: ")
    assert [json.loads(line)["round"] for line in (run_dir / "rounds.jsonl").read_text().splitlines()] == [1]
    assert (run_dir / "checkpoints" / "round-000001.json").exists()
