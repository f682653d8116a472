"""Vectors that travel in every k-th round only: their bytes in the rounds that are due, and the same run when resumed.

That the numbers are those of a slow twin is held by the variants in tests/gauntlet.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from whole_runs import NATURAL, Run, absent, run, save_arrays

from fedscale_local import lifecycle, rounds

SIZES, FEATURES, CLASSES = (12, 9, 7, 9), 5, 3
D = (FEATURES + 1) * CLASSES
ROUNDS, BYTES = 8, 8 * D

MOMENTUM = ("client.momentum=0.5", "client.momentum_buffer=averaged")


class Seldom(NamedTuple):
    """A method, the group of the ledger that a vector of it is in, the key of its cadence, and the cadence."""

    group: str
    every: int
    key: str
    overrides: tuple[str, ...]


METHODS = {
    "momentum": Seldom("momentum", 3, "client.momentum_every", ("strategy=fedavg", *MOMENTUM)),
    "momentum, own D": Seldom("momentum", 2, "client.momentum_every", ("scaling.scope=local", *MOMENTUM)),
    "SCAFFOLD": Seldom("control", 3, "strategy.local.control_every", ("strategy=scaffold",)),
    "SCAFFOLD, full gradient": Seldom(
        "control", 2, "strategy.local.control_every", ("strategy=scaffold", "strategy.local.option=1")
    ),
    "SCAFFOLD, kept momentum": Seldom(
        "control", 3, "strategy.local.control_every",
        ("strategy=scaffold", "client.momentum=0.5", "client.momentum_buffer=kept"),
    ),
    "FedMuon": Seldom("control", 3, "strategy.local.control_every", ("strategy=fedmuon",)),
}  # fmt: skip
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    x = [rng.normal(size=(n, FEATURES)) for n in SIZES]
    y = [rng.integers(0, CLASSES, n) for n in SIZES]
    return save_arrays(tmp_path_factory.mktemp("arrays") / "four.npz", x, y)


def small(run_dir: Path, arrays: Path, method: Seldom, **more: Any) -> Run:
    settings = {"data.path": str(arrays), "num_rounds": ROUNDS, "client.local_steps": 2, "dtype": "float64"}
    settings |= {"client.batch_size": 4, method.key: method.every}
    return run(run_dir, *NATURAL, *method.overrides, settings=settings | more)


def sent(line: Mapping[str, Any], way: str, group: str) -> int:
    return line[f"bytes_{way}_by"].get(group, 0)


@EACH
def test_it_goes_up_in_every_kth_round_and_down_in_the_one_after(
    method: Seldom, arrays: Path, tmp_path: Path
) -> None:
    lines = small(tmp_path / "run", arrays, method).lines
    for line in lines:
        since = (line["round"] - 1) % method.every
        assert sent(line, "up", method.group) == len(SIZES) * BYTES * (since == 0)
        is_new = since == 1 % method.every and line["round"] > 1
        assert sent(line, "down", method.group) == len(SIZES) * BYTES * is_new


@EACH
def test_of_two_clients_a_round_it_goes_to_those_that_have_not_got_it(
    method: Seldom, arrays: Path, tmp_path: Path
) -> None:
    lines = small(tmp_path / "run", arrays, method, clients_per_round=2, num_rounds=16).lines
    has: dict[int, int] = {}
    version = 0
    for line in lines:
        lacking = [client for client in line["clients"] if has.get(client, 0) != version]
        assert sent(line, "down", method.group) == len(lacking) * BYTES
        has |= dict.fromkeys(line["clients"], version)
        if (line["round"] - 1) % method.every == 0:
            assert sent(line, "up", method.group) == 2 * BYTES
            version += 1
    assert len({len(line["bytes_down_by"]) for line in lines}) == 2


@EACH
def test_a_run_carried_on_between_two_of_them_ends_with_the_same_bytes(
    method: Seldom, arrays: Path, tmp_path: Path
) -> None:
    more = {"clients_per_round": 3, "checkpoint_every": 1}
    whole = small(tmp_path / "whole", arrays, method, **more)
    for stop in (1, 2, 3):
        part = small(tmp_path / f"part-{stop}", arrays, method, **more, num_rounds=stop)
        shutil.copy(whole.run_dir / "config.yaml", part.run_dir / "config.yaml")
        lifecycle.resume(part.run_dir)
        assert Run(part.run_dir, [], {}).bytes == whole.bytes


def test_two_cadences_go_side_by_side(arrays: Path, tmp_path: Path) -> None:
    """A round in which momentum is sent and the control variate is not changes no control variate."""
    both = Seldom("control", 3, "strategy.local.control_every", ("strategy=scaffold", *MOMENTUM))
    lines = small(tmp_path / "run", arrays, both, **{"client.momentum_every": 2}).lines
    assert not any(line["failures"] for line in lines)
    found = [{group for group in line["bytes_up_by"] if group != "parameters"} for line in lines]
    assert found == [
        {"control", "momentum"}, set(), {"momentum"}, {"control"}, {"momentum"}, set(), {"control", "momentum"}, set(),
    ]  # fmt: skip


@contextmanager
def absent_in_round_1(client: int) -> Iterator[None]:
    """This client fails in the first round."""
    one_round = rounds._round

    def first(*arguments: Any) -> Any:
        if arguments[3] > 1:
            return one_round(*arguments)
        with absent(client):
            return one_round(*arguments)

    with patch("fedscale_local.rounds._round", first):
        yield


@EACH
def test_after_a_first_round_that_did_not_count_clients_are_sent_the_zeros_that_the_server_has(
    method: Seldom, arrays: Path, tmp_path: Path
) -> None:
    """Those that answered have computed with a vector of their own, and nobody knows what they kept of it."""
    with absent_in_round_1(0):
        lines = small(tmp_path / "run", arrays, method, min_replies=4, num_rounds=3).lines
    assert [len(line["failures"]) for line in lines] == [2, 0, 0]
    assert sent(lines[1], "down", method.group) == len(SIZES) * BYTES
