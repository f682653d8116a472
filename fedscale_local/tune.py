"""Tuning with equal trials: each method gets as many, drawn by Optuna from one space, under the same seeds.

A trial is a cell of a sweep for each seed. What is drawn for trial t is a function of the seed, t and the trials before
it, and what a trial is worth is a function of its cells' records; a trial is written to the study, whole, when it is
over. So a command that was killed at any moment and is repeated draws the same again, finds the cells that are there,
and counts nothing twice. `study.db` is Optuna's; `tuning.json` says the same for reports.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from fedscale_local import (
    cells,
    compose,
    config_tune,
    disk,
    drawing,
    fresh,
    locks,
    progress,
    pruning,
    randomness,
    sweep,
)
from fedscale_local.cells import Cell
from fedscale_local.compose_tuning import Tuning
from fedscale_local.config import Config
from fedscale_local.config_tune import Tune
from fedscale_local.errors import ConfigError, RunDirError
from fedscale_local.reports import tuning
from fedscale_local.run_dir import TUNING


class Study(NamedTuple):
    """The trials of one method. method: its place in the tuning; identity: a sum of all that decides its numbers."""

    method: int
    name: str
    identity: str
    stored: optuna.Study


class Attempt(NamedTuple):
    """A trial that is under way: its values as they are run, and its cell for each seed."""

    study: Study
    values: dict[str, Any]
    cells: list[Cell]


def run(planned: Tuning) -> int:
    """All trials that are not over yet, one of each method after the other; the status is the worst of theirs.

    Raises:
        ConfigError: a configuration that cannot be right, or a metric that no round has.
        RunDirError: the directory cannot be used, or another process tunes in it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = config_tune.checked(planned.settings)
    first, last = ({d.key: drawing.end(d, place) for d in planned.space} for place in (0, -1))
    methods = range(len(planned.methods))
    configs = [config for method in methods for config in compose.configs(planned.jobs(method, first))]
    for method in methods:
        compose.configs(planned.jobs(method, last)[:1])  # checked, too, before any begins
    folder = sweep.usable(Path(planned.folder), configs)
    try:
        with locks.hold(folder):
            studies = _studies(planned, settings, folder, configs)
            statuses = _all_trials(planned, settings, folder, studies)
            _tell(planned, settings, folder, studies)
            _finish(folder, studies)
    except KeyboardInterrupt as stop:
        stop.add_note("the same command carries the tuning on")
        raise
    finally:
        fresh.close_here()
    return max(statuses, default=0)


def _finish(folder: Path, studies: Sequence[Study]) -> None:
    """What was found for each method, what is to be known of that, and the comparison of the best."""
    found = {one.name: one for one in tuning.read(folder)}
    for study in studies:
        one = found[study.name]
        print(
            f"{'tuned':<8}{' '.join(part for part in (one.name, one.values_text) if part)}  {one.best_words}"
        )
    for words in tuning.remarks(list(found.values())):
        print(f"{'note':<8}{words}")
    sweep.report(folder)
    print(f"{'study':<8}{folder / 'study.db'}")


def _all_trials(planned: Tuning, settings: Tune, folder: Path, studies: Sequence[Study]) -> list[int]:
    """Trial after trial, of each method that has not done it; the statuses of those that had to be given up."""
    given_up: dict[str, int] = {}
    for number in range(settings.trials):
        todo = [s for s in studies if len(s.stored.trials) <= number and s.name not in given_up]
        begun = (_begun(planned, settings, folder, study, number) for study in todo)
        attempts = [attempt for attempt in begun if attempt is not None]
        every = [cell for attempt in attempts for cell in attempt.cells]
        if not every:
            continue
        sweep.record(folder, every)
        with progress.follow_sweep(every):
            sweep.work_off(compose.Sweep(planned.shared, [], planned.folder), every)
        sweep.record(folder, every)
        for attempt in attempts:
            trial, status, words = _over(planned, settings, attempt)
            where = f"{attempt.study.name or 'trial'} {number + 1}/{settings.trials}"
            print(f"{where:<24} {_said(attempt.values)}  {words}", flush=True)
            if trial is None:
                given_up[attempt.study.name] = status
            else:
                attempt.study.stored.add_trial(trial)
        _tell(planned, settings, folder, studies)
    return list(given_up.values())


