"""Processes that must not outlive the work they were started for, and how they are ended: by id, whatever happens.

`python -m fedscale_local.processes FOLDER` is the guard of a folder: when its standard input closes, because whoever
holds the other end is done or was killed, it ends the folder's processes and removes it. It imports nothing heavy.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


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


def clear(folder: Path) -> None:
    """End the folder's processes and remove it."""
    end(processes_of(folder))
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


def _stat(process: int) -> list[str]:
    """State, parent and what else the kernel says of a process, behind its name."""
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
