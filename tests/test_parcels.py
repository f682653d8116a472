"""A run directory that comes back as lines of a log is, byte for byte, the one that was written elsewhere.

Lines are lost, doubled, damaged and swapped on the way; then the log is read again, as a SuperLink keeps it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale_local import checkpoint, parcels, records
from fedscale_local.checkpoint import Checkpoint, Filed
from fedscale_local.engines import flower_command, submit
from fedscale_local.errors import FedscaleError
from fedscale_local.parcels import Inbox, Outbox, Parcel, from_line, packed, to_line, unpack

KEEP, SMALL = 2, 100
"""Checkpoints that are kept, and bytes in a parcel here, so that a checkpoint takes several."""


@pytest.fixture(autouse=True)
def small_parcels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "SIZE", SMALL)


def write_round(run_dir: Path, round: int, clients: Mapping[int, bytes] = MappingProxyType({})) -> None:
    """What the loop writes in a round: its line, the time it took, what clients keep in files, a checkpoint."""
    path = run_dir / "rounds.jsonl"
    before = path.stat().st_size if path.exists() else 0
    record = {"round": round, "train_loss": 1 / round}
    records.append_line(path, record)
    records.append_line(run_dir / "timing.jsonl", {"round": round, "round_seconds": 0.1})
    state = {"params": torch.full((40,), float(round))}
    for node, content in clients.items():
        file = run_dir / checkpoint.client_file(node, round)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    filed = {node: Filed(round, hashlib.sha256(content).hexdigest()) for node, content in clients.items()}
    checkpoint.write(run_dir, Checkpoint(round, state, record, before, {"seed": 1}, filed), KEEP)


def contents(run_dir: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()
    }


def written(run_dir: Path, looks: list[bool], again_from: int = 0) -> list[str]:
    """The lines of a run of len(looks) rounds; looks: is there a look at the directory after this round?

    again_from: the run was carried on from that round's checkpoint, behind which there were more lines already.
    """
    lines: list[str] = []
    if again_from:
        for round in range(1, again_from + 2):
            write_round(run_dir, round)
        checkpoint.forget_after(run_dir, again_from)
    outbox = Outbox(run_dir, lines.append, checkpoint.rounds(run_dir))
    outbox.look()
    if again_from:
        kept = checkpoint.newest(run_dir).checkpoint
        assert kept is not None
        records.rewind(run_dir, kept.round, kept.before, dict(kept.record) | {"test_loss": 2.0})
    for round, is_looked_at in enumerate(looks, start=again_from + 1):
        write_round(run_dir, round)
        if is_looked_at:
            outbox.look()
    records.save_model(run_dir, {"weight": torch.arange(50.0)})
    (run_dir / "clients.json").write_text('{"train_loss": [0.5]}\n')
    outbox.look()
    outbox.send_last()
    outbox.end()
    return lines


@settings(deadline=None, max_examples=20)
@given(st.lists(st.booleans(), min_size=1, max_size=4), st.integers(0, 2))
def test_the_same_files_with_the_same_bytes(looks: list[bool], again_from: int) -> None:
    with TemporaryDirectory() as place:
        there, here = Path(place, "there"), Path(place, "here")
        there.mkdir(), here.mkdir()
        lines = written(there, looks, again_from)
        if again_from in checkpoint.rounds(there):  # what it goes on from is where it came from
            for name in checkpoint.files(there, again_from):
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                (here / name).write_bytes((there / name).read_bytes())
        with Inbox(here, KEEP) as inbox:
            assert all(inbox.take(line + "\n") for line in lines)
        assert inbox.is_complete and not inbox.is_behind
        assert contents(here) == contents(there)
        found = checkpoint.newest(here)
        assert found.checkpoint is not None and not found.passed_over
        assert found.checkpoint.round == again_from + len(looks)


def mishandled(lines: list[str], faults: list[tuple[str, int]]) -> list[str]:
    """What arrives of these lines."""
    lines = list(lines)
    for fault, number in faults:
        place = number % len(lines)
        line = lines[place] or "an empty line"
        if fault == "lost":
            del lines[place]
        elif fault == "doubled":
            lines.insert(number // 7 % len(lines), line)
        elif fault == "cut":
            lines[place] = line[: number % len(line)]
        elif fault == "damaged":
            at = number % len(line)
            lines[place] = line[:at] + chr(ord(line[at]) ^ 1) + line[at + 1 :]
        else:
            other = number // 7 % len(lines)
            lines[place], lines[other] = lines[other], line
    return lines


FAULTS = st.tuples(st.sampled_from(["lost", "doubled", "cut", "damaged", "swapped"]), st.integers(0, 10**6))


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run directory, and the lines that tell of it."""
    there = tmp_path_factory.mktemp("there")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parcels, "SIZE", SMALL)
        return there, written(there, [True, False, True])


@settings(deadline=None, max_examples=40)
@given(st.lists(FAULTS, min_size=1, max_size=6))
def test_whatever_happens_on_the_way_no_file_is_wrong_and_the_kept_log_completes_them(
    sent: tuple[Path, list[str]], faults: list[tuple[str, int]]
) -> None:
    there, lines = sent
    with TemporaryDirectory() as place:
        here = Path(place)
        arrived = mishandled(lines, faults)
        with Inbox(here, KEEP) as inbox:
            for line in arrived:
                inbox.take(line)
            # A complete one has every file; one that is not has lines from the beginning, and whole checkpoints.
            assert inbox.is_complete == (inbox.expected == len(lines))
            for name in parcels.GROWING:
                if (here / name).exists():
                    assert (there / name).read_bytes().startswith((here / name).read_bytes())
            assert not checkpoint.newest(here).passed_over
            for line in lines:
                inbox.take(line)
            assert inbox.is_complete
        assert contents(here) == contents(there)