# ---------------------------------------------------------------- studies


def _studies(planned: Tuning, settings: Tune, folder: Path, configs: Sequence[Config]) -> list[Study]:
    """The study of each method: as it was left, or a new one where configuration, data, code or libraries changed."""
    keys = [cell.key for cell in sweep.cells_of(folder, configs, [[] for _ in configs])]
    direction = settings.aim
    told = settings.model_dump(exclude={"trials", "direction"}) | {"direction": direction}
    storage = _storage(folder / "study.db")
    found, count = [], len(planned.seeds)
    for method, apart in enumerate(planned.apart):
        own = [told, [list(d) for d in planned.space], keys[method * count : (method + 1) * count]]
        identity = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]
        name = " ".join(apart)
        stored = optuna.create_study(
            storage=storage, study_name=f"{name} {identity}".strip(), direction=direction, load_if_exists=True
        )
        found.append(Study(method, name, identity, stored))
    return found


def _storage(path: Path) -> optuna.storages.RDBStorage:
    """The file of studies; its tables are made beside its name, so that it is whole or not there."""
    if not path.exists():
        part = path.with_name(path.name + ".part")
        disk.remove(part)
        made = optuna.storages.RDBStorage(f"sqlite:///{part.absolute()}")
        made.remove_session()
        made.engine.dispose()
        os.replace(part, path)
    return optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}")


# ---------------------------------------------------------------- one trial


def _begun(planned: Tuning, settings: Tune, folder: Path, study: Study, number: int) -> Attempt | None:
    """What is drawn for this trial, and its cells; None where the whole space was tried."""
    seed = int(planned.seeds[0])
    drawn = drawing.draw(planned.space, study.stored, randomness.derive(seed, "tune", number))
    if drawn is None:
        return None
    values = {d.key: drawing.text(drawn[d.name]) for d in planned.space}
    jobs = planned.jobs(study.method, values)
    apart = [*planned.apart[study.method], *(f"{key.lstrip('+')}={value}" for key, value in values.items())]
    names = [[*apart, f"seed={own}"] for own in planned.seeds]
    found = sweep.cells_of(folder, compose.configs(jobs), names)
    if settings.prune:
        found = [
            cell._replace(limits=_limits(settings, study, own))
            for cell, own in zip(found, planned.seeds, strict=True)
        ]
    return Attempt(study, drawn, found)


def _limits(settings: Tune, study: Study, seed: str) -> pruning.Limits:
    whole = [
        {int(round): value for round, value in trial.user_attrs["curves"][seed].items()}
        for trial in study.stored.trials
        if trial.state == TrialState.COMPLETE
    ]
    after = settings.prune_after_trials, settings.prune_after_rounds
    return pruning.limits(settings.metric, settings.is_maximized, whole, *after)


