"""One cell of a sweep: what is there of it, and an attempt at it in a process of its own.

The directory of a cell is a run directory like any other. What became of the last attempt stands beside it, in
logs/<name>.log (all that it printed) and logs/<name>.json (how it ended).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedscale_local import disk, fresh, locks, pruning
from fedscale_local import run_dir as run_dirs
from fedscale_local.config import Config, from_json
from fedscale_local.decisive import EVALUATED
from fedscale_local.errors import RunDirError
from fedscale_local.processes import is_alive
from fedscale_local.pruning import Limits

State = Literal["absent", "half", "failed", "pruned", "done"]


class Cell(NamedTuple):
    """One run of a sweep: its directory, its configuration as JSON, the overrides that set it apart from the others."""

    run_dir: Path
    config: str
    num_rounds: int
    overrides: str
    key: dict[str, Any]
    """What decides its bytes, as identity.of_runs says."""
    limits: Limits | None = None
    """What its values are held against while it runs, if it is a trial."""

    @property
    def log(self) -> Path:
        return self.run_dir.parent / "logs" / f"{self.run_dir.name}.log"

    @property
    def outcome(self) -> Path:
        return self.log.with_suffix(".json")


class Outcome(NamedTuple):
    """How an attempt ended: its exit status (negative for a signal) and its last words."""

    exit: int
    message: str


def state(cell: Cell) -> State:
    """What its directory says; a run that is done has its report, too, and the evaluation that is asked for."""
    try:
        manifest = json.loads((cell.run_dir / "manifest.json").read_bytes())
        ended = str(manifest["exit"])
    except (OSError, ValueError, KeyError, TypeError):
        return "failed" if attempted(cell) else "absent"
    if ended.startswith("pruned") and cell.limits is not None:
        curve = pruning.curve_of(pruning.read(cell.run_dir), cell.limits.metric)
        if pruning.verdict(curve, cell.limits) is not None:
            return "pruned"  # else it was by other limits, and goes on
    if ended == "done" and (cell.run_dir / "report.html").exists() and _evaluated_as_asked(cell):
        return "done"
    return "failed" if ended.startswith("failed") or attempted(cell) else "half"


def _evaluated_as_asked(cell: Cell) -> bool:
    """Was its last model looked at as this sweep wants it? That decides no bytes of the run, and is done after it."""
    try:
        saved, _ = run_dirs.head(cell.run_dir)
    except RunDirError:
        return False
    asked = json.loads(cell.config)
    return all(saved.get(key) == asked[key] for key in EVALUATED)


def is_settled(cell: Cell) -> bool:
    """Is nothing left to do in it?"""
    return state(cell) in ("done", "pruned")


def attempted(cell: Cell) -> Outcome | None:
    """How the last attempt ended, if one did, and ill."""
    with suppress(OSError, ValueError, TypeError):
        found = Outcome(**json.loads(cell.outcome.read_bytes()))
        return found if found.exit else None
    return None


def forget(cell: Cell) -> None:
    """Let nothing be there of it; raises RunDirError where another process is at work in it."""
    if cell.run_dir.exists():
        with locks.hold(cell.run_dir):
            shutil.rmtree(cell.run_dir)
    disk.remove(cell.outcome)


def attempt(cell: Cell, sweep: int | None, cores: int | None) -> None:
    """Begin or carry on a cell, unless it is done or another process has it; whatever happens is only recorded.

    sweep: the process of the sweep on this machine, without which nobody wants the cell any more; None: it may be
    elsewhere (Slurm). cores: this cell's share of the machine, None for all.
    """

    def leave_with_the_sweep() -> None:
        if sweep is not None and not is_alive(sweep):
            os._exit(1)

    leave_with_the_sweep()
    if is_settled(cell) or locks.is_held(cell.run_dir):
        return
    argument = {"config": cell.config, "run_dir": str(cell.run_dir), "limits": cell.limits}
    function = f"{work.__module__}.{work.__name__}"
    answer = fresh.here(cores).call(function, argument, cell.log, leave_with_the_sweep)
    if answer.exit and (locks.is_held(cell.run_dir) or is_settled(cell)):
        return  # another sweep was a moment earlier
    record(cell, Outcome(answer.exit, "" if answer.exit == 0 else _last_words(cell, answer.exit)))


def record(cell: Cell, outcome: Outcome) -> None:
    """Write down how an attempt ended."""
    disk.write(cell.outcome, json.dumps(outcome._asdict()).encode())


def _last_words(cell: Cell, exit: int) -> str:
    """The message on stderr; a process that was ended has left none."""
    if exit < 0:
        return f"its process was ended by signal {-exit}"
    lines = cell.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1].removeprefix("fedscale-local: ") if lines else f"its process ended with status {exit}"


# ---------------------------------------------------------------- in the cell's own process


def work(argument: dict[str, Any]) -> None:
    """Begin a cell or carry it on; exits with the status that the command would have."""
    from fedscale_local import cli

    signal.signal(signal.SIGTERM, cli.interrupt)
    run_dir = Path(argument["run_dir"])
    config = from_json(argument["config"]).model_copy(update={"run_dir": str(run_dir)})
    limits = argument["limits"] and Limits(*argument["limits"])
    raise SystemExit(cli.guarded(lambda: _held_against(limits, run_dir, config)))


def _held_against(limits: Limits | None, run_dir: Path, config: Config) -> None:
    """Do the work, or as much of it as is needed to see that it falls behind."""
    if limits is None:
        return _work(run_dir, config)
    seen = pruning.Watch()
    try:
        with pruning.watching(run_dir, limits) as seen:
            _work(run_dir, config)
    except KeyboardInterrupt:
        if seen.round is None:
            raise
        with locks.hold(run_dir):
            pruning.cut(run_dir, seen.round, limits)


def _work(run_dir: Path, config: Config) -> None:
    from fedscale_local import lifecycle, progress

    with progress.follow(run_dir, config.num_rounds):
        if (run_dir / "manifest.json").exists():
            lifecycle.resume(run_dir, config)
            return
        if run_dir.exists():  # killed before it was a run
            with locks.hold(run_dir):
                shutil.rmtree(run_dir)
        lifecycle.run(config)


def identify(configs: list[str]) -> list[dict[str, Any]]:
    """What decides the bytes of each of these configurations."""
    from fedscale_local import identity

    return identity.of_runs([from_json(config) for config in configs])
