"""Small whole runs for tests: configuration, data, Flower messages, engine, run directory."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import Context, Message
from safetensors.numpy import load_file

import clients.client_app
from fedscale_local import checkpoint, compose, fresh, lifecycle
from fedscale_local.config import Config, from_container
from fedscale_local.errors import ClientError

NATURAL = (
    "data=arrays",
    "partition=natural",
    "num_clients=null",
    "clients_per_round=null",
    "engine.workers=1",
)
"""Own arrays with clients of their own, all of them in each round, in one process."""


class Run(NamedTuple):
    """What a run left behind."""

    run_dir: Path
    lines: list[dict[str, Any]]
    """Of rounds.jsonl."""
    tensors: dict[str, np.ndarray]

    @property
    def model(self) -> np.ndarray:
        """All tensors as one vector (d,), in the order of their names."""
        return np.concatenate([self.tensors[name].ravel() for name in sorted(self.tensors)])

    @property
    def bytes(self) -> tuple[bytes, bytes]:
        """What the seed determines: rounds.jsonl and model.safetensors."""
        return tuple((self.run_dir / name).read_bytes() for name in ("rounds.jsonl", "model.safetensors"))  # type: ignore[return-value]


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    return compose.compose(overrides)


def configured(*overrides: str, settings: Mapping[str, Any] | None = None) -> Config:
    """The configuration of these overrides, then of `settings`: dotted keys with Python values, quicker than Hydra."""
    container = copy.deepcopy(_composed(overrides))
    for dotted, value in (settings or {}).items():
        section, *path = container, *dotted.split(".")
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = value
    return from_container(container)


def run(run_dir: Path, *overrides: str, settings: Mapping[str, Any] | None = None) -> Run:
    """One run without its report, which takes longer than these runs and nobody looks at."""
    config = configured(*overrides, settings={**(settings or {}), "run_dir": str(run_dir)})
    with patch("fedscale_local.reports.write"):
        lifecycle.run(config)
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    return Run(run_dir, lines, load_file(run_dir / "model.safetensors"))


def client_files(run_dir: Path) -> set[str]:
    """The files with what clients keep that checkpoints of a run name."""
    names = {name for round in checkpoint.rounds(run_dir) for name in checkpoint.files(run_dir, round)}
    return {name for name in names if "/clients/" in name}


def left_over(run_dir: Path) -> set[str]:
    """The files among the checkpoints of a run that none of them names."""
    there = {str(path.relative_to(run_dir)) for path in run_dir.glob("checkpoints/**/*") if path.is_file()}
    return there.difference(*(checkpoint.files(run_dir, round) for round in checkpoint.rounds(run_dir)))


@contextmanager
def absent(client: int) -> Iterator[None]:
    """In process, this client fails before it has done anything."""
    unpack = clients.client_app.try_unpack

    def fail(experiment: Any, message: Message, context: Context, seen: Any) -> Any:
        if context.node_config["partition-id"] == client:
            return ClientError("unpack", client, 0, "not there")
        return unpack(experiment, message, context, seen)

    with patch("clients.client_app.try_unpack", fail):
        yield


def save_arrays(path: Path, x: list[np.ndarray], y: list[Any], **more: np.ndarray) -> Path:
    """One .npz of the clients' own examples, in shuffled order as in real files."""
    owner = np.repeat(np.arange(len(x)), [len(part) for part in x])
    within = np.concatenate([np.arange(len(part)) for part in x])
    order = np.random.default_rng(12).permutation(len(owner))
    order = order[np.argsort(within[order], kind="stable")]  # a client's examples keep their own order
    np.savez(path, x=np.concatenate(x)[order], y=np.concatenate(y)[order], client=owner[order], **more)
    return path


def kept_fresh() -> Iterator[None]:
    """For a fixture of a module: the process that forks the cells of sweeps is kept from one to the next."""
    with pytest.MonkeyPatch.context() as patch:
        end = fresh.close_here
        patch.setattr(fresh, "close_here", lambda: None)
        yield
        end()