def _over(planned: Tuning, settings: Tune, attempt: Attempt) -> tuple[FrozenTrial | None, int, str]:
    """The trial as it goes into the study, and words; None and a status where its cells may do better next time."""
    ill = [cell for cell in attempt.cells if not cells.is_settled(cell)]
    params: dict[str, Any] = {
        "params": attempt.values,
        "distributions": {dimension.name: drawing.distribution(dimension) for dimension in planned.space},
    }
    attrs: dict[str, Any] = {"cells": [cell.run_dir.name for cell in attempt.cells]}
    for cell in ill:
        ended = cells.attempted(cell)
        if ended is None or ended.exit != ConfigError.exit_status:
            words = f"failed: {ended.message if ended else 'another process has it'}; the same command tries it again"
            return None, max(ended.exit, 1) if ended else 1, words
        attrs["reason"] = ended.message
        failed = optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attrs, **params)
        return failed, 0, f"cannot be run: {ended.message}"
    records = [pruning.read(cell.run_dir) for cell in attempt.cells]
    _refuse_unmeasured(settings, records)
    curves = [pruning.curve_of(one, settings.metric) for one in records]
    behind = [
        round
        for cell, curve in zip(attempt.cells, curves, strict=True)
        if cell.limits is not None and (round := pruning.verdict(curve, cell.limits)) is not None
    ]
    end = min(behind, default=records[0][-1]["round"])
    curves = [{round: value for round, value in curve.items() if round <= end} for curve in curves]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    means = {round: math.fsum(curve[round] for curve in curves) / len(curves) for round in common}
    attrs["curves"] = {seed: curve for seed, curve in zip(planned.seeds, curves, strict=True)}
    if behind:
        state, value, words = TrialState.PRUNED, means.get(end), f"pruned in round {end}"
    else:
        worst = -math.inf if settings.is_maximized else math.inf
        state, value = TrialState.COMPLETE, means.get(end, worst)
        words = f"{settings.metric} {value:.6g}" if math.isfinite(value) else "diverged"
    done = optuna.trial.create_trial(
        state=state, value=value, intermediate_values=means, user_attrs=attrs, **params
    )
    return done, 0, words


def _refuse_unmeasured(settings: Tune, records: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """A metric that is nowhere, while the training loss shows that the run has not diverged."""
    last = [run[-1] for run in records]
    if all(one.get(settings.metric) is None and one.get("train_loss") is not None for one in last):
        known = [k for k, v in last[0].items() if isinstance(v, int | float) and k != "round"]
        raise ConfigError(
            f"tune.metric={settings.metric}",
            "the last round's record has no such number",
            f"set tune.metric to one of {', '.join(known)}",
        )


def _said(values: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={drawing.text(value)}" for key, value in values.items())


# ---------------------------------------------------------------- what is told


def _tell(planned: Tuning, settings: Tune, folder: Path, studies: Sequence[Study]) -> None:
    """tuning.json: these methods, and those of earlier commands in the same directory."""
    own = [_told(planned, settings, study) for study in studies]
    path = folder / TUNING
    earlier: list[dict[str, Any]] = []
    if path.exists():
        try:
            earlier = json.loads(path.read_bytes())["methods"]
        except (OSError, ValueError, KeyError) as error:
            raise RunDirError(
                str(path), f"cannot be read ({error})", "remove it; the study has the same"
            ) from None
    replaced = {method["name"] for method in own}
    methods = [*(method for method in earlier if method["name"] not in replaced), *own]
    disk.write(path, (json.dumps({"methods": methods}, indent=1) + "\n").encode())


def _told(planned: Tuning, settings: Tune, study: Study) -> dict[str, Any]:
    trials = study.stored.trials
    return {
        "name": study.name,
        "study": study.identity,
        "metric": settings.metric,
        "direction": settings.aim,
        "seeds": [int(seed) for seed in planned.seeds],
        "space": [{**d._asdict(), "key": d.name} for d in planned.space],
        "best": _best(settings, trials),
        "trials": [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "values": trial.params,
                "value": trial.value if trial.value is not None and math.isfinite(trial.value) else None,
                "cells": trial.user_attrs["cells"],
            }
            for trial in trials
        ],
    }


def _best(settings: Tune, trials: Sequence[FrozenTrial]) -> int | None:
    """The first of the best whole trials; None where none has a value."""
    sign = -1 if settings.is_maximized else 1
    whole = [
        (sign * t.value, t.number) for t in trials if t.state == TrialState.COMPLETE and t.value is not None
    ]
    return min((pair for pair in whole if math.isfinite(pair[0])), default=(0, None))[1]
