"""Same seed, same bytes: rounds.jsonl and model.safetensors depend on the configuration and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from whole_runs import NATURAL, Run, run, save_arrays

from fedscale_local.engines.in_process import InProcessGrid

METHODS = {
    "fedavg": ("strategy=fedavg",),
    "savic": ("scaling=adam",),
    "second order": ("scaling=oasis",),
    "sampled labels": ("scaling=sophia",),
    "local": ("scaling=adam", "scaling.scope=local", "strategy.mixing=preconditioned"),
    "displacement": ("scaling=adam", "scaling.statistic=displacement", "client.momentum=0.5"),
    "flower": ("strategy=flower", "strategy.fraction_train=0.5"),
}
SETTINGS = {
    "num_rounds": 4,
    "clients_per_round": 4,
    "client.local_steps": 3,
    "client.batch_size": 5,
    "client.step_size": 0.1,
    "model.hidden": [6],
}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    sizes = (12, 3, 7, 9, 20, 5, 8)
    x = [rng.normal(size=(n, 4)).astype(np.float32) for n in sizes]
    y = [rng.integers(0, 3, n) for n in sizes]
    test = rng.normal(size=(30, 4)).astype(np.float32)
    folder = tmp_path_factory.mktemp("arrays")
    return save_arrays(folder / "seven.npz", x, y, x_test=test, y_test=rng.integers(0, 3, 30))


def small(run_dir: Path, arrays: Path, *overrides: str, **more: Any) -> Run:
    settings = SETTINGS | {"data.path": str(arrays)} | more
    return run(run_dir, *NATURAL, "model=mlp", *overrides, settings=settings)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_everything(method: str, arrays: Path, tmp_path: Path) -> None:
    first = small(tmp_path / "1", arrays, *METHODS[method])
    # Whatever the process did before has no part in it.
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    again = small(tmp_path / "2", arrays, *METHODS[method])
    assert again.bytes == first.bytes
    other = small(tmp_path / "3", arrays, *METHODS[method], seed=1)
    assert other.lines != first.lines
    assert not np.array_equal(other.model, first.model)
    if method != "flower":
        assert [line["clients"] for line in other.lines] != [line["clients"] for line in first.lines]


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_replies_changes_nothing(
    method: str, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small(tmp_path / "1", arrays, *METHODS[method])
    send = InProcessGrid.send_and_receive
    permuted = []

    def shuffled(self: InProcessGrid, messages: Iterable[Message], **options: Any) -> list[Message]:
        """Messages reach the clients, and replies the server, in an order of no meaning."""
        stamped = list(messages)
        order = np.random.default_rng(len(permuted)).permutation(len(stamped))
        permuted.append(order)
        replies = list(send(self, [stamped[i] for i in order], **options))
        return [replies[i] for i in order[::-1]]

    monkeypatch.setattr(InProcessGrid, "send_and_receive", shuffled)
    assert small(tmp_path / "2", arrays, *METHODS[method]).bytes == first.bytes
    assert any((order != np.sort(order)).any() for order in permuted)


def test_the_order_in_which_nodes_are_listed_changes_nothing(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small(tmp_path / "1", arrays, *METHODS["savic"])
    monkeypatch.setattr(InProcessGrid, "get_node_ids", lambda self: list(self.node_of_client)[::-1])
    assert small(tmp_path / "2", arrays, *METHODS["savic"]).bytes == first.bytes


def test_partial_participation_is_fair_and_without_repetition(arrays: Path, tmp_path: Path) -> None:
    lines = small(tmp_path / "1", arrays, "scaling=identity", num_rounds=140).lines
    for line in lines:
        assert line["clients"] == sorted(set(line["clients"]))
        assert len(line["clients"]) == 4
    counts = np.bincount(np.concatenate([line["clients"] for line in lines]), minlength=7)
    # Each is drawn with probability 4/7 in 140 rounds: mean 80, standard deviation 5.9.
    assert np.abs(counts - 80).max() < 4 * 5.9


@pytest.mark.parametrize("mode", ["looped", "stacked"])
def test_the_number_of_workers_changes_nothing(mode: str, arrays: Path, tmp_path: Path) -> None:
    runs = [
        small(tmp_path / str(count), arrays, "scaling=adam", **{"engine.workers": count, "engine.mode": mode})
        for count in (1, 2, 3)
    ]
    assert runs[0].bytes == runs[1].bytes == runs[2].bytes
