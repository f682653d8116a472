"""The writing side of a run directory.

Text grows by whole lines; whole files are written beside their name and then renamed (disk.py).
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

import fedscale_local
from fedscale_local import disk, identity
from fedscale_local.config import Config, to_container
from fedscale_local.data.partition import counts
from fedscale_local.errors import RunDirError, StorageError

if TYPE_CHECKING:
    from fedscale_local.experiment import Experiment


def line(record: Mapping[str, Any]) -> bytes:
    """One JSON line; a number that is not finite becomes null."""
    return json.dumps(_finite(dict(record)), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    """The same with null for each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line to a file of records; raises StorageError."""
    disk.append(path, line(record))


def rewind(run_dir: Path, round: int, before: int = 0, record: Mapping[str, Any] | None = None) -> None:
    """Let the records end with this round, as what comes after it is to be done again.

    before: bytes of rounds.jsonl before the round's own line, which is `record`.
    """
    path = run_dir / "rounds.jsonl"
    found = path.read_bytes() if path.exists() else b""
    whole = found[:before] + (line(record) if record is not None else b"")
    if found != whole:
        disk.write(path, whole)
    path = run_dir / "timing.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [entry for entry in lines if 0 < _round_of(entry) <= round]
    if len(kept) < len(lines):
        disk.write(path, b"".join(kept))


def _round_of(entry: bytes) -> int:
    """The round that a line tells of; -1 for one that was cut short or damaged."""
    try:
        return int(json.loads(entry)["round"]) if entry.endswith(b"\n") else -1
    except (ValueError, KeyError, TypeError):
        return -1


def create(run_dir: Path, experiment: Experiment, engine: Mapping[str, Any]) -> None:
    """Make the run directory with everything that is known before the first round."""
    config = experiment.config
    manifest = {
        "fedscale_local": fedscale_local.__version__,
        **identity.now(config),
        "commit": _commit(),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "engine": dict(engine),
        "privacy": _privacy(experiment),
        "seed": config.seed,
        "num_parameters": experiment.task.layout.size,
        "data_note": experiment.dataset.note,
        "hostile_clients": list(experiment.hostile),
        "common_random_numbers": identity.common_random_numbers(experiment),
        "started": _now(),
        "finished": None,
        "exit": "running",
    }
    files = {
        "config.yaml": _yaml(config),
        "partition.json": json.dumps(_partition(experiment)),
    }
    if (run_dir / "manifest.json").exists():
        raise RunDirError(f"run_dir={run_dir}", "another run has just been there", "choose another run_dir")
    try:
        for name, text in files.items():
            disk.write(run_dir / name, text.encode())
        _write_manifest(run_dir, manifest)
    except StorageError as error:
        raise RunDirError(
            f"run_dir={run_dir}", f"it cannot be written ({error.reason})", "choose another run_dir"
        ) from error


def _yaml(config: Config) -> str:
    """As yaml.safe_dump, by the emitter in C where there is one, which takes a quarter of the time."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(to_container(config), Dumper=dumper, sort_keys=False)


def finish(run_dir: Path, exit: str) -> None:
    """Say in the manifest how the run ended."""
    _write_manifest(run_dir, _manifest(run_dir) | {"finished": _now(), "exit": exit})


def carry_on(
    run_dir: Path, config: Config, engine: Mapping[str, Any], round: int, notes: Sequence[str]
) -> None:
    """Say in the manifest from which round the run goes on, what is to be known of that, and with what it does."""
    entry = {"time": _now(), "after_round": round, "notes": list(notes)}
    manifest = _manifest(run_dir)
    manifest |= identity.now(config) | {"engine": dict(engine), "finished": None, "exit": "running"}
    manifest["resumed"] = [*manifest.get("resumed", []), entry]
    disk.remove(run_dir / "clients.json")  # of what was the last model, and it may not be asked for any more
    disk.write(run_dir / "config.yaml", _yaml(config).encode())
    _write_manifest(run_dir, manifest)


def _manifest(run_dir: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def save_model(run_dir: Path, tensors: Mapping[str, Tensor]) -> None:
    """model.safetensors: the named tensors of the last round."""
    disk.write(run_dir / "model.safetensors", save({name: t.contiguous() for name, t in tensors.items()}))


def save_clients(run_dir: Path, found: Mapping[str, Any]) -> None:
    """clients.json: how the last round's model does from client to client (evaluation.py)."""
    disk.write(run_dir / "clients.json", line(found))


def _write_manifest(run_dir: Path, manifest: Mapping[str, Any]) -> None:
    disk.write(run_dir / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def _privacy(experiment: Experiment) -> dict[str, Any] | None:
    """How clients are kept from being found out, and what the rounds' epsilon means; None: not at all."""
    mechanism = experiment.mechanism
    if mechanism is None:
        return None
    return {
        "kind": mechanism.kind,
        "noise_multiplier": mechanism.multiplier,
        "noise_source": "system" if mechanism.secure else "seed",
        "delta": mechanism.delta,
        "accountant": mechanism.accountant,
        "neighbours": mechanism.neighbours,
        "release": mechanism.release._asdict(),
        "warnings": list(mechanism.warnings),
    }


def _partition(experiment: Experiment) -> dict[str, Any]:
    """Who holds what: counts per client and class, or only sizes where there are no classes."""
    partition, dataset = experiment.partition, experiment.dataset
    if dataset.labels is None:
        return {"num_clients": len(partition), "sizes": partition.sizes.tolist()}
    names = dataset.class_names or tuple(str(label) for label in range(dataset.num_classes))
    table = counts(partition, dataset.labels, dataset.num_classes)
    return {"num_clients": len(partition), "classes": list(names), "counts": table.tolist()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _processor() -> str:
    """The processor's name as Linux says it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the source tree, where the package runs from one."""
    root = Path(fedscale_local.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
