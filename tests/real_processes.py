"""What tests ask of real processes: which there are, that something comes to be, and that nothing is left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fedscale_local import federation, processes


def marked(text: str) -> list[int]:
    """The processes with this in their environment, this one left out."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in environ.read_bytes().split(b"\0") and environ.parent.name != str(os.getpid()):
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def descendants(process: int) -> list[int]:
    """The process, what it has started, what that has started, and so on."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [process]
    for one in found:  # found grows meanwhile
        found += [child for child, parent in parents.items() if parent == one]
    return found


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def federated(folder: Path, num_nodes: int) -> Iterator[Path]:
    """A federation of which nothing is left afterwards."""
    federation.up(folder, num_nodes)
    yield folder
    homes = _homes(folder)
    federation.down(folder)
    assert not _processes_of(homes)


@contextmanager
def nothing_left(nodes: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a run has its own temporary files: nothing of it, and no client's process, is left afterwards."""
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    until(lambda: not list(folder.glob("fedscale-*")), seconds=400)
    # A node that was started meanwhile has it in its environment too.
    until(lambda: set(marked(f"TMPDIR={folder}")) <= set(_processes_of(_homes(nodes))), seconds=400)
    until(lambda: not working(nodes), seconds=400)


def _homes(folder: Path) -> list[Path]:
    return [folder / "superlink", *(folder / "nodes").iterdir()]


def _processes_of(homes: list[Path]) -> list[int]:
    return [process for home in homes for process in processes.processes_of(home)]


def working(folder: Path) -> list[int]:
    """The processes of the federation in which a client is at work."""
    return with_words("flwr-clientapp", _processes_of(list((folder / "nodes").iterdir())))


def with_words(words: str, found: list[int]) -> list[int]:
    """Those of these processes whose command line has these words, separated by single spaces."""
    return [process for process in found if words in processes.words_of(process)]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
