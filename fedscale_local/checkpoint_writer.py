"""Checkpoints are written beside the rounds, which never wait for the disk."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType

from fedscale_local import checkpoint, disk
from fedscale_local.checkpoint import Checkpoint

REST = 9
"""How many times as long as it wrote the thread then rests: where rounds are quicker than that, not each is written."""


class Writer:
    """One thread that writes, and at most one checkpoint that waits for it: a newer one takes its place.

    It writes for a tenth of the time at most, as it takes a part of a core from the clients while it does. As a
    context it ends with the newest finished round on disk, whatever ended the body. A write that failed raises its
    StorageError at the next checkpoint that is due, or at the end.
    """

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.run_dir, self.keep = run_dir, keep
        self.newest: Checkpoint | None = None
        """The last finished round, if it was not due."""
        self.begun = max(checkpoint.rounds(run_dir), default=0)
        """The newest round that is on disk or was handed to the thread."""
        self.waiting: deque[Checkpoint] = deque(maxlen=1)
        self.under_way: deque[Future[None]] = deque()
        self.thread = ThreadPoolExecutor(1, "checkpoints")
        self.ending = Event()

    def offer(self, finished: Checkpoint, is_due: bool) -> None:
        """Remember a finished round, and begin to write it if it is due."""
        overtaken, self.newest = self.newest, finished
        if overtaken is not None:
            self._forget_files(overtaken, finished)
        if is_due:
            self._raise_failures()
            self._begin()

    def _begin(self) -> None:
        if self.newest is not None:
            self.waiting.append(self.newest)
            self.begun, self.newest = self.newest.round, None
            self.under_way.append(self.thread.submit(self._write))

    def _forget_files(self, overtaken: Checkpoint, newer: Checkpoint) -> None:
        """Remove the clients' files that nothing names any more, as this checkpoint will never be written."""
        for node, kept in overtaken.filed.items():
            if kept.round > self.begun and newer.filed.get(node) != kept:
                disk.remove(self.run_dir / checkpoint.client_file(node, kept.round))

    def _write(self) -> None:
        """Write the one that waits; it may be gone, written in the place of one that it had overtaken."""
        try:
            taken = self.waiting.pop()
        except IndexError:
            return
        began = time.perf_counter()
        checkpoint.write(self.run_dir, taken, self.keep)
        self.ending.wait(REST * (time.perf_counter() - began))

    def _raise_failures(self, wait: bool = False) -> None:
        while self.under_way and (wait or self.under_way[0].done()):
            self.under_way.popleft().result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        try:
            self._begin()
            self._raise_failures(wait=True)
        except Exception as failure:
            if error is None:
                raise
            if type(failure) is not type(error):  # else it says the same
                error.add_note(str(failure))
        finally:
            self.thread.shutdown()
