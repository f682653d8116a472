"""Progress of a run, read from its growing rounds.jsonl: the same for every engine, and never in its way.

A terminal gets one bar that moves; anything else gets plain lines. Both go to stderr, so that stdout is left
to results.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fedscale_local.reports.facts import bytes_text

POLL_SECONDS = 0.2


@contextmanager
def follow(
    run_dir: Path | str, num_rounds: int, *, console: Console | None = None, line_seconds: float = 1.0
) -> Iterator[None]:
    """Show the rounds of `run_dir` while the body runs; the directory need not exist yet.

    console: where to, stderr if not given. line_seconds: the least time between two plain lines; the last
    round is always shown. Rounds that are there at the start (a resumed run) count as done, not as speed.
    A display that fails (a closed pipe) ends silently, the body goes on. No thread is left after the body.
    """
    console = console or _Stderr(stderr=True)
    tail, started = _Tail(Path(run_dir) / "rounds.jsonl"), time.monotonic()
    tail.read()
    display: _Display
    display = (
        _Bar(console, num_rounds, tail) if console.is_terminal else _Lines(console, num_rounds, line_seconds)
    )
    already, stop = tail.state.round, threading.Event()

    def update(last: bool) -> None:
        tail.read()
        elapsed = time.monotonic() - started
        display.update(tail.state, max(tail.state.round - already, 0) / max(elapsed, 1e-9), elapsed, last)

    def watch() -> None:
        with suppress(OSError, ValueError):  # ValueError: the stream was closed
            while not stop.wait(POLL_SECONDS):
                update(last=False)

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    with suppress(OSError, ValueError):
        display.start()
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(OSError, ValueError):
            try:
                update(last=True)
            finally:
                display.stop()


# ---------------------------------------------------------------- reading


@dataclass
class _State:
    """The newest value of everything, with the round it comes from: round 0 before the first."""

    round: int = 0
    bytes: float = 0
    newest: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        self.round = int(record["round"])
        self.bytes += (record.get("bytes_up") or 0) + (record.get("bytes_down") or 0)
        for key in ("train_loss", "test_loss", "test_accuracy"):
            if record.get(key) is not None:
                self.newest[key] = (float(record[key]), self.round)


class _Tail:
    """The state of a file of rounds that grows, or shrinks when a resumed run drops what it repeats."""

    def __init__(self, path: Path) -> None:
        self.path, self.state, self.position = path, _State(), 0

    def read(self) -> None:
        try:
            if self.path.stat().st_size < self.position:
                self.state, self.position = _State(), 0
            with self.path.open("rb") as file:
                file.seek(self.position)
                text = file.read()
        except OSError:
            return  # not there yet, or gone
        whole = text[: text.rfind(b"\n") + 1]  # the rest of a line comes later
        self.position += len(whole)
        for line in whole.splitlines():
            with suppress(
                ValueError, KeyError, TypeError
            ):  # a bad line is for the reader of the run to report
                self.state.add(json.loads(line))


# ---------------------------------------------------------------- words


def words(state: _State) -> list[str]:
    """Losses, accuracy and bytes so far, each with the round it is from where that is an earlier one."""
    shown = []
    for key, name, form in (
        ("train_loss", "train loss", "{:.4f}"),
        ("test_loss", "test loss", "{:.4f}"),
        ("test_accuracy", "accuracy", "{:.2%}"),
    ):
        if key in state.newest:
            value, when = state.newest[key]
            small = key != "test_accuracy" and value != 0 and not 1e-3 <= abs(value) < 1e5
            number = f"{value:.3e}" if small else form.format(value)
            shown.append(f"{name} {number}" + (f" (round {when})" if when != state.round else ""))
    shown.append(bytes_text(state.bytes))
    return shown


# ---------------------------------------------------------------- displays


class _Stderr(Console):
    """A console whose closed pipe is nobody's business: rich would end the program and close its stdout."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class _Display(Protocol):
    def start(self) -> None: ...
    def update(self, state: _State, rounds_per_second: float, elapsed: float, last: bool) -> None: ...
    def stop(self) -> None: ...


class _Lines:
    """Plain lines, at most one a round and one in `line_seconds`, the last round always."""

    def __init__(self, console: Console, num_rounds: int, line_seconds: float) -> None:
        self.console, self.num_rounds, self.line_seconds = console, num_rounds, line_seconds
        self.shown, self.when = 0, -line_seconds

    def start(self) -> None:
        pass

    def update(self, state: _State, rounds_per_second: float, elapsed: float, last: bool) -> None:
        if state.round == self.shown or (not last and elapsed - self.when < self.line_seconds):
            return
        self.shown, self.when = state.round, elapsed
        width = len(str(self.num_rounds))
        line = [f"round {state.round:{width}d}/{self.num_rounds}", *words(state), f"{elapsed:.1f} s"]
        # Not console.print: a line must stay one line, whatever width was guessed for a file.
        self.console.file.write("  ".join(line) + "\n")
        self.console.file.flush()

    def stop(self) -> None:
        pass


class _Pace(ProgressColumn):
    """Rounds per second of this process."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['pace']:.3g} rounds/s", style="progress.data.speed")


class _Bar:
    """One line that moves: rounds done, newest numbers, rounds per second, remaining time."""

    def __init__(self, console: Console, num_rounds: int, tail: _Tail) -> None:
        self.progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[words]}", markup=False),
            _Pace(),
            TimeRemainingColumn(compact=True),
            console=console,
            # What is written to a stdout that leads elsewhere (a file, a pipe) must arrive there.
            redirect_stdout=sys.stdout.isatty(),
            auto_refresh=False,  # `follow` has a thread already
        )
        self.task = self.progress.add_task(
            "", total=num_rounds, completed=tail.state.round, words="  ".join(words(tail.state)), pace=0.0
        )

    def start(self) -> None:
        self.progress.start()

    def update(self, state: _State, rounds_per_second: float, elapsed: float, last: bool) -> None:
        self.progress.update(
            self.task,
            completed=state.round,
            words="  ".join(words(state)),
            pace=rounds_per_second,
            refresh=True,
        )

    def stop(self) -> None:
        self.progress.stop()
