"""Every named strategy passes through here, by its one line in tests/gauntlet.py.

Own arrays with unequal shards, multinomial logistic regression, full batches, float64, three of six clients a round,
five rounds: no randomness but who takes part, which the twins are told.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import Message
from gauntlet import STRATEGIES, VARIANTS, Line
from twin import Softmax
from twins_base import FullBatch
from whole_runs import NATURAL, Run, run, save_arrays

from fedscale_local import compose, lifecycle
from fedscale_local.engines.in_process import InProcessGrid
from fedscale_local.randomness import generator
from fedscale_local.tasks import Looped

SIZES, FEATURES, CLASSES = (4, 9, 1, 6, 5, 7), 3, 4
D = (FEATURES + 1) * CLASSES
STEPS, STEP_SIZE, CLIENTS, ROUNDS = 3, 0.05, 3, 5
NAMES = sorted(STRATEGIES)


@pytest.fixture(scope="module")
def problem() -> Softmax:
    return Softmax.drawn(SIZES, FEATURES, CLASSES)


@pytest.fixture(scope="module")
def arrays(problem: Softmax, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_arrays(tmp_path_factory.mktemp("arrays") / "six.npz", problem.features, problem.targets)


def small(run_dir: Path, arrays: Path, name: str, line: Line | None = None, **more: Any) -> Run:
    """A run of this strategy; more: keys with `__` for the dots."""
    settings = {
        "data.path": str(arrays),
        "dtype": "float64",
        "num_rounds": ROUNDS,
        "clients_per_round": CLIENTS,
        "client.batch_size": "full",
        "client.local_steps": STEPS,
        "client.step_size": STEP_SIZE,
        "engine.mode": "looped",
    }
    settings |= (line or STRATEGIES[name]).settings
    return run(
        run_dir,
        *NATURAL,
        f"strategy={name}",
        settings=settings | {k.replace("__", "."): v for k, v in more.items()},
    )


def vector(finished: Run) -> np.ndarray:
    """Weight, then bias, as one vector (d,)."""
    named = finished.tensors
    return np.concatenate([named[name].ravel() for name in sorted(named, key=lambda n: -named[n].ndim)])


def test_every_strategy_that_can_be_chosen_is_here() -> None:
    choices = set(compose.groups()["strategy"].choices)
    assert choices - {"flower", "savic"} == set(STRATEGIES)


@pytest.mark.parametrize("mode", ["looped", "stacked"])
@pytest.mark.parametrize(("name", "line"), [*STRATEGIES.items(), *VARIANTS])
def test_it_equals_its_slow_twin(
    name: str, line: Line, mode: str, problem: Softmax, arrays: Path, tmp_path: Path
) -> None:
    finished = small(tmp_path / "run", arrays, name, line, engine__mode=mode)
    rounds = [entry["clients"] for entry in finished.lines]
    told = dict(line.told)
    if "probe" in inspect.signature(line.twin).parameters:
        order = torch.randperm(len(SIZES), generator=generator(0, "sampling", 0))
        told["probe"] = sorted(order[:CLIENTS].tolist())
    assert not any(entry["failures"] for entry in finished.lines)
    expected = line.twin(FullBatch(problem), np.zeros(D), rounds, STEPS, STEP_SIZE, **told)[-1]
    assert np.abs(expected).max() > 0.01, "a run that goes nowhere compares nothing"
    np.testing.assert_allclose(vector(finished), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_stacked_equals_looped_where_clients_step_unequally(name: str, arrays: Path, tmp_path: Path) -> None:
    """Mini-batches of two, two passes: two to ten local steps; within a stack, clients end one after the other."""
    more: dict[str, Any] = {"client__local_epochs": 2, "client__local_steps": None, "client__batch_size": 2}
    more |= {"model__name": "mlp", "model__hidden": [5]}
    looped = small(tmp_path / "looped", arrays, name, **more)
    # Clients of a stack that fails are done again one by one: here that must not happen.
    with patch.object(Looped, "gradient", side_effect=AssertionError("not stacked")):
        stacked = small(tmp_path / "stacked", arrays, name, engine__mode="stacked", **more)
    assert not any(entry["failures"] for entry in looped.lines + stacked.lines)
    size = np.abs(looped.model).max()
    np.testing.assert_allclose(stacked.model, looped.model, rtol=0, atol=1e-12 * size)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_replies_changes_nothing(
    name: str, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small(tmp_path / "1", arrays, name)
    send = InProcessGrid.send_and_receive

    def reversed_replies(self: InProcessGrid, messages: Iterable[Message], **options: Any) -> list[Message]:
        return list(send(self, list(messages)[::-1], **options))

    monkeypatch.setattr(InProcessGrid, "send_and_receive", reversed_replies)
    assert small(tmp_path / "2", arrays, name).bytes == first.bytes


@pytest.mark.parametrize("name", NAMES)
def test_the_type_of_numbers_is_kept(name: str, arrays: Path, tmp_path: Path) -> None:
    single = small(tmp_path / "32", arrays, name, dtype="float32", checkpoint_every=1)
    assert {str(tensor.dtype) for tensor in single.tensors.values()} == {"float32"}
    double = small(tmp_path / "64", arrays, name)
    np.testing.assert_allclose(vector(single), vector(double), rtol=0, atol=1e-3)
    sent = [{run.lines[i][key] for run in (single,)} for i in (1, 2) for key in ("bytes_up", "bytes_down")]
    assert all(sent)
    assert [2 * line["bytes_up"] for line in single.lines] == [line["bytes_up"] for line in double.lines]
    assert [2 * line["bytes_down"] for line in single.lines] == [line["bytes_down"] for line in double.lines]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_carried_on_from_any_round_ends_with_the_same_bytes(
    name: str, arrays: Path, tmp_path: Path
) -> None:
    whole = small(tmp_path / "whole", arrays, name, checkpoint_every=1)
    for stop in (1, 3, ROUNDS):
        part = small(tmp_path / f"part-{stop}", arrays, name, checkpoint_every=1, num_rounds=stop)
        shutil.copy(whole.run_dir / "config.yaml", part.run_dir / "config.yaml")
        lifecycle.resume(part.run_dir)
        for file in ("rounds.jsonl", "model.safetensors"):
            assert (part.run_dir / file).read_bytes() == (whole.run_dir / file).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_has_its_traffic(name: str, arrays: Path, tmp_path: Path) -> None:
    """In each round, or on average over two periods where vectors travel seldom and everybody takes part."""
    line = STRATEGIES[name]
    is_seldom = line.up % 1 > 0
    more = {"clients_per_round": None, "num_rounds": 13} if is_seldom else {}
    finished = small(tmp_path / "run", arrays, name, **more)
    for way, vectors in (("up", line.up), ("down", line.down)):
        sent = [entry[f"bytes_{way}"] - entry.get(f"probe_bytes_{way}", 0) for entry in finished.lines]
        multiples = [count / (8 * D * len(finished.lines[0]["clients"])) for count in sent]
        for multiple in [np.mean(multiples[1:])] if is_seldom else multiples:
            # Beside a vector there may be its clock and a number for each of two tensors.
            assert vectors <= multiple <= vectors + 3 / D
