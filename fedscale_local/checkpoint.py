"""Checkpoints: everything that survives a round, in a format that holds no code.

`checkpoints/round-000010.safetensors` holds the tensors and `round-000010.json` the rest: the configuration and its
sum, the round's line of rounds.jsonl, and the SHA-256 of the tensors, of the lines before, and of all this itself. The
JSON is written last, so a checkpoint is there when its JSON is, and counts only if every sum agrees.

Where clients keep their states on disk (client_store.py), `checkpoints/clients/1234-round-000007.safetensors` is what
the client with that node id kept after round 7. It is never written again, and belongs to every checkpoint whose JSON
names it and its sum; it goes with the last of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from fedscale_local import disk
from fedscale_local.decisive import decisive
from fedscale_local.scaling import Memory

LINES = "rounds.jsonl"


class Filed(NamedTuple):
    """A client's state in a file: the round after which it was that, and the sum of the file."""

    round: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """What there is after `round`.

    state   a tree of dicts, lists, sets, memories, tensors, arrays, numbers, texts and bytes
    record  the round's line of rounds.jsonl
    before  bytes of rounds.jsonl before that line
    config  the whole configuration as plain values
    filed   what clients keep in files of their own, by node id
    """

    round: int
    state: Mapping[str, Any]
    record: Mapping[str, Any]
    before: int
    config: Mapping[str, Any]
    filed: Mapping[int, Filed] = field(default_factory=dict)


class Found(NamedTuple):
    """The newest checkpoint that can be relied on, None if there is none, and why newer ones cannot."""

    checkpoint: Checkpoint | None
    passed_over: list[str]


class Damaged(Exception):
    """Why a checkpoint cannot be relied on."""


def snapshot(value: Any) -> Any:
    """The same tree, which stays as it is: containers and NumPy arrays are copied, which strategies change in place.

    Tensors are not: this project replaces them and never writes into one that survives a round.
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: part if type(part) is int else snapshot(part) for key, part in value.items()}
    if isinstance(value, list):
        return [snapshot(part) for part in value]
    return set(value) if isinstance(value, set) else value


def write(run_dir: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Add a checkpoint to a run directory, the lines of rounds.jsonl before it, and forget all but the newest `keep`.

    Raises StorageError.
    """
    folder = run_dir / "checkpoints"
    disk.make_folder(folder)
    disk.flush(run_dir / LINES)
    _flush_clients(run_dir, checkpoint.filed)
    stem = _stem(checkpoint.round)
    tree, leaves = encode(checkpoint.state)
    tensors = save(leaves)
    body = {
        "round": checkpoint.round,
        "record": dict(checkpoint.record),
        "before": checkpoint.before,
        "before_sha256": _sum_of_lines(run_dir, checkpoint.before),
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        "config": dict(checkpoint.config),
        "config_sha256": _sum(decisive(checkpoint.config)),
        "state": tree,
        "filed": [[node, *filed] for node, filed in checkpoint.filed.items()],
    }
    disk.write(folder / f"{stem}.safetensors", tensors)
    text = json.dumps(body)
    about = f'{{"sha256": "{_sum_of_text(text)}", "body": {text}}}'
    disk.write(folder / f"{stem}.json", about.encode())
    forget_older(run_dir, keep)


def newest(run_dir: Path) -> Found:
    """The newest checkpoint whose sums agree."""
    passed_over: list[str] = []
    for round in reversed(rounds(run_dir)):
        try:
            return Found(_read(run_dir, _stem(round)), passed_over)
        except Damaged as error:
            passed_over.append(str(error))
    return Found(None, passed_over)


def forget_after(run_dir: Path, round: int) -> None:
    """Remove the checkpoints of later rounds, which are to be done again, and what an interrupted run left."""
    _forget_others(run_dir, [found for found in rounds(run_dir) if found <= round], math.inf)


