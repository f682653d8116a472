"""Reports of run directories: a page that stands alone, and a table for the terminal.

They read run directories and nothing else, so they work on a run of another machine, on one that is under
way, and on one that was killed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedscale_local.errors import RunDirError
from fedscale_local.reports import facts, quantities
from fedscale_local.run_dir import Run, read

__all__ = ["compare", "show", "table", "write"]


def write(run_dir: Path | str, out: Path | str | None = None) -> Path:
    """Write the report of a run as one HTML file; returns its path.

    out: where to, `report.html` in the run directory if not given. The same run gives the same bytes.
    Raises RunDirError where the directory cannot be read or the file cannot be written.
    """
    from fedscale_local.reports.page import page  # matplotlib is slow to import, and `show` draws nothing

    run = read(run_dir)
    path = Path(out) if out is not None else run.path / "report.html"
    _save(path, page(run))
    return path


def _save(path: Path, text: str) -> None:
    """Write all of it or nothing."""
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        whole.write_text(text, encoding="utf-8")
        whole.replace(path)
    except OSError as error:
        whole.unlink(missing_ok=True)
        raise RunDirError(
            str(path), f"the report cannot be written ({error.strerror})", "name another file"
        ) from None


def compare(
    directories: Sequence[Path | str],
    out: Path | str,
    at: str | None = None,
    target: float | None = None,
    console: Console | None = None,
    clock: str | None = None,
    with_wall_clock: bool = True,
) -> Path:
    """Compare the runs at and below these directories: tables on the console, a page at `out`; returns its path.

    at: the budget, as "rounds=100", "bytes=50MB" or "steps=20000"; as many rounds as every run has if not given.
    target: the value of the compared metric whose costs are told; what every run reached if not given.
    clock: what a round of the simulated federation takes, as "step=10ms,down=50Mbit,up=10Mbit,latency=100ms".
    with_wall_clock: tell of the machine's time; no matter of the methods where runs shared it or were carried on.
    Raises ConfigError for a budget or a clock that cannot be read; RunDirError where runs cannot be read or compared.
    """
    from fedscale_local.reports import budget, compare_tables, comparison, histories, tuning
    from fedscale_local.reports import clock as clocks
    from fedscale_local.reports.compare_page import page

    chosen = None if at is None else budget.parse(at)
    ticking = clocks.Clock() if clock is None else clocks.parse(clock)
    found, left_out = histories.gather(directories, ticking)
    if not with_wall_clock:
        for history in found:
            history.spent.pop("seconds", None)
    tuned = tuning.of_folders([history.run.path.parent for history in found])
    known = [*tuning.remarks(tuned), *left_out]
    compared = comparison.compare(histories.methods(found), chosen, target, known, tuned, ticking)
    _save(Path(out), page(compared))
    (console or Console()).print(compare_tables.terminal(compared))
    return Path(out)


def show(run_dir: Path | str, console: Console | None = None) -> None:
    """Print one run as a table, to stdout if no console is given; raises RunDirError as `read` does."""
    (console or Console()).print(table(read(run_dir)))


def table(run: Run) -> Table:
    """The summary of one run for a terminal: what it was, how far it got, what it reached, what it cost."""
    numbers = facts.summary(run)
    grid = Table(box=None, show_header=False, pad_edge=False, title=Text(str(run.path)), title_justify="left")
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")

    def add(name: str, words: str) -> None:
        grid.add_row(name, Text(words))  # Text: brackets in a reason are no markup

    of = f" of {numbers.planned_rounds}" if numbers.planned_rounds else ""
    add("status", f"{numbers.status}, {numbers.num_rounds}{of} rounds")
    add("method", f"{facts.method_name(run)}. {facts.method_words(run)}")
    add("data", facts.data_words([run]))
    add("clients", facts.clients_words([run]))
    add("engine", facts.engine_words(run))
    for name, key, final, best, form in (
        (
            "test accuracy",
            "test_accuracy",
            numbers.test_accuracy,
            numbers.best_accuracy,
            quantities.percent_text,
        ),
        ("test loss", "test_loss", numbers.test_loss, numbers.best_loss, quantities.loss_text),
        ("training loss", "train_loss", numbers.train_loss, None, quantities.loss_text),
    ):
        if final is not None:
            where = facts.measured_words(run, final, best, form)
            add(name, f"{form(final[0])} {f'({where}) ' if where else ''}{_trace(run, key)}")
    if words := facts.privacy_words(run):
        add("privacy", words)
    total, up, down = numbers.bytes_up + numbers.bytes_down, numbers.bytes_up, numbers.bytes_down
    both = f"{quantities.bytes_text(up)} up, {quantities.bytes_text(down)} down"
    add("sent", f"{quantities.bytes_text(total)} ({both})")
    if numbers.seconds is not None:
        add("time", quantities.seconds_text(numbers.seconds))
    if numbers.num_failures:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in facts.failure_counts(run)[:5])
        add("failed replies", f"{numbers.num_failures} ({reasons})")
    for note in facts.notes(run):
        add("note", note)
    if (run.path / "report.html").exists():
        add("report", str(run.path / "report.html"))
    return grid


def _trace(run: Run, key: str) -> str:
    return quantities.sparkline([record[key] for record in run.rounds if record[key] is not None], width=24)
