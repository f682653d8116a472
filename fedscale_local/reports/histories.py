"""Runs as a comparison reads them: found below the directories given, reduced to arrays, grouped by method."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedscale_local.decisive import decisive
from fedscale_local.errors import RunDirError
from fedscale_local.reports import facts
from fedscale_local.reports.clock import Clock
from fedscale_local.run_dir import SWEEP, Run, cells, read

NAMES = ("seed", "run_dir")  # keys that name a run of a method
METRICS = ("test_accuracy", "test_loss", "train_loss")
OF_D = ("d_condition", "d_change", "d_floored")  # what a round says of the preconditioner
OF_MODEL = (
    "test_accuracy",
    "test_loss",
    "train_accuracy",
    "train_loss",
)  # what clients.json says of each client
PERSONAL = "personal_"  # before those of them that are of the client's own model
OF_CLIENTS = (*OF_MODEL, *(PERSONAL + key for key in OF_MODEL[:2]))
DEFAULT_CLOCK = Clock()
NAME_WIDTH = 44  # characters of a name that tells every difference


@dataclass(frozen=True)
class History:
    """One finished run over its n recorded rounds.

    run      the run without its records
    method   the flat configuration without seed and what decides nothing of a round (decisive.py)
    free     the rest of it but for the run directory
    rounds   (n,) round numbers
    clients  (n,) one number for each list of sampled clients; equal lists have equal numbers
    spent    totals (n,) after each round of "rounds", "bytes" (both ways), "uplink" (bytes), "steps" (local steps of
             all clients), "simulated" (seconds by the clock of the federation) and "seconds" (by that of the
             machine); a key is absent where the files do not tell
    values   metric -> (n,), NaN where it was not measured or not finite
    due      (n,) was there an evaluation in this round?
    holders  digest of partition.json, "" where there is none
    of_d     key of OF_D -> (n,), NaN where a round does not say; a key is absent where none does
    clients_at_end  key of OF_CLIENTS -> (clients with examples,) of the last round's model
    shared   sums of what the seed decides for every method alike; empty where the manifest has none
    """

    run: Run
    seed: int
    method: Mapping[str, Any]
    free: Mapping[str, Any]
    rounds: np.ndarray
    clients: np.ndarray
    spent: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    due: np.ndarray
    holders: str
    of_d: dict[str, np.ndarray]
    clients_at_end: dict[str, np.ndarray]
    shared: Mapping[str, str] = field(default_factory=dict)

    def measured(self, metric: str) -> np.ndarray:
        """The rounds, as indices, in which this metric was to be measured."""
        is_due = self.due if metric.startswith("test_") else np.ones(len(self.rounds), dtype=bool)
        return np.flatnonzero(is_due | np.isfinite(self.values[metric]))


@dataclass(frozen=True)
class Method:
    """Runs that differ by their seed alone, under the name that tells them from the other methods."""

    name: str
    runs: dict[int, History]

    @cached_property
    def any_run(self) -> History:
        return next(iter(self.runs.values()))


# ---------------------------------------------------------------- finding and reading


def gather(
    directories: Iterable[Path | str], clock: Clock = DEFAULT_CLOCK
) -> tuple[list[History], list[str]]:
    """Every finished run at or below these directories, and a sentence for each one that is left out.

    clock: what tells the simulated seconds.

    Raises:
        RunDirError: nothing there; a file that cannot be read; one directory named twice; one method run twice
            under one seed.
    """
    histories: list[History] = []
    left_out: list[str] = []
    seen: set[Path] = set()
    partitions: dict[str, Any] = {}  # one of each: the methods of a seed share theirs
    for path in (found for directory in directories for found in _run_dirs(Path(directory))):
        if path.resolve() in seen:
            raise RunDirError(str(path), "this run directory is named twice", "name each directory once")
        seen.add(path.resolve())
        run = read(path)
        reason = _unfinished(run)
        if reason:
            left_out.append(f"{path} is left out: {reason}.")
        else:
            histories.append(_history(run, partitions, clock))
    _refuse_twins(histories)
    return _told_apart(histories), left_out


def _run_dirs(directory: Path) -> Iterator[Path]:
    """Directories with a manifest.json, in the order of their names (10 after 9); nothing is sought inside one.

    Of a sweep's directory those that it lists: beside them may lie runs of the same cells with other code or data.
    """
    if not directory.is_dir():
        raise RunDirError(str(directory), "no such directory", "name a directory that a run or a sweep wrote")
    found = False
    for folder, inside, files in os.walk(directory):
        if "manifest.json" in files or SWEEP in files:
            paths = [Path(folder)] if "manifest.json" in files else cells(Path(folder))
            found, inside[:] = found or bool(paths), []
            yield from paths
        inside.sort(key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    if not found:
        expectation = "neither this directory nor one below it holds a run (a manifest.json)"
        raise RunDirError(str(directory), expectation, "name a directory that a run or a sweep wrote")


def _unfinished(run: Run) -> str:
    """Why a run cannot be compared, "" if it can. A run that says it is done has whole files."""
    status, planned = str(run.manifest.get("exit", "unknown")), run.config.get("num_rounds")
    if status != "done":
        return f"it ended as {status}" if status.startswith(("failed", "interrupted")) else f"it is {status}"
    if run.notes:
        torn = f"the run is done, but its files are not whole ({run.notes[0].rstrip('.')})"
        raise RunDirError(str(run.path), torn, "restore the file, or leave this directory out")
    last = run.rounds[-1]["round"] if run.rounds else 0
    if isinstance(planned, int) and last < planned:
        return f"its records end at round {last} of {planned}, though it says done"
    return "" if run.rounds else "it has no round"


def _history(run: Run, partitions: dict[str, Any], clock: Clock) -> History:
    seed, records = run.config.get("seed"), run.rounds
    if not isinstance(seed, int) or isinstance(seed, bool):
        expectation = f"expected a whole number under 'seed', found {seed!r}"
        raise RunDirError(
            str(run.path / "config.yaml"), expectation, "name a directory that a run or a sweep wrote"
        )
    rounds = np.array([record["round"] for record in records])
    every, last = run.config.get("eval_every"), run.config.get("num_rounds")
    due = (rounds % every == 0) | (rounds == last) if isinstance(every, int) and every > 0 else rounds == last
    values = {
        metric: np.array([record[metric] for record in records], dtype=float)  # None becomes NaN
        for metric in METRICS
    }
    holders = _digest(run.partition)
    makes_method = decisive(run.config).keys() - set(NAMES)
    return History(
        run=Run(run.path, run.config, run.manifest, partition=partitions.setdefault(holders, run.partition)),
        seed=seed,
        method=dict(_flat({key: value for key, value in run.config.items() if key in makes_method})),
        free=dict(
            _flat({key: value for key, value in run.config.items() if key not in (*makes_method, *NAMES)})
        ),
        rounds=rounds,
        clients=np.array([hash(tuple(record.get("clients") or ())) for record in records]),
        spent=_spent(run, rounds, clock),
        values=values,
        due=due & bool(np.isfinite(np.stack([values["test_loss"], values["test_accuracy"]])).any()),
        holders=holders,
        of_d=_known_of([{key: record.get(key) for key in OF_D} for record in records]),
        clients_at_end=_clients_at_end(run),
        shared=_shared(run.manifest),
    )


def _known_of(records: Sequence[Mapping[str, float | None]]) -> dict[str, np.ndarray]:
    """Each key that any of the records has a number for, as (n,)."""
    every = {key: np.array([record[key] for record in records], dtype=float) for key in records[0]}
    return {key: values for key, values in every.items() if np.isfinite(values).any()}


def _clients_at_end(run: Run) -> dict[str, np.ndarray]:
    every = {key: np.array((run.clients or {}).get(key, []), dtype=float) for key in OF_CLIENTS}
    return {key: known for key, values in every.items() if (known := values[np.isfinite(values)]).size}


def _shared(manifest: Mapping[str, Any]) -> dict[str, str]:
    told = manifest.get("common_random_numbers")
    return {str(key): str(value) for key, value in told.items()} if isinstance(told, dict) else {}


def _spent(run: Run, rounds: np.ndarray, clock: Clock) -> dict[str, np.ndarray]:
    up, down = (
        np.array([record[key] or 0 for record in run.rounds], dtype=float)
        for key in ("bytes_up", "bytes_down")
    )
    spent = {"rounds": rounds.astype(float), "bytes": np.cumsum(up + down), "uplink": np.cumsum(up)}
    steps = _steps_of_a_client(run)
    if steps is not None:
        try:
            taken = [[steps[client] for client in record.get("clients") or ()] for record in run.rounds]
        except (IndexError, TypeError):
            expectation = "its 'clients' are not those of partition.json"
            raise RunDirError(
                str(run.path / "rounds.jsonl"), expectation, "restore the file, or leave this run out"
            ) from None
        spent["steps"] = np.cumsum(np.array([sum(each) for each in taken], dtype=float))
        most, asked = np.array([(max(each, default=0), len(each)) for each in taken], dtype=float).T
        spent["simulated"] = np.cumsum(clock.seconds(most, down, up, asked))
    seconds = {record.get("round"): record.get("round_seconds") for record in run.timing}
    took = [seconds.get(record["round"]) for record in run.rounds]
    if all(isinstance(one, int | float) for one in took):
        spent["seconds"] = np.cumsum(np.array(took, dtype=float))
    return spent


class _Always(dict[int, int]):
    """The same number of steps for each client."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __missing__(self, client: int) -> int:
        return self.steps