def forget_older(run_dir: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`, in a run that may have gone on behind them."""
    kept = rounds(run_dir)[-keep:]
    _forget_others(run_dir, kept, max(kept, default=0))


def rounds(run_dir: Path) -> list[int]:
    """The rounds that have a checkpoint, ascending; whether it can be relied on says `newest`."""
    names = (re.fullmatch(r"round-(\d{6,})\.json", name) for name in _names(run_dir / "checkpoints"))
    return sorted(int(name[1]) for name in names if name)


def files(run_dir: Path, round: int) -> list[str]:
    """The files of a round's checkpoint, by their names in the run directory, as they are written: the JSON last.

    Raises FileNotFoundError if there is none; one whose JSON is damaged names no client's file.
    """
    own = [f"checkpoints/{_stem(round)}.safetensors", f"checkpoints/{_stem(round)}.json"]
    text = (run_dir / own[1]).read_bytes()
    try:
        filed = _filed(json.loads(text)["body"])
        return [*(client_file(node, kept.round) for node, kept in filed.items()), *own]
    except Exception:  # of what is in a damaged file nobody can say how it fails
        return own


def client_file(node: int, round: int) -> str:
    """The name, in the run directory, of the file with what a client kept after this round."""
    return f"checkpoints/clients/{node}-{_stem(round)}.safetensors"


def _read(run_dir: Path, stem: str) -> Checkpoint:
    """A checkpoint that is what was written; raises Damaged with the reason, whatever the files hold."""
    folder = run_dir / "checkpoints"
    try:
        about = json.loads((folder / f"{stem}.json").read_bytes())
        body = about["body"]
        if about["sha256"] != _sum(body) or _stem(body["round"]) != stem:
            raise Damaged(f"{stem}.json is not what was written")
        tensors = (folder / f"{stem}.safetensors").read_bytes()
        if body["tensors_sha256"] != hashlib.sha256(tensors).hexdigest():
            raise Damaged(f"{stem}.safetensors is not what was written")
        if body["before_sha256"] != _sum_of_lines(run_dir, body["before"]):
            raise Damaged(f"{LINES} does not hold the rounds before it as they were written")
        filed = _filed(body)
        for node, kept in filed.items():
            with (run_dir / client_file(node, kept.round)).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != kept.sha256:
                    raise Damaged(f"{Path(file.name).name} is not what was written")
        state = decode(body["state"], load(tensors))
        if not isinstance(state, dict):
            raise Damaged(f"{stem}.json holds no state")
        record, config = dict(body["record"]), dict(body["config"])
        return Checkpoint(body["round"], state, record, body["before"], config, filed)
    except Damaged:
        raise
    except OSError as error:
        name = Path(error.filename or stem).name
        raise Damaged(f"{name} cannot be read ({error.strerror})") from error
    except Exception as error:  # of what is in a damaged file nobody can say how it fails
        raise Damaged(f"{stem} cannot be read ({type(error).__name__}: {error})") from error


def _filed(body: Mapping[str, Any]) -> dict[int, Filed]:
    return {int(node): Filed(int(round), str(sha256)) for node, round, sha256 in body.get("filed", [])}


def encode(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """A tree that JSON holds, and the tensors that it names."""
    leaves: dict[_Place, tuple[int, Tensor]] = {}
    tree = _encode(value, leaves)
    return tree, {str(number): tensor.clone().contiguous() for number, tensor in leaves.values()}


_Place = tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]
"""Where a tensor's numbers lie in memory, and how."""


def _encode(value: Any, leaves: dict[_Place, tuple[int, Tensor]]) -> Any:
    """A tree that JSON holds, its tensors put into `leaves`; one that occurs twice is kept once."""
    if isinstance(value, Tensor):
        place = value.data_ptr(), value.dtype, tuple(value.shape), value.stride()
        return {"tensor": leaves.setdefault(place, (len(leaves), value))[0]}
    if isinstance(value, np.ndarray):
        return {"array": _encode(torch.from_numpy(np.ascontiguousarray(value)), leaves)["tensor"]}
    if isinstance(value, Memory):
        return {"memory": [_encode(value.value, leaves), value.clock]}
    if isinstance(value, Mapping):
        return {"dict": [[key, _encode(part, leaves)] for key, part in value.items()]}
    if isinstance(value, set):
        return {"set": sorted(value)}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_encode(part, leaves) for part in value]}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def decode(tree: Any, leaves: Mapping[str, Tensor]) -> Any:
    """The inverse of encode."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return leaves[str(content)]
    if kind == "array":
        return leaves[str(content)].numpy()
    if kind == "memory":
        return Memory(decode(content[0], leaves), content[1])
    if kind == "set":
        return set(content)
    if kind in ("list", "tuple"):
        parts = [decode(part, leaves) for part in content]
        return parts if kind == "list" else tuple(parts)
    if kind == "bytes":
        return base64.b64decode(content)
    return {key: decode(part, leaves) for key, part in content}


def _stem(round: int) -> str:
    return f"round-{round:06d}"


def _flush_clients(run_dir: Path, filed: Mapping[int, Filed]) -> None:
    """Put these files on disk; what is older than the newest checkpoint is there, as that one names it too."""
    before = max(rounds(run_dir), default=0)
    new = [run_dir / client_file(node, kept.round) for node, kept in filed.items() if kept.round > before]
    for path in new:
        disk.flush(path)
    if new:
        disk.flush(new[0].parent)


def _forget_others(run_dir: Path, rounds: list[int], until: float) -> None:
    """Remove the files of all other checkpoints, and unfinished ones; the JSON goes first, as it came last.

    until: what clients kept after later rounds stays, as a checkpoint that is not written yet may name it.
    """
    folder = run_dir / "checkpoints"
    kept = {f"{_stem(round)}{end}" for round in rounds for end in (".json", ".safetensors")}
    others = [name for name in _names(folder) if name.startswith("round-") and name not in kept]
    for name in sorted(others, key=lambda name: not name.endswith(".json")):
        disk.remove(folder / name)
    clients = _names(folder / "clients")
    if clients:
        named = {Path(name).name for round in rounds for name in files(run_dir, round)}
        for name in clients:
            if name not in named and _round_of(name) <= until:
                disk.remove(folder / "clients" / name)


def _round_of(name: str) -> float:
    """The round after which a client's file was written; a name without one is of the round under way."""
    found = re.fullmatch(r"\d+-round-(\d{6,})\.safetensors", name)
    return int(found[1]) if found else math.inf


def _names(folder: Path) -> list[str]:
    """The files of a folder, none if it is not there; each round looks, and a pathlib glob takes ten times as long."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _sum(value: Any) -> str:
    return _sum_of_text(json.dumps(value))


def _sum_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sum_of_lines(run_dir: Path, size: int) -> str:
    """Of the first `size` bytes of rounds.jsonl."""
    if size == 0:
        return hashlib.sha256().hexdigest()
    with (run_dir / LINES).open("rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()
