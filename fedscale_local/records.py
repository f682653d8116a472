"""The writing side of a run directory.

Text grows by whole lines, each flushed; whole files are written beside their name and then renamed.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor

import fedscale_local
from fedscale_local.config import to_container
from fedscale_local.data.partition import counts
from fedscale_local.errors import RunDirError

if TYPE_CHECKING:
    from fedscale_local.experiment import Experiment

_PACKAGES = ("flwr", "torch", "torchvision", "numpy", "hydra-core", "pydantic", "safetensors")


def write_file(path: Path, content: bytes) -> None:
    """Write all of it or nothing: under a temporary name, flushed to disk, renamed."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """One JSON line; a number that is not finite becomes null."""
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(clean, allow_nan=False) + "\n")


def truncate(run_dir: Path, first: int) -> None:
    """Forget the lines of round `first` and later, which are to be done again, and a line that was cut short."""
    for name in ("rounds.jsonl", "timing.jsonl"):
        path = run_dir / name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["round"] < first]
        if len(kept) < len(lines):
            write_file(path, "".join(kept).encode())


def create(run_dir: Path, experiment: Experiment, engine: Mapping[str, Any]) -> None:
    """Make the run directory with everything that is known before the first round."""
    config = experiment.config
    manifest = {
        "fedscale_local": fedscale_local.__version__,
        "versions": {name: metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "commit": _commit(),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "engine": dict(engine),
        "seed": config.seed,
        "num_parameters": experiment.task.layout.size,
        "data_note": experiment.dataset.note,
        "started": _now(),
        "finished": None,
        "exit": "running",
    }
    files = {
        "config.yaml": yaml.safe_dump(to_container(config), sort_keys=False),
        "partition.json": json.dumps(_partition(experiment)),
    }
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_file(run_dir / name, text.encode())
    except OSError as error:
        raise RunDirError(
            f"run_dir={run_dir}", f"it cannot be written ({error.strerror})", "choose another run_dir"
        ) from error
    _write_manifest(run_dir, manifest)


def finish(run_dir: Path, exit: str) -> None:
    """Say in the manifest how the run ended."""
    manifest = json.loads((run_dir / "manifest.json").read_text())
    _write_manifest(run_dir, manifest | {"finished": _now(), "exit": exit})


def save_model(run_dir: Path, tensors: Mapping[str, Tensor]) -> None:
    """model.safetensors: the named tensors of the last round."""
    write_file(run_dir / "model.safetensors", save({name: t.contiguous() for name, t in tensors.items()}))


def _write_manifest(run_dir: Path, manifest: Mapping[str, Any]) -> None:
    write_file(run_dir / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


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