def _steps_of_a_client(run: Run) -> Mapping[int, int] | Sequence[int] | None:
    """Local steps of each client in one round, as the configuration and the sizes of the shards have it."""
    client = run.config.get("client")
    if not isinstance(client, dict):
        return None
    if isinstance(client.get("local_steps"), int):
        return _Always(client["local_steps"])
    epochs, batch, sizes = client.get("local_epochs"), client.get("batch_size"), facts.shard_sizes(run)
    if not isinstance(epochs, int) or sizes is None or not (batch == "full" or isinstance(batch, int)):
        return None
    if batch == "full":
        return (epochs * (sizes > 0)).tolist()
    batches = sizes // batch if client.get("drop_last") else -(-sizes // batch)
    return (epochs * batches).tolist()


def _digest(partition: dict[str, Any] | None) -> str:
    if partition is None:
        return ""
    return hashlib.sha256(json.dumps(partition, sort_keys=True).encode()).hexdigest()


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# ---------------------------------------------------------------- methods


def _identity(history: History) -> str:
    return json.dumps(history.method, sort_keys=True, default=str)


def _refuse_twins(histories: Sequence[History]) -> None:
    seen: dict[tuple[str, str, int], History] = {}
    for history in histories:
        free = json.dumps(history.free, sort_keys=True, default=str)
        twin = seen.setdefault((_identity(history), free, history.seed), history)
        if twin is not history:
            expectation = f"the same configuration and seed {history.seed} as {twin.run.path}"
            raise RunDirError(str(history.run.path), expectation, "name one of the two directories")


