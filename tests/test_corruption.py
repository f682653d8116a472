"""Damaged checkpoints and damaged inputs: never used in silence, never a crash without a message, never code."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from whole_runs import configured

from fedscale_local import checkpoint, lifecycle
from fedscale_local.data.arrays import arrays
from fedscale_local.errors import DataError

FEW, MANY = 60, 1000


def flip(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 3, 20))):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def grow(content: bytes, draw: random.Random) -> bytes:
    return content + draw.randbytes(draw.randrange(1, 50))


def garble(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + draw.randbytes(min(64, len(content) - start)) + content[start + 64 :]


def huge(content: bytes, draw: random.Random) -> bytes:
    """A header that claims to be of any size, as that of safetensors begins with its length."""
    return struct.pack("<Q", draw.choice((2**63 - 1, 2**40, 2**31, 10**8, len(content)))) + content[8:]


def nonsense(content: bytes, draw: random.Random) -> bytes:
    """JSON, but not ours."""
    inside = ["{}", "[]", "null", '{"body": 1}', '{"sha256": "", "body": {}}', "[" * 5000, '"x"', "1e999"]
    return draw.choice(inside).encode()


DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, flip, cut, grow, garble, huge, nonsense)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, of rounds 3 and 4."""
    place = tmp_path_factory.mktemp("runs") / "run"
    with patch("fedscale_local.reports.write"):
        first = configured(
            "data=quadratic",
            "data.dimension=3",
            "data.examples=4",
            "num_clients=3",
            "client.local_steps=1",
            "clients_per_round=2",
            "scaling=adam",
            "scaling.scope=local",
            "engine.workers=1",
            settings={"num_rounds": 3, "run_dir": str(place)},
        )
        lifecycle.run(first)
        lifecycle.resume(place, first.model_copy(update={"num_rounds": 4}))
    assert len(list(place.glob("checkpoints/*"))) == 4
    return place


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if hasattr(one, "clock"):
        return one.clock == other.clock and same(one.value, other.value)
    return type(one) is type(other) and one == other


def damaged_checkpoints(run_dir: Path, place: Path, times: int) -> dict[str, int]:
    """How often each of the outcomes was seen over so many damaged checkpoints."""
    shutil.copytree(run_dir, place)
    folder, draw = place / "checkpoints", random.Random(0)
    content = {file: file.read_bytes() for file in (*folder.iterdir(), place / "rounds.jsonl")}
    good = {4: checkpoint.newest(place).checkpoint}
    (folder / "round-000004.json").unlink()
    good[3] = checkpoint.newest(place).checkpoint
    seen = dict.fromkeys(("newest", "before", "none"), 0)
    files = sorted(content)
    for _ in range(times):
        for file, whole in content.items():
            file.write_bytes(whole)
        if draw.random() < 0.1:  # two files change their places
            one, other = draw.sample(files, 2)
            one.write_bytes(content[other])
            other.write_bytes(content[one])
        else:
            for file in draw.sample(files, draw.choice((1, 1, 2))):
                file.write_bytes(draw.choice(DAMAGE)(content[file], draw))
        found = checkpoint.newest(place)
        if found.checkpoint is not None:
            expected = good[found.checkpoint.round]
            assert expected is not None and same(dict(found.checkpoint.state), dict(expected.state))
            assert found.checkpoint.record == expected.record and found.checkpoint.config == expected.config
        number = {4: 0, 3: 1}.get(found.checkpoint.round if found.checkpoint else 0, 2)
        assert len(found.passed_over) == number and all("round" in reason for reason in found.passed_over)
        seen[("newest", "before", "none")[number]] += 1
    return seen


def damaged_inputs(folder: Path, times: int) -> dict[str, int]:
    """How often a damaged .npz was refused, and how often it was read as what it had been."""
    draw, rng = random.Random(1), np.random.default_rng(2)
    whole = {"x": rng.normal(size=(12, 3)), "y": np.arange(12) % 3, "client": np.arange(12) % 4}
    path, seen = folder / "mine.npz", {"refused": 0, "whole": 0}
    for number in range(times):
        (np.savez_compressed if number % 2 else np.savez)(path, **whole)
        damage = draw.choice(DAMAGE[:5])
        path.write_bytes(damage(path.read_bytes(), draw))
        try:
            read = arrays(SimpleNamespace(name="arrays", path=str(path)))
        except DataError as error:
            assert str(path) in str(error)
            seen["refused"] += 1
        else:
            assert np.array_equal(read.x.numpy(), whole["x"]) and np.array_equal(read.y.numpy(), whole["y"])
            assert read.client is not None and np.array_equal(read.client, whole["client"])
            seen["whole"] += 1
    return seen


def no_pickle(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("a pickle is read")


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that runs code from a file may be reached."""
    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, no_pickle)


def test_some_damaged_checkpoints(run_dir: Path, tmp_path: Path) -> None:
    seen = damaged_checkpoints(run_dir, tmp_path / "copy", FEW)
    assert all(seen.values()), seen


@pytest.mark.slow
def test_a_thousand_damaged_checkpoints(run_dir: Path, tmp_path: Path) -> None:
    seen = damaged_checkpoints(run_dir, tmp_path / "copy", MANY)
    assert seen["before"] > 300, seen


def test_some_damaged_inputs(tmp_path: Path) -> None:
    seen = damaged_inputs(tmp_path, FEW)
    assert seen["refused"] > FEW // 2, seen


@pytest.mark.slow
def test_a_thousand_damaged_inputs(tmp_path: Path) -> None:
    seen = damaged_inputs(tmp_path, MANY)
    assert seen["refused"] > MANY // 2, seen


@pytest.mark.parametrize(
    "body", [{}, {"round": 4}, {"round": "4"}, [], None, {"round": 4, "state": {"x": 1}}]
)
def test_right_sums_over_the_wrong_things_are_refused_too(body: Any, run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "copy")
    file = tmp_path / "copy" / "checkpoints" / "round-000004.json"
    file.write_text(json.dumps({"sha256": checkpoint._sum(body), "body": body}))
    found = checkpoint.newest(tmp_path / "copy")
    assert found.checkpoint is not None and found.checkpoint.round == 3 and len(found.passed_over) == 1
