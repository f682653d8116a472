"""Progress of a run, read from its growing rounds.jsonl: the same for every engine, and never in its way.

A terminal gets one bar that moves; anything else gets plain lines. Both go to stderr, so that stdout is left
to results.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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

from fedscale_local import cells
from fedscale_local.cells import Cell, State
from fedscale_local.reports.quantities import bytes_text, seconds_text
from fedscale_local.tail import Tail

POLL_SECONDS = 0.2
SWEEP_POLL_SECONDS = 0.5


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
    already = tail.state.round

    def update(last: bool) -> None:
        tail.read()
        elapsed = time.monotonic() - started
        display.update(tail.state, max(tail.state.round - already, 0) / max(elapsed, 1e-9), elapsed, last)

    with _watching(display, update, POLL_SECONDS):
        yield


@contextmanager
def _watching(display: _Startable, update: Callable[[bool], None], seconds: float) -> Iterator[None]:
    """Call update(last) every so often while the body runs, and once more after it; a display that fails is left."""
    stop = threading.Event()

    def watch() -> None:
        with suppress(OSError, ValueError):  # ValueError: the stream was closed
            while not stop.wait(seconds):
                update(False)

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
                update(True)
            finally:
                display.stop()


@contextmanager
def follow_sweep(
    found: Sequence[Cell], *, console: Console | None = None, line_seconds: float = 5.0
) -> Iterator[None]:
    """Show how far all cells of a sweep are while the body runs, read from their directories; as `follow` otherwise.

    The remaining time is that of the remaining rounds at the pace so far; cells that failed are not waited for.
    """
    console = console or _Stderr(stderr=True)
    sweep, started = _Sweep(found), time.monotonic()
    sweep.read()
    already = sweep.rounds
    display = _SweepBar(console) if console.is_terminal else _SweepLines(console, line_seconds)

    def update(last: bool) -> None:
        sweep.read()
        elapsed = time.monotonic() - started
        display.update(sweep, _remaining(sweep, already, elapsed), elapsed, last)

    with _watching(display, update, SWEEP_POLL_SECONDS):
        yield


def _remaining(sweep: _Sweep, already: int, elapsed: float) -> float | None:
    """Seconds that the rounds still to do will take; None before the first round, and when none is left."""
    done = sweep.rounds - already
    return sweep.rounds_left * elapsed / done if done and sweep.rounds_left else None


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
        self.tail, self.state = Tail(path), _State()

    def read(self) -> None:
        records, begins = self.tail.read()
        if begins:
            self.state = _State()
        for record in records:
            with suppress(ValueError, KeyError, TypeError):
                self.state.add(record)


class _Sweep:
    """How many cells of a sweep are in which state, and how many rounds are done and are left."""

    def __init__(self, found: Sequence[Cell]) -> None:
        self.cells = list(found)
        self.tails = [_Tail(cell.run_dir / "rounds.jsonl") for cell in found]
        self.states: list[State] = ["absent"] * len(found)
        self.rounds = self.rounds_left = 0

    def read(self) -> None:
        for i, cell in enumerate(self.cells):
            if self.states[i] != "done":
                self.tails[i].read()
                self.states[i] = cells.state(cell)
        done = [tail.state.round for tail in self.tails]
        self.rounds = sum(done)
        self.rounds_left = sum(
            max(cell.num_rounds - n, 0)
            for cell, n, state in zip(self.cells, done, self.states, strict=True)
            if state in ("absent", "half")
        )

    @property
    def words(self) -> str:
        failed = self.states.count("failed")
        done = self.states.count("done") + self.states.count("pruned")
        told = f"cells {done}/{len(self.cells)}"
        told += f", {failed} failed" if failed else ""
        return f"{told}  rounds {self.rounds}/{self.rounds + self.rounds_left}"


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


class _Startable(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...


class _Display(_Startable, Protocol):
    def update(self, state: _State, rounds_per_second: float, elapsed: float, last: bool) -> None: ...


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


class _SweepLines:
    """Plain lines: when a cell has ended, and in between at most one in `line_seconds`."""

    def __init__(self, console: Console, line_seconds: float) -> None:
        self.console, self.line_seconds = console, line_seconds
        self.shown, self.when = "", 0.0

    def start(self) -> None:
        pass

    def update(self, sweep: _Sweep, remaining: float | None, elapsed: float, last: bool) -> None:
        words = sweep.words
        has_ended = words.partition("rounds")[0] != self.shown.partition("rounds")[0]
        if words == self.shown or not (has_ended or last or elapsed - self.when >= self.line_seconds):
            return
        self.shown, self.when = words, elapsed
        self.console.file.write(f"{words}  {_left(remaining)}{elapsed:.0f} s\n")
        self.console.file.flush()

    def stop(self) -> None:
        pass


class _SweepBar:
    """One line that moves, over the rounds of all cells."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.fields[words]}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            redirect_stdout=sys.stdout.isatty(),
            auto_refresh=False,
        )
        self.task = self.progress.add_task("", total=None, words="", left="")

    def start(self) -> None:
        self.progress.start()

    def update(self, sweep: _Sweep, remaining: float | None, elapsed: float, last: bool) -> None:
        self.progress.update(
            self.task,
            completed=sweep.rounds,
            total=sweep.rounds + sweep.rounds_left,
            words=sweep.words,
            left=_left(remaining) + f"{elapsed:.0f} s",
            refresh=True,
        )

    def stop(self) -> None:
        self.progress.stop()


def _left(remaining: float | None) -> str:
    return "" if remaining is None else f"{seconds_text(remaining)} left  "
