"""Checkpoints: everything that survives a round, in a format that holds no code.

`checkpoints/round-000010.safetensors` holds the tensors and `round-000010.json` the rest, with the SHA-256 of the
tensors and of the configuration. The JSON is written last, so a checkpoint is there when its JSON is, and counts only
if the sums agree; a torn one is passed over and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from fedscale_local.records import write_file
from fedscale_local.scaling import Memory

KEPT = 2
"""The newest checkpoint and the one before it, should the newest turn out to be damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `round`: a tree of dicts, sets, memories, tensors, arrays, numbers and texts."""

    round: int
    state: Mapping[str, Any]


def write(run_dir: Path, checkpoint: Checkpoint, config: str) -> None:
    """Add a checkpoint to a run directory and remove those that are no longer kept.

    config: the text of the configuration, so that a checkpoint is never continued under another one.
    """
    folder = run_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    stem = f"round-{checkpoint.round:06d}"
    leaves: dict[int, Tensor] = {}
    tree = _encode(checkpoint.state, leaves)
    tensors = save({str(key): tensor.clone().contiguous() for key, tensor in leaves.items()})
    about = {
        "round": checkpoint.round,
        "sha256": hashlib.sha256(tensors).hexdigest(),
        "config_sha256": _config_sum(config),
        "state": tree,
    }
    write_file(folder / f"{stem}.safetensors", tensors)
    write_file(folder / f"{stem}.json", json.dumps(about).encode())
    _flush_folder(folder)
    for old in _stems(folder)[:-KEPT]:
        (folder / f"{old}.json").unlink()
        (folder / f"{old}.safetensors").unlink(missing_ok=True)


def newest(run_dir: Path, config: str) -> Checkpoint | None:
    """The newest checkpoint of this configuration whose sums agree; None if there is none."""
    folder = run_dir / "checkpoints"
    for stem in reversed(_stems(folder)):
        try:
            about = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
            tensors = (folder / f"{stem}.safetensors").read_bytes()
            whole = about["sha256"] == hashlib.sha256(tensors).hexdigest()
            if whole and about["config_sha256"] == _config_sum(config):
                return Checkpoint(int(about["round"]), _decode(about["state"], load(tensors)))
        except (OSError, ValueError, KeyError):
            continue
    return None


def _encode(value: Any, leaves: dict[int, Tensor]) -> Any:
    """A tree that JSON holds, its tensors put into `leaves`; one that occurs twice is kept once."""
    if isinstance(value, Tensor):
        leaves[id(value)] = value
        return {"tensor": id(value)}
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        leaves[id(tensor)] = tensor
        return {"array": id(tensor)}
    if isinstance(value, Memory):
        return {"memory": [_encode(value.value, leaves), value.clock]}
    if isinstance(value, Mapping):
        return {"dict": [[key, _encode(part, leaves)] for key, part in value.items()]}
    if isinstance(value, set):
        return {"set": sorted(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def _decode(tree: Any, leaves: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return leaves[str(content)]
    if kind == "array":
        return leaves[str(content)].numpy()
    if kind == "memory":
        return Memory(_decode(content[0], leaves), content[1])
    if kind == "set":
        return set(content)
    return {key: _decode(part, leaves) for key, part in content}


def _stems(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("round-*.json"))


def _config_sum(config: str) -> str:
    """Of what decides the result; more rounds, another place or another pace of looking do not."""
    container = json.loads(config)
    for key in ("num_rounds", "run_dir", "checkpoint_every", "engine", "superlink", "tracking"):
        container.pop(key, None)
    return hashlib.sha256(json.dumps(container, sort_keys=True).encode()).hexdigest()


def _flush_folder(folder: Path) -> None:
    """Renames are on disk only when their folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
