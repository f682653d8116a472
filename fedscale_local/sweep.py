"""A sweep: many runs from one command, each known by what decides its bytes.

The overrides are expanded by Hydra into cells. A cell's directory is named by the overrides that set it apart and a sum
of configuration, data, partition, code and libraries; what is found there is not done again. Cells run where Hydra's
launcher puts them, each in a process of its own (cells.py), and one that fails does not stop the others. `sweep.json`
says which cells the sweep has and how each ended; `report.html` compares those that are done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from fedscale_local import cells, compose, disk, fresh, locks, progress, reports, trackers
from fedscale_local.cells import Cell, Outcome
from fedscale_local.config import Config, to_json
from fedscale_local.decisive import FREE
from fedscale_local.errors import FedscaleError, RunDirError
from fedscale_local.reports.facts import final_words
from fedscale_local.run_dir import SWEEP

WAIT_SECONDS = 0.5


def run(planned: compose.Sweep, force: bool = False) -> int:
    """Every cell that is not done yet; the status is the worst of theirs.

    force: do again what is done.

    Raises:
        ConfigError: a cell whose configuration is wrong, before any begins.
        RunDirError: the directory cannot be used, or another process is at work in a cell that is to be done again.
    """
    configs = compose.configs(planned.jobs)
    folder = usable(Path(planned.folder), configs)
    try:
        found = expand(folder, configs, planned.swept)
        if force:
            for cell in found:
                cells.forget(cell)
        record(folder, found)
        with progress.follow_sweep(found):
            work_off(planned, found)
        status = _finish(folder, found)
    except KeyboardInterrupt as stop:
        stop.add_note("the same command carries the sweep on")
        raise
    finally:
        fresh.close_here()
    return status


def usable(folder: Path, configs: Sequence[Config]) -> Path:
    """The directory of a sweep over these, made; raises InputError for what cannot be right in any of them."""
    for config in configs:
        if config.run_dir is not None:
            raise RunDirError(
                f"run_dir={config.run_dir}",
                "the runs of a sweep have a directory each",
                "set hydra.sweep.dir instead",
            )
    for config in {config.tracking: config for config in configs}.values():
        trackers.check(config)
    where = f"hydra.sweep.dir={folder}"
    if (folder / "manifest.json").exists():
        raise RunDirError(where, "it is the directory of a run", "choose another directory")
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        expectation = f"it cannot be written ({error.strerror})"
        raise RunDirError(where, expectation, "choose another directory") from None
    return folder


def expand(folder: Path, configs: Sequence[Config], swept: Sequence[Sequence[str]]) -> list[Cell]:
    """The cells of these configurations, in their order; those that are the same run are one."""
    found: dict[Path, Cell] = {}
    for cell in cells_of(folder, configs, swept):
        found.setdefault(cell.run_dir, cell)
    return list(found.values())


def cells_of(folder: Path, configs: Sequence[Config], swept: Sequence[Sequence[str]]) -> list[Cell]:
    """The cell of each of these configurations; swept: the overrides that name it."""
    texts = [to_json(config) for config in configs]
    function = f"{cells.identify.__module__}.{cells.identify.__name__}"
    log = folder / "logs" / "identify.log"
    answer = fresh.here().call(function, texts, log)
    if answer.exit:
        reason = (log.read_text(errors="replace").splitlines() or [f"exit status {answer.exit}"])[-1]
        raise FedscaleError(f"the cells of the sweep could not be told apart: {reason}")
    disk.remove(log)
    there = {path.name.rpartition("-")[2]: path.name for path in sorted(folder.iterdir()) if path.is_dir()}
    found: list[Cell] = []
    for config, text, own, overrides in zip(configs, texts, answer.value, swept, strict=True):
        asked_for = sorted(o for o in overrides if o.split("=")[0].split(".")[0] in FREE)
        key = {**own, "swept": asked_for}  # who sweeps over the number of workers wants each
        short = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        name = there.setdefault(short, f"{_readable(overrides)}-{short}")
        found.append(Cell(folder / name, text, config.num_rounds, " ".join(overrides), key))
    return found


def _readable(overrides: Sequence[str]) -> str:
    """
    >>> _readable(["strategy=fedavg", "data.path=/tmp/x y.npz", "seed=3"])
    'strategy=fedavg,data.path=_tmp_x_y.npz,seed=3'
    """
    return re.sub(r"[^\w.,=+-]", "_", ",".join(overrides))[:160] or "run"


def work_off(planned: compose.Sweep, found: Sequence[Cell]) -> None:
    """Attempt each cell once. One that another process has is left for later, when it is done or free."""
    todo = [number for number, cell in enumerate(found) if not cells.is_settled(cell)]
    for number in todo:
        disk.remove(found[number].outcome)
    attempt = partial(_attempt, list(found))
    while todo:
        free = [n for n in todo if not locks.is_held(found[n].run_dir)]
        lost = compose.launch(planned, free, attempt) if free else {}
        for number, reason in lost.items():
            if not cells.is_settled(found[number]):
                cells.record(found[number], Outcome(1, reason))
        todo = [n for n in todo if not cells.is_settled(found[n]) and not found[n].outcome.exists()]
        if todo:
            time.sleep(WAIT_SECONDS)


def _attempt(found: Sequence[Cell], number: int, sweep: int | None, cores: int | None) -> None:
    cells.attempt(found[number], sweep, cores)


# ---------------------------------------------------------------- what is told


def record(folder: Path, found: Sequence[Cell]) -> None:
    """Write sweep.json: these cells and those of earlier commands, unless one of these took their place.

    It did if the configuration is the same, and data, code or libraries were others.
    """
    own = [_row(cell) for cell in found]
    replaced = {row["config"] for row in own} | {None}
    earlier: list[dict[str, Any]] = []
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        told = json.loads((folder / SWEEP).read_bytes())["cells"]
        earlier = [row for row in told if row.get("config") not in replaced]
    text = json.dumps({"cells": [*earlier, *own]}, indent=1) + "\n"
    disk.write(folder / SWEEP, text.encode())


def _row(cell: Cell) -> dict[str, Any]:
    ended = cells.attempted(cell)
    config = json.dumps([cell.key["config"], *cell.key["swept"]])
    row: dict[str, Any] = {
        "run_dir": cell.run_dir.name,
        "overrides": cell.overrides,
        "state": cells.state(cell),
    }
    row |= ended._asdict() if ended else {}
    return row | {"config": hashlib.sha256(config.encode()).hexdigest(), "key": cell.key}


def report(folder: Path) -> None:
    """Compare what is done in a sweep's directory; say where the page is, or why there is none."""
    try:
        with open(os.devnull, "w") as nowhere:
            quiet = Console(file=nowhere)
            page = reports.compare([folder], folder / "report.html", console=quiet, with_wall_clock=False)
        print(f"{'report':<8}{page}")
    except FedscaleError as error:
        print(f"{'note':<8}no report: {error}")


def _finish(folder: Path, found: Sequence[Cell]) -> int:
    """The record, the table, the report, and the status."""
    record(folder, found)
    statuses = []
    for cell in found:
        ended = cells.attempted(cell)
        if cells.state(cell) == "done":
            words = final_words(cell.run_dir / "rounds.jsonl")
        else:
            statuses.append(ended.exit if ended and ended.exit > 0 else 1)
            words = ended.message if ended else "another process has it"
        print(f"{cells.state(cell):<8}{cell.run_dir.name}  {words}")
    if len(statuses) < len(found):
        report(folder)
    print(f"{'sweep':<8}{folder} ({len(found)} runs, {len(statuses)} failed)")
    return max(statuses, default=0)
