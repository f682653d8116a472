"""What clients keep may lie on disk: the same bytes, and no file that no checkpoint names."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from whole_runs import NATURAL, Run, client_files, configured, left_over, run, save_arrays

from fedscale_local import checkpoint, disk, lifecycle, records, rounds, wire
from fedscale_local.checkpoint_writer import Writer
from fedscale_local.client_store import OnDisk
from fedscale_local.engines.in_process import InProcessGrid

CLIENTS, ROUNDS = 5, 5


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    x = [rng.normal(size=(n, 4)) for n in (12, 3, 7, 9, 5)]
    return save_arrays(
        tmp_path_factory.mktemp("arrays") / "five.npz", x, [rng.integers(0, 3, len(p)) for p in x]
    )


METHODS = {
    "scaffold": ("strategy=scaffold",),
    "kept moments": ("strategy=diloco",),
    "own D": ("scaling=adam", "scaling.scope=local"),
    "none": ("strategy=fedavg",),
}


def settings(arrays: Path, client_state: str, **more: Any) -> dict[str, Any]:
    small = {"data.path": str(arrays), "num_rounds": ROUNDS, "clients_per_round": 2, "client.local_steps": 2}
    return small | {"engine.client_state": client_state} | more


def small(run_dir: Path, arrays: Path, method: str, client_state: str = "disk", **more: Any) -> Run:
    return run(run_dir, *NATURAL, *METHODS[method], settings=settings(arrays, client_state, **more))


def go_on(run_dir: Path, arrays: Path, method: str, client_state: str = "disk", **more: Any) -> None:
    config = configured(*NATURAL, *METHODS[method], settings=settings(arrays, client_state, **more))
    with patch("fedscale_local.reports.write"):
        lifecycle.resume(run_dir, config.model_copy(update={"run_dir": str(run_dir)}))


def results(run_dir: Path) -> tuple[bytes, bytes]:
    return (run_dir / "rounds.jsonl").read_bytes(), (run_dir / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def wholes(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    """What undisturbed runs in memory end with."""
    folder = tmp_path_factory.mktemp("wholes")
    return {method: small(folder / method, arrays, method, "memory").bytes for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_and_no_file_but_those_of_the_checkpoints(
    method: str, arrays: Path, wholes: dict[str, Any], tmp_path: Path
) -> None:
    grids = []
    called = InProcessGrid.send_and_receive

    def watched(self: InProcessGrid, *args: Any, **kwargs: Any) -> Any:
        grids.append(self.states)
        return called(self, *args, **kwargs)

    with patch.object(InProcessGrid, "send_and_receive", watched):
        on_disk = small(tmp_path / "disk", arrays, method, checkpoint_every=1)
    assert on_disk.bytes == wholes[method]
    assert all(isinstance(states, OnDisk) for states in grids)
    assert not left_over(on_disk.run_dir)
    assert bool(client_files(on_disk.run_dir)) == (method != "none")
    kept = checkpoint.newest(on_disk.run_dir).checkpoint
    assert kept is not None and kept.state["clients"] == {}, (
        "what is in files is not in the checkpoint itself"
    )


@pytest.mark.parametrize("method", ["scaffold", "own D"])
@pytest.mark.parametrize(("first", "then"), [("disk", "disk"), ("disk", "memory"), ("memory", "disk")])
def test_carried_on_after_any_round_on_disk_or_in_memory(
    first: str, then: str, method: str, arrays: Path, wholes: dict[str, Any], tmp_path: Path
) -> None:
    for done in range(1, ROUNDS + 1):
        run_dir = small(tmp_path / str(done), arrays, method, first, num_rounds=done).run_dir
        go_on(run_dir, arrays, method, then, checkpoint_every=1, checkpoint_keep=1)
        assert results(run_dir) == wholes[method]
        assert not left_over(run_dir)
        wants_files = then == "disk" if done < ROUNDS else first == "disk"
        assert bool(client_files(run_dir)) == wants_files


@pytest.mark.parametrize("every", [0, 1, 2])
def test_interrupted_in_the_middle_of_a_round_it_goes_on_after_the_one_before(
    every: int, arrays: Path, wholes: dict[str, Any], tmp_path: Path
) -> None:
    """All clients of round 4 have answered, and what they keep is written, when Ctrl-C comes."""
    run_dir, evaluation = tmp_path / "run", rounds._evaluation

    def interrupted(experiment: Any, round: int, model: Any) -> Any:
        if round == 4:
            assert list(run_dir.glob("checkpoints/clients/*.new"))
            raise KeyboardInterrupt
        return evaluation(experiment, round, model)

    with patch.object(rounds, "_evaluation", interrupted), pytest.raises(KeyboardInterrupt):
        small(run_dir, arrays, "scaffold", checkpoint_every=every)
    found = checkpoint.newest(run_dir)
    assert found.checkpoint is not None and found.checkpoint.round == 3 and not found.passed_over
    assert client_files(run_dir) and not left_over(run_dir)
    go_on(run_dir, arrays, "scaffold")
    assert results(run_dir) == wholes["scaffold"]


def test_without_checkpoints_the_files_do_not_grow_in_number(arrays: Path, tmp_path: Path) -> None:
    """After each round there is one a client, as if there were a checkpoint of that round alone."""
    append, counts = records.append_line, []

    def counted(path: Path, record: Any) -> None:
        append(path, record)
        if path.name == "timing.jsonl":
            counts.append(len(list((tmp_path / "run").glob("checkpoints/clients/*"))))

    with patch.object(records, "append_line", counted):
        small(tmp_path / "run", arrays, "scaffold", num_rounds=20)
    assert len(counts) == 20 and max(counts) == CLIENTS
    assert len(client_files(tmp_path / "run")) == CLIENTS and not left_over(tmp_path / "run")


def test_a_checkpoint_that_is_never_written_leaves_no_file(
    arrays: Path, wholes: dict[str, Any], tmp_path: Path
) -> None:
    """The first write ends only after all rounds: the last checkpoint took the place of those between."""
    write, append, done, written = checkpoint.write, disk.append, threading.Event(), []

    def slow(run_dir: Path, kept: checkpoint.Checkpoint, keep: int) -> None:
        assert done.wait(60)
        written.append(kept.round)
        write(run_dir, kept, keep)

    def watched(path: Path, line: bytes) -> None:
        append(path, line)
        if path.name == "timing.jsonl" and json.loads(line)["round"] == ROUNDS:
            done.set()

    with patch.object(checkpoint, "write", slow), patch.object(disk, "append", watched):
        run_dir = small(tmp_path / "run", arrays, "scaffold", checkpoint_every=1).run_dir
    assert len(written) <= 2 and written[-1] == ROUNDS
    assert results(run_dir) == wholes["scaffold"]
    assert not left_over(run_dir)


def test_later_rounds_leave_the_files_of_every_checkpoint_that_is_kept(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After rounds 3 and 6, and after 9 in a run that was carried on and had no other one due; all on disk by then."""
    offer, flush, flushed = Writer.offer, disk.flush, set[str]()

    def written(self: Writer, *arguments: Any) -> None:
        offer(self, *arguments)
        self._raise_failures(wait=True)

    def noted(path: Path) -> None:
        flush(path)
        flushed.add(f"checkpoints/clients/{path.name}")

    monkeypatch.setattr(Writer, "offer", written)
    monkeypatch.setattr(disk, "flush", noted)
    monkeypatch.setattr("fedscale_local.checkpoint_writer.REST", 0)
    run_dir = small(
        tmp_path / "run", arrays, "scaffold", num_rounds=6, checkpoint_every=3, checkpoint_keep=9
    ).run_dir
    go_on(run_dir, arrays, "scaffold", num_rounds=9, checkpoint_keep=9)
    assert client_files(run_dir) <= flushed
    for round in (9, 6, 3):
        found = checkpoint.newest(run_dir)
        assert found.checkpoint is not None and found.checkpoint.round == round and not found.passed_over
        checkpoint.forget_after(run_dir, round - 1)
        assert not left_over(run_dir)


