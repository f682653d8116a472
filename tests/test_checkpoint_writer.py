"""Which of many finished rounds are written: the disk gets a tenth of the time, and the newest at the end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fedscale_local import checkpoint, checkpoint_writer
from fedscale_local.checkpoint import Checkpoint
from fedscale_local.checkpoint_writer import Writer


@pytest.mark.parametrize(("rest", "expected"), [(1000, [1, 20]), (0, [1, 5, 10, 15, 20])])
def test_between_two_writes_it_rests_and_the_newest_is_written_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: int, expected: list[int]
) -> None:
    """Twenty rounds, after each fifth of which the thread has caught up, unless it rests."""
    written: list[int] = []

    def write(run_dir: Path, finished: Checkpoint, keep: int) -> None:
        time.sleep(0.02)
        written.append(finished.round)

    monkeypatch.setattr(checkpoint, "write", write)
    monkeypatch.setattr(checkpoint_writer, "REST", rest)
    with Writer(tmp_path, keep=2) as writer:
        for round in range(1, 21):
            writer.offer(Checkpoint(round, {}, {}, 0, {}), is_due=round == 1 or round % 5 == 0)
            if rest == 0:
                writer._raise_failures(wait=True)
            while not written:
                time.sleep(0.001)
    assert written == expected


def test_a_write_that_failed_ends_the_run_at_the_end_whatever_rest_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(run_dir: Path, finished: Checkpoint, keep: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr(checkpoint, "write", write)
    with pytest.raises(OSError, match="no room"), Writer(tmp_path, keep=2) as writer:
        writer.offer(Checkpoint(1, {}, {}, 0, {}), is_due=True)
