"""One process at a time works in a run directory."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedscale_local.errors import RunDirError

_held: set[int] = set()
"""Descriptors of the locks that this process holds; a forked worker must not go on holding them when it is gone."""


@contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Have the run directory for oneself during the body; it is made if need be.

    The kernel lets go of the lock when the process ends, however it ends, so none is ever stale.

    Raises RunDirError, which names the other process, where one has it; or where nothing can be written there.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunDirError(
            f"run_dir={run_dir}", f"it cannot be written ({error.strerror})", "choose another run_dir"
        ) from error
    _held.add(descriptor)
    try:
        try:
            _lock(descriptor)
        except BlockingIOError:
            raise _taken(run_dir, os.pread(descriptor, 4096, 0)) from None
        with suppress(OSError):  # on a full disk the lock holds all the same, without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "command": sys.argv}).encode(), 0)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError where it is another's, and not only looked at by `is_held`."""
    for _ in range(5):
        with suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.01)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(run_dir: Path) -> bool:
    """Is another process at work in it? Nothing is made where nothing is."""
    try:
        descriptor = os.open(run_dir / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is in the body with this folder; for what takes a moment."""
    with (folder / ".turn").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _taken(run_dir: Path, text: bytes) -> RunDirError:
    who, remedy = "another process", "wait until it has ended"
    with suppress(ValueError, KeyError, TypeError):
        about = json.loads(text)
        command = " ".join([Path(about["command"][0]).name, *about["command"][1:]])
        who, remedy = f"process {about['pid']} ({command[:80]})", f"{remedy}, or stop it: kill {about['pid']}"
    return RunDirError(f"run_dir={run_dir}", f"{who} is at work in it", remedy)


def _let_go() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