def _told_apart(histories: Sequence[History]) -> list[History]:
    """The same, where two runs of one method under one seed are two methods, told apart by what else they differ in.

    So a sweep over the number of workers or of rounds has a method for each.
    """
    groups: dict[str, list[History]] = {}
    for history in histories:
        groups.setdefault(_identity(history), []).append(history)
    apart = {
        identity: differences([history.free for history in group])
        for identity, group in groups.items()
        if len({history.seed for history in group}) < len(group)
    }
    return [
        replace(history, method={**history.method, **{key: history.free.get(key) for key in keys}})
        for history in histories
        for keys in [apart.get(_identity(history), [])]
    ]


def methods(histories: Sequence[History]) -> list[Method]:
    """The runs in groups that differ by more than their seed, in the order in which they were found."""
    groups: dict[str, dict[int, History]] = {}
    for history in sorted(histories, key=lambda history: history.seed):
        groups.setdefault(_identity(history), {})[history.seed] = history
    found = list(dict.fromkeys(map(_identity, histories)))
    configurations = [next(iter(groups[identity].values())).method for identity in found]
    called = names(configurations) if len(found) > 1 else [facts.method_name(histories[0].run)]
    return [Method(name, groups[identity]) for name, identity in zip(called, found, strict=True)]


def differences(configurations: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted keys in which these flat configurations differ, choices of a group first.

    >>> differences([{"seed": 1, "client.step_size": 0.1, "strategy.name": "a"},
    ...              {"seed": 1, "client.step_size": 0.2, "strategy.name": "b"}])
    ['strategy.name', 'client.step_size']
    """
    keys = dict.fromkeys(key for configuration in configurations for key in configuration)
    differ = [key for key in keys if len({repr(one.get(key, ...)) for one in configurations}) > 1]
    return sorted(differ, key=lambda key: (_short(key) == key, not key.startswith("strategy.")))


def names(configurations: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each: every difference where that is short, else only as many as tell all methods apart."""
    keys = differences(configurations)
    whole = [_name(one, keys) for one in configurations]
    if max(map(len, whole)) <= NAME_WIDTH:
        return whole
    enough: list[str] = []
    count = 1
    for key in keys:
        tried = len({_name(one, [*enough, key]) for one in configurations})
        if tried > count:
            enough, count = [*enough, key], tried
    return [_name(one, enough) for one in configurations]


def _name(configuration: Mapping[str, Any], keys: Sequence[str]) -> str:
    told = [key for key in keys if key in configuration and not _is_said_by_target(configuration, key)]
    return " ".join(f"{_short(key)}={_text(configuration, key)}" for key in told) or "-"


def _is_said_by_target(configuration: Mapping[str, Any], key: str) -> bool:
    """strategy.name is "flower" for all of Flower's; their class says more."""
    return key.endswith(".name") and f"{key.removesuffix('name')}_target_" in configuration


def _short(key: str) -> str:
    """A group's choice by the group, as it is asked for: strategy.name is strategy."""
    group, _, last = key.rpartition(".")
    return group if group and last in ("name", "rule", "scheme", "_target_") else key


def _text(configuration: Mapping[str, Any], key: str) -> str:
    value = configuration.get(key)
    if isinstance(value, str):
        return value.rsplit(".", 1)[-1] if key.endswith("._target_") else value
    return json.dumps(value, default=str)
