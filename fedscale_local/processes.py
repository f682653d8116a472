"""Processes that must not outlive the work they were started for, and how they are ended: by id, whatever happens.

`python -m fedscale_local.processes FOLDER` is the guard of a folder: when its standard input closes, because whoever
holds the other end is done or was killed, it ends the folder's processes and removes it. It imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""More threads would change the order of sums."""

LARGEST_KEPT, KEPT = 2**25, 2**28
"""Bytes of one piece of memory, at most 32 MiB for glibc, and of all that a process keeps of what it frees.

A local step asks again for what the last one freed; given back in between, the kernel would clear each page anew.
"""
KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(LARGEST_KEPT), "MALLOC_TRIM_THRESHOLD_": str(KEPT)}
"""The same for a process that is yet to start."""


def keep_memory() -> None:
    """Let this process, and what it forks, keep what is freed, where the C library can be told."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Much of what the body makes is needed to its end: the collector, which would search all of it in vain, waits."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def lasting() -> Iterator[None]:
    """What the body makes stays, as modules do: the collector never searches it, not even when the process ends."""
    with uncollected():
        yield
        gc.freeze()


def inherited_path() -> str:
    """PYTHONPATH for a child process that is to import the packages that this one does."""
    prefixes = tuple(str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix))
    own = dict.fromkeys(str(Path(entry).resolve()) for entry in sys.path)
    return os.pathsep.join(e for e in own if not e.startswith(prefixes) and Path(e).exists())


@contextmanager
def guarded_folder(prefix: str = "fedscale-") -> Iterator[Path]:
    """A temporary folder. It and all processes with it as their FLWR_HOME are gone after the body, or this process."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    command = [sys.executable, "-m", __name__, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, cwd=folder, env=environment, start_new_session=True
    ) as guard:
        try:
            yield folder
        finally:
            clear(folder)
            assert guard.stdin is not None
            guard.stdin.close()


@contextmanager
def ending_after(seconds: float | None) -> Iterator[None]:
    """End this process, with its stack on stderr, if the body takes longer: nothing less frees it, whatever it does."""
    if seconds is not None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """An interrupt that comes meanwhile comes afterwards: for what would swallow it, as a library does that calls
    Python and takes whatever is raised there for one of its own errors."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for held, handler in before.items():
            signal.signal(held, handler)
        for number in came:
            signal.raise_signal(number)


class TooLate(BaseException):
    """What `interrupted_after` raises; no Exception, so that nobody takes it for one of theirs."""


@contextmanager
def interrupted_after(seconds: float | None) -> Iterator[None]:
    """Raise TooLate in the body after that time, as soon as Python has a say; only in the main thread.

    An alarm that somebody else has set is left to them, and nothing interrupts the body meanwhile.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if seconds is None or not is_main or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def interrupt(*_: object) -> None:
        raise TooLate

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def in_time(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    late: Callable[[Item], Result],
    seconds: float | None,
) -> list[Result]:
    """work(item) for one item after the other until that time is over, and late(item) for those that are left."""
    done: list[Result] = []
    with suppress(TooLate), interrupted_after(seconds):
        for item in items:
            done.append(work(item))
    return done + [late(item) for item in items[len(done) :]]


def clear(folder: Path) -> None:
    """End the folder's processes and remove it.

    The server's side of a run on Ray has no time to see Ray end: it would record that all clients failed in a round.
    """
    found = processes_of(folder)
    for process in found:
        if "flwr-simulation" in words_of(process):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    end(found)
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[int]:
    """Every process with this FLWR_HOME in its environment, and all of their descendants (Linux).

    A process may have written over its environment, as Ray's do to show a title, but not over its parent.
    """
    mark = f"FLWR_HOME={folder}".encode()
    found: list[int] = []
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            process = int(entry.name)
            state, parent = _stat(process)[:2]
            if state == "Z":
                continue
            children[int(parent)].append(process)
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(process)
    for process in found:  # found grows meanwhile
        found += [child for child in children[process] if child not in found]
    return found


def forked_by_leader(group: int) -> list[int]:
    """The processes of a group that its leader has started, which may be gone, and not one of the others (Linux)."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            process = int(entry.name)
            state, parent, own = _stat(process)[:3]
            if int(own) == group and process != group and state != "Z":
                parents[process] = int(parent)
    return [process for process, parent in parents.items() if parent not in parents]


def words_of(process: int) -> str:
    """Its command line, words separated by single spaces; empty if it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _stat(process: int) -> list[str]:
    """State, parent, group and what else the kernel says of a process, behind its name."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def end(processes: Sequence[int], seconds: float = 10.0) -> None:
    """Ask these processes to end, and end those that have not after that time."""
    for sign, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, seconds)):
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, sign)
        deadline = time.monotonic() + patience
        while any(map(is_alive, processes)) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes = [process for process in processes if is_alive(process)]
        if not processes:
            return


def is_alive(process: int) -> bool:
    """Does it run? A child that ended is collected here, so that it does not linger."""
    with suppress(ChildProcessError):
        if os.waitpid(process, os.WNOHANG)[0] == process:
            return False
    try:
        return _stat(process)[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    sys.stdin.read()
    clear(Path(sys.argv[1]))
