"""Run directories as they are read: every report, plot and table of an experiment starts here.

`read` checks the shape of what it finds once, so that its readers need no guards against strings where
numbers belong. It opens files for reading only and imports nothing that computes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from fedscale_local.errors import RunDirError

NUMBERS = ("train_loss", "test_loss", "test_accuracy", "bytes_up", "bytes_down")

SWEEP = "sweep.json"
"""In the directory of a sweep: which of the run directories in it are its cells."""
TUNING = "tuning.json"
"""In the directory of a tuning: each method's space and trials."""


@dataclass(frozen=True)
class Run:
    """What one run directory holds.

    config     the resolved configuration
    manifest   versions, hardware, engine, seed, exit
    rounds     one dict a round, numbered upwards; a number that is absent or not finite is None
    timing     one dict a round with seconds, possibly fewer or more than there are rounds
    partition  {"num_clients", "classes", "counts"} with counts (clients, classes), or {"sizes"}, or None
    notes      what a reader should know about the files themselves, in sentences
    clients    {"train_loss": ..., "test_accuracy": ..., ...}, a number or None for each client, or None
    """

    path: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    rounds: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)
    partition: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    clients: dict[str, list[float | None]] | None = None


def read(path: Path | str) -> Run:
    """Read a run directory; a run that is under way or was killed reads as far as it got.

    A torn last line (the writer was stopped, or is still writing) is left out and mentioned in `notes`.
    Raises RunDirError where config.yaml or manifest.json is missing, or any file is malformed.
    """
    path = Path(path)
    config, manifest = head(path)
    notes: list[str] = []
    rounds = [_checked_round(record, where) for record, where in _lines(path / "rounds.jsonl", notes)]
    for before, after in pairwise(rounds):
        if after["round"] <= before["round"]:
            found = f"round {after['round']} follows round {before['round']}, rounds must go upwards"
            raise _malformed(path / "rounds.jsonl", found)
    timing = [record for record, _ in _lines(path / "timing.jsonl", notes)]
    partition, clients = _partition(path / "partition.json"), _clients(path / "clients.json")
    return Run(path, config, manifest, rounds, timing, partition, tuple(notes), clients)


def head(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the manifest of a run directory; raises RunDirError as `read` does."""
    if not path.is_dir():
        raise RunDirError(f"run_dir={path}", "no such directory", "name the directory that a run wrote")
    return _mapping(path / "config.yaml", _parse_yaml), _mapping(path / "manifest.json", _parse)


def cells(sweep: Path) -> list[Path]:
    """The cells of a sweep that have begun, in its order; of a tuning those of each method's best trial.

    Raises RunDirError for a malformed sweep.json or tuning.json.
    """
    if (sweep / TUNING).exists():
        best = [method["trials"][method["best"]] for method in tunings(sweep) if method["best"] is not None]
        return [sweep / name for trial in best for name in trial["cells"]]
    rows = _mapping(sweep / SWEEP, _parse).get("cells")
    if not isinstance(rows, list) or not all(isinstance(r, dict) and "run_dir" in r for r in rows):
        raise _malformed(sweep / SWEEP, "expected a list of objects with 'run_dir' under 'cells'")
    paths = [sweep / str(row["run_dir"]) for row in rows]
    return [path for path in paths if (path / "manifest.json").exists()]


def tunings(sweep: Path) -> list[dict[str, Any]]:
    """What tuning.json says of each method; raises RunDirError where it is malformed."""
    methods = _mapping(sweep / TUNING, _parse).get("methods")
    keys = {"name", "metric", "direction", "seeds", "space", "trials", "best"}
    if not isinstance(methods, list) or not all(isinstance(m, dict) and keys <= m.keys() for m in methods):
        raise _malformed(
            sweep / TUNING, f"expected a list of objects with {', '.join(sorted(keys))} under 'methods'"
        )
    return methods


def _malformed(where: Path | str, expectation: str) -> RunDirError:
    return RunDirError(str(where), expectation, "restore the file, or name the directory of another run")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        remedy = "name a directory that a run wrote (it holds config.yaml and manifest.json)"
        raise RunDirError(str(path), "this file of the run directory is missing", remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _malformed(path, f"cannot be read ({error})") from None


_parse = json.JSONDecoder(parse_constant=lambda _: None).decode  # NaN and Infinity are no JSON: "no value"


def _parse_yaml(text: str) -> Any:
    """As yaml.safe_load, by the parser in C where there is one, which takes a tenth of the time."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    text = _text(path)
    try:
        value = parse(text)
    except (ValueError, yaml.YAMLError) as error:
        raise _malformed(path, f"cannot be parsed ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise _malformed(path, f"expected a mapping, found {type(value).__name__}")
    return value


def _lines(path: Path, notes: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each record of a .jsonl file with its place; nothing where the file does not exist yet."""
    if not path.exists():
        return
    # A writer that was stopped can leave half a character behind, so bytes are decoded line by line.
    *whole, rest = path.read_bytes().split(b"\n")
    if rest:
        notes.append(f"The last line of {path.name} is incomplete and was left out.")
    for number, line in enumerate(whole, start=1):
        where = f"{path}:{number}"
        try:
            record = _parse(line.decode("utf-8"))
        except ValueError as error:
            raise _malformed(where, f"expected one JSON object a line ({error})") from None
        if not isinstance(record, dict):
            raise _malformed(where, f"expected one JSON object a line, found {type(record).__name__}")
        yield record, where


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked_round(record: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(record.get("round"), int) or isinstance(record["round"], bool):
        raise _malformed(where, f"expected an integer under 'round', found {record.get('round')!r}")
    for key, value in record.items():
        is_number = key in NUMBERS or key.startswith("d_")
        if is_number and value is not None and not _is_number(value):
            raise _malformed(where, f"expected a number or null under {key!r}, found {value!r}")
    for key in ("clients", "failures"):
        if not isinstance(record.get(key) or [], list):
            raise _malformed(where, f"expected a list under {key!r}, found {record[key]!r}")
    if not all(isinstance(failure, dict) for failure in record.get("failures") or []):
        raise _malformed(where, "expected objects with 'client' and 'reason' under 'failures'")
    return {**dict.fromkeys(NUMBERS), **{key: _finite(value) for key, value in record.items()}}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _partition(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    partition = _mapping(path, _parse)
    rows = partition.get("counts", [partition.get("sizes")])
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise _malformed(path, "expected 'counts' (one list a client) or 'sizes' (one number a client)")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for row in rows for n in row):
        raise _malformed(path, "expected whole numbers of examples, 0 or more")
    if len({len(row) for row in rows}) > 1:
        raise _malformed(path, "expected one number for each class in every row of 'counts'")
    return partition


def _clients(path: Path) -> dict[str, list[float | None]] | None:
    if not path.exists():
        return None
    found = {key: values for key, values in _mapping(path, _parse).items() if key != "failures"}
    for key, values in found.items():
        if not isinstance(values, list) or not all(one is None or _is_number(one) for one in values):
            raise _malformed(path, f"expected a list of numbers and nulls under {key!r}")
    return {key: [_finite(one) for one in values] for key, values in found.items()}
