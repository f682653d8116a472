"""A run directory as lines of text, so that it can travel where nothing but text does.

A run's log is what every SuperLink takes from a ServerApp and hands to who submitted the run. So a ServerApp on another
host writes its records into a folder of its own, and an `Outbox` sends what is new there as parcels, one a line:

    @fedscale-parcel SHA256 [number, name, begins, ends, base64]

An `Inbox` opens them in the order of their numbers and puts the same bytes into the run directory. A parcel that comes
again, damaged, or too early is left alone: the log is kept by the SuperLink and is read again from its beginning.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fedscale_local import checkpoint, disk

MARK = "@fedscale-parcel "
SIZE = 1 << 20
"""Bytes in a parcel at most; its line has a third more."""
POLL_SECONDS = 0.2
GROWING = ("rounds.jsonl", "timing.jsonl")
"""They gain lines and are sent line by line; the others are written once and sent whole."""
RECORDS = "fedscale-records"
"""The key under which a run that was begun elsewhere brings its records along, packed."""
LAST = ("clients.json", "model.safetensors")
"""What is written after the last round; the model last, as it says that the run is over."""
_CHECKPOINT = re.compile(
    r"checkpoints/(round-\d{6,}\.(json|safetensors)|clients/\d+-round-\d{6,}\.safetensors)"
)


class Parcel(NamedTuple):
    """The next bytes of a file. The last parcel of all has no name.

    begins  the file starts anew with these bytes
    ends    the file is whole with these bytes; says nothing of a growing one
    """

    number: int
    name: str
    begins: bool
    ends: bool
    content: bytes


def to_line(parcel: Parcel) -> str:
    """One line without its end.

    >>> to_line(Parcel(0, "rounds.jsonl", True, False, b"{}"))[-41:]
    ' [0, "rounds.jsonl", true, false, "e30="]'
    """
    text = json.dumps([*parcel[:-1], base64.b64encode(parcel.content).decode()])
    return f"{MARK}{_sum(text)} {text}"


def from_line(line: str) -> Parcel | None:
    """What `to_line` wrote; None if a single character of it is another."""
    found, _, text = line.removeprefix(MARK).partition(" ")
    if not line.startswith(MARK) or found != _sum(text):
        return None
    number, name, begins, ends, content = json.loads(text)
    return Parcel(int(number), str(name), bool(begins), bool(ends), base64.b64decode(content))


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Outbox:
    """What is new in a run directory, as numbered lines given to `send`.

    sent: rounds whose checkpoints the other side has already.
    """

    def __init__(self, run_dir: Path, send: Callable[[str], None], sent: Iterable[int] = ()) -> None:
        self.run_dir, self.send, self.sent = run_dir, send, set(sent)
        self.number = 0
        self.places = dict.fromkeys(GROWING, (0, 0))
        """Of each growing file: which file it was, as another one may have taken its place, and bytes sent of it."""

    def look(self) -> None:
        """Send new lines and new checkpoints; lines first, as a checkpoint counts only behind its lines."""
        due = [round for round in checkpoint.rounds(self.run_dir) if round not in self.sent]
        for name in GROWING:
            self._send_lines(name)
        for round in due:
            with suppress(FileNotFoundError):  # a newer one has taken its place
                for name in checkpoint.files(self.run_dir, round):
                    self.send_whole(name)
            self.sent.add(round)

    def send_last(self) -> None:
        """Send what is written after the last round, as far as it was."""
        for name in LAST:
            with suppress(FileNotFoundError):
                self.send_whole(name)

    def send_whole(self, name: str) -> None:
        """Send a file that is as it will stay; raises FileNotFoundError."""
        with (self.run_dir / name).open("rb") as file:
            left = os.fstat(file.fileno()).st_size
            self._send_parts(name, file, left, begins=True)

    def end(self) -> None:
        """Say that there is no more."""
        self._send("", True, True, b"")

    def _send_lines(self, name: str) -> None:
        with suppress(FileNotFoundError), (self.run_dir / name).open("rb") as file:
            status, (known, position) = os.fstat(file.fileno()), self.places[name]
            if known != status.st_ino or position > status.st_size:
                position = 0
            file.seek(position)
            whole = file.read().rfind(b"\n") + 1  # the rest of a line comes later
            file.seek(position)
            if whole:
                self._send_parts(name, file, whole, begins=position == 0)
            self.places[name] = (status.st_ino, position + whole)

    def _send_parts(self, name: str, file: BinaryIO, left: int, begins: bool) -> None:
        while True:
            content = file.read(min(left, SIZE))
            left -= len(content)
            self._send(name, begins, left == 0, content)
            begins = False
            if left == 0:
                return

    def _send(self, name: str, begins: bool, ends: bool, content: bytes) -> None:
        self.send(to_line(Parcel(self.number, name, begins, ends, content)))
        self.number += 1


class Inbox:
    """Opens parcels into a run directory, which has the same files as the sender's as far as they came.

    keep: how many checkpoints stay. As a context it leaves no file that is not whole.
    """

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.run_dir, self.keep = run_dir, keep
        self.expected = 0
        """The number of the parcel that is opened next."""
        self.is_complete = self.is_behind = False
        """Was the last parcel opened? Has a later one come than the one that is expected?"""

    def take(self, line: str) -> bool:
        """Is this line a parcel, damaged or not? The expected one is opened, any other left alone.

        Raises StorageError where it cannot be written.
        """
        if not line.startswith(MARK):
            return False
        parcel = from_line(line.rstrip("\r\n"))
        if parcel is None or parcel.number != self.expected:
            self.is_behind |= parcel is None or parcel.number > self.expected
            return True
        self.expected += 1
        if not parcel.name:
            self.is_complete = True
        elif parcel.name in (*GROWING, *LAST) or _CHECKPOINT.fullmatch(parcel.name):
            self._open(parcel)  # the other host does not say where else something is written
        return True

    def _open(self, parcel: Parcel) -> None:
        path = self.run_dir / parcel.name
        if parcel.name in GROWING:
            (disk.write if parcel.begins else disk.append)(path, parcel.content)
            return
        for folder in (path.parent.parent, path.parent):
            disk.make_folder(folder)
        disk.write_part(path, parcel.content, begins=parcel.begins)
        is_checkpoint = parcel.ends and parcel.name not in LAST and path.suffix == ".json"
        if is_checkpoint:  # the lines before it are on disk before it counts
            disk.flush(self.run_dir / checkpoint.LINES)
        if parcel.ends:
            disk.finish(path)
        if is_checkpoint:
            checkpoint.forget_older(self.run_dir, self.keep)

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_: object) -> None:
        for part in (*self.run_dir.glob("*.part"), *self.run_dir.glob("checkpoints/**/*.part")):
            disk.remove(part)


@contextmanager
def sent(run_dir: Path, send: Callable[[str], None]) -> Iterator[None]:
    """Send what the body writes to a run directory, soon after it is written, and the rest when the body ends.

    What is there already of checkpoints is known to the other side. A `send` that fails ends the sending, and is
    raised after the body, unless that has failed itself.
    """
    outbox, stop = Outbox(run_dir, send, checkpoint.rounds(run_dir)), threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            outbox.look()

    def finish() -> None:
        stop.set()
        watching.result()
        outbox.look()
        outbox.send_last()
        outbox.end()

    with ThreadPoolExecutor(1, "parcels") as pool:
        watching = pool.submit(watch)
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the body's failure is what matters
                finish()
            raise
        finally:
            stop.set()
        finish()


def packed(run_dir: Path, round: int) -> str:
    """The records of a run directory and its checkpoint of that round, as lines."""
    lines: list[str] = []
    others = set(checkpoint.rounds(run_dir)) - {round}
    outbox = Outbox(run_dir, lines.append, others)
    outbox.look()
    outbox.end()
    return "\n".join(lines)


def unpack(text: str, run_dir: Path) -> None:
    """The inverse of `packed`."""
    with Inbox(run_dir, keep=1) as inbox:
        for line in text.splitlines():
            inbox.take(line)
    if text and not inbox.is_complete:
        raise ValueError("the records that came with the run are not whole")