# ---------------------------------------------------------------- damage


def flipped(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def missing(path: Path, other: Path) -> None:
    path.unlink()


def anothers(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


@pytest.mark.parametrize("damage", [flipped, cut, missing, anothers])
def test_a_checkpoint_with_a_damaged_file_is_passed_over(
    damage: Callable[[Path, Path], None], arrays: Path, wholes: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = small(tmp_path / "run", arrays, "scaffold", num_rounds=3).run_dir
    go_on(run_dir, arrays, "scaffold", num_rounds=4)
    last, before = (run_dir / f"checkpoints/clients/{name}" for name in of_rounds(run_dir, 4, 3))
    damage(last, before)
    reasons = checkpoint.newest(run_dir).passed_over
    assert len(reasons) == 1 and last.name in reasons[0]
    assert ("No such file" if damage is missing else "is not what was written") in reasons[0]
    go_on(run_dir, arrays, "scaffold")
    (_, again) = json.loads((run_dir / "manifest.json").read_text())["resumed"]
    assert again["after_round"] == 3 and again["notes"] == [f"a checkpoint is passed over: {reasons[0]}"]
    assert results(run_dir) == wholes["scaffold"]
    assert not left_over(run_dir)


def of_rounds(run_dir: Path, *numbers: int) -> list[str]:
    """The name of a client's file of each of these rounds."""
    names = sorted(Path(name).name for name in client_files(run_dir))
    return [next(name for name in names if name.endswith(f"-{number:06d}.safetensors")) for number in numbers]


def test_a_damaged_file_that_all_checkpoints_name_lets_the_run_begin_anew(
    arrays: Path, wholes: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = small(tmp_path / "run", arrays, "scaffold", num_rounds=3).run_dir
    go_on(run_dir, arrays, "scaffold", num_rounds=4)
    common = set(checkpoint.files(run_dir, 3)) & set(checkpoint.files(run_dir, 4))
    missing(run_dir / min(common), run_dir)
    found = checkpoint.newest(run_dir)
    assert found.checkpoint is None and len(found.passed_over) == 2
    go_on(run_dir, arrays, "scaffold")
    assert results(run_dir) == wholes["scaffold"]


# ---------------------------------------------------------------- the store


def test_a_state_comes_back_as_it_was_and_what_a_round_left_stays(tmp_path: Path) -> None:
    states, vector = OnDisk(tmp_path), torch.tensor([1.5, -2.0])

    def state(clock: int) -> RecordDict:
        return RecordDict({"own": wire.vector_record(vector), "config": ConfigRecord({"clock": clock})})

    def clock(states: OnDisk) -> int:
        return states[7].config_records["config"]["clock"]  # type: ignore[return-value]

    assert 7 not in states and states.settle(1) == ({}, {})
    states[7] = state(3)
    assert list(states) == [7] and clock(states) == 3
    assert torch.equal(wire.from_vector_record(states[7].array_records["own"], 2, torch.float32), vector)
    first = states.settle(2).filed
    assert first[7].round == 2
    states[7] = state(3)
    assert states.settle(3).filed == first, "what is not changed is not written again"
    states[7] = state(4)
    assert (clock(states), clock(OnDisk(tmp_path, first))) == (4, 3)
    second = states.settle(4).filed
    assert (clock(OnDisk(tmp_path, second)), clock(OnDisk(tmp_path, first))) == (4, 3)
    states[7] = state(5)
    states.close()
    assert len(list(tmp_path.glob("checkpoints/clients/*"))) == 2, (
        "what a round wrote that was not done goes with it"
    )
    states[7] = RecordDict()
    assert len(states) == 0 and states.settle(5) == ({}, {})
    assert clock(OnDisk(tmp_path, second)) == 4