@given(st.integers(0, 10**9), st.integers(1, 127))
def test_a_line_with_another_character_is_no_parcel(place: int, change: int) -> None:
    parcel = Parcel(3, "rounds.jsonl", True, False, bytes(range(256)))
    line = to_line(parcel)
    assert from_line(line) == parcel
    place %= len(line)
    assert from_line(line[:place] + chr(ord(line[place]) ^ change) + line[place + 1 :]) is None


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/outside",
        "config.yaml",
        "checkpoints/../../x",
        "checkpoints/clients/../x",
        "rounds.jsonl\n",
        "manifest.json",
    ],
)
def test_the_other_host_does_not_choose_where_something_is_written(name: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with Inbox(run_dir, KEEP) as inbox:
        assert inbox.take(to_line(Parcel(0, name, True, True, b"content")))
    assert [*tmp_path.rglob("*")] == [run_dir]


def test_what_is_no_parcel_is_left_to_the_log(tmp_path: Path) -> None:
    assert not Inbox(tmp_path, KEEP).take("INFO: a line of the log\n")


def test_a_stopped_run_leaves_no_half_file(tmp_path: Path) -> None:
    with Inbox(tmp_path, KEEP) as inbox:
        inbox.take(to_line(Parcel(0, "model.safetensors", True, False, b"half")))
        inbox.take(to_line(Parcel(1, "checkpoints/round-000001.safetensors", True, False, b"half")))
    assert contents(tmp_path) == {}


def test_the_newest_records_travel_with_a_run_that_goes_on(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir(), here.mkdir()
    for round in (1, 2, 3):
        write_round(there, round, {1: b"what a client keeps", 20: bytes(3 * SMALL)})
    records.save_model(there, {"weight": torch.arange(50.0)})
    unpack(packed(there, 3), here)
    assert not checkpoint.newest(here).passed_over
    expected = {*parcels.GROWING, *checkpoint.files(there, 3)}
    assert contents(here) == {name: (there / name).read_bytes() for name in expected}
    with pytest.raises(ValueError, match="not whole"):
        unpack(packed(there, 3).rpartition("\n")[0], here)
    unpack("", here)  # a new run has none


# ---------------------------------------------------------------- while it is written


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lines_are_sent_while_the_run_goes_on_and_the_rest_when_it_fails(tmp_path: Path) -> None:
    lines: list[str] = []
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    with pytest.raises(RuntimeError, match="in the middle"), parcels.sent(there, lines.append):
        write_round(there, 1)
        until(lambda: bool(lines))
        write_round(there, 2)
        raise RuntimeError("in the middle")
    with Inbox(here, KEEP) as inbox:
        for line in lines:
            inbox.take(line)
    assert inbox.is_complete and contents(here) == contents(there)


def test_a_connection_that_is_gone_is_told_after_the_rounds(tmp_path: Path) -> None:
    def send(line: str) -> None:
        raise ConnectionError("nobody there")

    threads = threading.active_count()
    with pytest.raises(ConnectionError), parcels.sent(tmp_path, send):
        write_round(tmp_path, 1)
    with pytest.raises(RuntimeError, match="first"), parcels.sent(tmp_path, send):
        write_round(tmp_path, 2)
        raise RuntimeError("first")
    assert threading.active_count() == threads


# ---------------------------------------------------------------- a log that is read


def received(folder: Path, *readings: list[str]) -> tuple[Inbox, str]:
    """The inbox and the rest of the log; each reading of it prints other lines, the last one again and again."""
    log, env = folder / "run.log", dict(os.environ)
    for number, lines in enumerate(readings):
        (folder / f"reading{number}").write_text("".join(f"\n{line}\n" for line in lines))
    script = "n=$(cat count 2>/dev/null || echo 0); cat reading$n; " + (
        f"[ $n -lt {len(readings) - 1} ] && n=$((n+1)); echo $n > count"
    )
    with Inbox(folder / "run", KEEP) as inbox:
        submit._receive(inbox, ["sh", "-c", script], folder, log, env, lambda: None)
    return inbox, log.read_text()


def test_a_log_that_lost_parcels_is_read_again(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(), (tmp_path / "run").mkdir()
    lines = ["one", *written(there, [True, True]), "two"]
    inbox, log = received(tmp_path, lines[:-4], [*lines[:9], *lines[12:]], lines)
    assert inbox.is_complete and contents(tmp_path / "run") == contents(there)
    assert log == "one\ntwo\n"


def test_a_parcel_that_never_comes_is_named(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(), (tmp_path / "run").mkdir()
    lines = written(there, [True, True])
    with pytest.raises(FedscaleError, match="parcel 3 of the records is not in the run's log, or is damaged"):
        received(tmp_path, [*lines[:3], *lines[4:]])
    assert flower_command.last_lines(tmp_path / "run.log") == "it said nothing"


def test_a_log_that_ends_early_ends_the_reading(tmp_path: Path) -> None:
    """As when the ServerApp was killed: what has come is there, and that it is not all is known."""
    there = tmp_path / "there"
    there.mkdir(), (tmp_path / "run").mkdir()
    inbox, _ = received(tmp_path, written(there, [True])[:-1])
    assert not inbox.is_complete and not inbox.is_behind
    found: Any = checkpoint.newest(tmp_path / "run").checkpoint
    assert found.round == 1
