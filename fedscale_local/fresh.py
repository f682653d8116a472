"""Functions in fresh processes: each call is a fork of a process that has imported everything and done nothing.

What one call leaves behind (threads, registries, caches, a changed seed) is not there for the next, and no call pays
for the imports again. `python -m fedscale_local.fresh` is that process. It serves one call after the other and ends
with its standard input: when the caller closes it, or is killed, the call under way is asked to end as by Ctrl-C.
When it is killed itself, the caller asks that of the call, which has then ended as the process did; the next call gets
another.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from fedscale_local.instantiate import locate
from fedscale_local.processes import ONE_THREAD, end, forked_by_leader, inherited_path

BEAT_SECONDS = 0.2
CHECKPOINT_SECONDS = 60.0
"""What a call that is to end may take for it: a run keeps a checkpoint."""
PRELOADED = (
    "fedscale_local.cells.work",
    "fedscale_local.engines.in_process.run",
    "fedscale_local.progress.follow",
    "fedscale_local.reports.page.page",
    "strategies.server_app.app",
    "clients.client_app.app",
)
"""By name, because the machinery imports neither strategies nor clients."""


class Answer(NamedTuple):
    """How a call ended: the exit status of its process, negative for a signal, and what the function returned."""

    exit: int
    value: Any


class Fresh:
    """The caller's end. cores: how many of this machine's each call may use (None: all)."""

    has_ended = False
    """Nothing can be called any more."""

    def __init__(self, cores: int | None = None) -> None:
        divided = {} if cores is None else {**ONE_THREAD, "FEDSCALE_CORES": str(cores)}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **divided, "PYTHONPATH": inherited_path()},
            start_new_session=True,  # Ctrl-C in a terminal is for the caller, who passes it on
            text=True,
        )

    def call(
        self, function: str, argument: Any, log: Path | None = None, beat: Callable[[], None] = lambda: None
    ) -> Answer:
        """function(argument) in a process of its own; argument and value are what JSON holds.

        log: where its stdout and stderr go, in place of nowhere. beat: called a few times a second meanwhile.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        told = {"function": function, "argument": argument, "folder": os.getcwd()}
        told["log"] = None if log is None else str(log)
        with suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(json.dumps(told) + "\n")
            self.process.stdin.flush()
        while not select.select([self.process.stdout], [], [], BEAT_SECONDS)[0]:
            beat()
        answer = self.process.stdout.readline()
        if not answer:  # it was killed; what it had forked lives on
            end(forked_by_leader(self.process.pid), seconds=CHECKPOINT_SECONDS)
            status = self.close()
            return Answer(status if status < 0 else 1, None)
        return Answer(*json.loads(answer))

    def close(self) -> int:
        """End it; a call under way is interrupted and waited for. Its exit status, negative for a signal."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.has_ended = True
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        status = self.process.wait()
        self.process.stdout.close()
        return status


_here: dict[int | None, Fresh] = {}
"""By cores; one at most."""


def here(cores: int | None = None) -> Fresh:
    """This process's own: made when it is first asked for, for another number of cores, or after it was killed."""
    for other in [known for known, one in _here.items() if known != cores or one.has_ended]:
        _here.pop(other).close()
    if cores not in _here:
        _here[cores] = Fresh(cores)
    return _here[cores]


def close_here() -> None:
    """End this process's own, if it has one."""
    while _here:
        _here.popitem()[1].close()


# ---------------------------------------------------------------- the other end


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in PRELOADED:
        locate(name)
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(_called(**json.loads(line))), flush=True)


def _called(function: str, argument: Any, folder: str, log: str | None) -> Answer:
    os.chdir(folder)
    with tempfile.TemporaryFile("w+") as value:
        child = os.fork()
        if child == 0:
            _be(function, argument, log or os.devnull, value)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                value.seek(0)
                return Answer(os.waitstatus_to_exitcode(status), json.loads(value.read() or "null"))
            if select.select([sys.stdin], [], [], 0.02)[0]:  # one call at a time: this is the end of it
                end([child], seconds=CHECKPOINT_SECONDS)
                sys.exit(1)


def _be(function: str, argument: Any, log: str, value: IO[str]) -> NoReturn:
    """The child: make the call, leave its value, and end without any of its parent's clean-up."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, path, how in (
            (0, os.devnull, os.O_RDONLY),
            (1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            os.dup2(os.open(path, how, 0o666), number)
        os.dup2(1, 2)
        found = locate(function)(argument)
        value.write(json.dumps(found))
        value.flush()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
