"""What decides the bytes of a run: configuration, data and who holds them, code, libraries.

A run that is carried on must have them as they were; a cell of a sweep is known by them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedscale_local import data, user_code
from fedscale_local.config import Config, to_container
from fedscale_local.config_messages import show
from fedscale_local.data import partition as partitions
from fedscale_local.data.dataset import Dataset
from fedscale_local.data.partition import Partition
from fedscale_local.decisive import decisive
from fedscale_local.errors import InputError
from fedscale_local.instantiate import TARGET, locate

if TYPE_CHECKING:
    from fedscale_local.experiment import Experiment

HOW = {"mode": None, "stack_size": None, "memory_format": None, "device": "cpu", "precision": "full"}
"""What of an engine decides the bytes, and what it is where an engine does not say."""
OURS = ("fedscale_local", "strategies", "clients")
LIBRARIES = (
    "flwr",
    "torch",
    "torchvision",
    "numpy",
    "hydra-core",
    "pydantic",
    "safetensors",
    "dp-accounting",
)


def now(config: Config) -> dict[str, Any]:
    """The versions of libraries and the sum of the code, this project's and the user's, as the manifest has them."""
    versions = {name: metadata.version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    return {"versions": versions, "code_sha256": _sum_of_code(config)}


def of_runs(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """For each run that is yet to be made: everything that decides its bytes, as sums and plain values.

    Data that cannot be had or divided are told by the reason, so that a run that will be refused has an identity too.
    """
    code: dict[tuple[str, ...], dict[str, Any]] = {}
    sums: dict[str, dict[str, str]] = {}
    sources = [_source(config) for config in configs]
    source, dataset = "", None
    for config, own in sorted(zip(configs, sources, strict=True), key=lambda pair: pair[1]):
        divided = _divided(config, own)
        if divided in sums:
            continue
        try:
            if own != source:  # one data set in memory at a time
                dataset = data.load(config.data, config.seed, config.num_clients)
                source, whole = own, _sum_of_data(dataset)
            assert dataset is not None
            partition = partitions.make(config.partition, dataset, config.num_clients, config.seed)
            sums[divided] = {"data": whole, "partition": sum_of_partition(partition)}
        except InputError as error:
            sums[divided] = {"data": f"none: {error}", "partition": "none"}
    found = []
    for config, own in zip(configs, sources, strict=True):
        targets = tuple(_targets(config))
        if targets not in code:
            code[targets] = now(config)
        found.append({"config": _of_config(config), **sums[_divided(config, own)], **code[targets]})
    return found


def _source(config: Config) -> str:
    """Configurations with the same one have the same data."""
    drawn = (config.seed, config.num_clients) if config.data.name in data.GENERATED else ()
    return json.dumps([config.data.model_dump(mode="json"), *drawn])


def _divided(config: Config, source: str) -> str:
    """Configurations with the same one have the same data, divided in the same way."""
    return json.dumps([source, config.partition.model_dump(mode="json"), config.num_clients, config.seed])


def _of_config(config: Config) -> str:
    """Sum of what decides the bytes; here num_rounds does, as the last round is always evaluated."""
    whole = to_container(config)
    engine = {key: value for key, value in whole["engine"].items() if key in ("name", *HOW)}
    told = decisive(whole) | {"num_rounds": config.num_rounds, "engine": engine}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def common_random_numbers(experiment: Experiment) -> dict[str, str]:
    """Sums of what the seed decides for every method alike; which clients are sampled is in rounds.jsonl.

    partition: who holds which examples. initial_model: the parameters and buffers before the first round. batches:
    the first mini-batch in round 1 of up to 32 clients that have one; of a foreign ClientApp nobody knows.
    """
    batches = hashlib.sha256()
    for client in experiment.eligible[:32].tolist():
        for batch in experiment.batches(1, client)[:1]:
            batches.update(np.int64(client).tobytes() + batch.numpy().tobytes())
    model = hashlib.sha256()
    for vector in (experiment.task.initial_params, experiment.task.initial_buffers):
        model.update(vector.numpy().tobytes())
    known = {"partition": sum_of_partition(experiment.partition), "initial_model": model.hexdigest()}
    is_ours = experiment.config.client.name == "scaled"
    return known | ({"batches": batches.hexdigest()} if is_ours else {})


def sum_of_partition(partition: Partition) -> str:
    """Of who holds which examples, in their order."""
    arrays = (np.asarray(array, dtype=np.int64) for array in (partition.offsets, partition.order))
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _sum_of_data(dataset: Dataset) -> str:
    total = hashlib.sha256()
    tensors = (dataset.x, dataset.y, dataset.test_x, dataset.test_y)
    for array in (*(tensor.numpy() for tensor in tensors), dataset.client, dataset.test_client):
        if array is not None:
            total.update(f"{array.dtype} {array.shape}\0".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def differences(
    config: Config, engine: Mapping[str, Any], manifest: Mapping[str, Any], kept: Mapping[str, Any]
) -> list[str]:
    """What is not as it was when the checkpoint was written, in words.

    config, engine: what the run would go on with; manifest, kept: what it was begun with, and the checkpoint's
    configuration as plain values. What an older manifest does not say is not compared.
    """
    current = now(config)
    then, versions = manifest.get("versions", {}), current["versions"]
    found = [_changed(name, then[name], versions[name]) for name in versions if name in then]
    found.append(_changed("the code (sha256)", manifest.get("code_sha256"), current["code_sha256"], 12))
    for key, unsaid in HOW.items():
        before = manifest.get("engine", {}).get(key, unsaid)
        found.append(_changed(f"engine.{key}", before, engine.get(key, unsaid)))
    before, after = dict(flat(decisive(kept))), dict(flat(decisive(to_container(config))))
    for key in dict.fromkeys([*before, *after]):
        if before.get(key, _ABSENT) != after.get(key, _ABSENT):
            found.append(f"{key} was {_said(before, key)}, is {_said(after, key)}")
    return [words for words in found if words]


_ABSENT = object()


def _said(values: Mapping[str, Any], key: str) -> str:
    return show(values[key]) if key in values else "not there"


def _changed(name: str, then: Any, now: Any, length: int = 80) -> str:
    return "" if then is None or then == now else f"{name} was {str(then)[:length]}, is {str(now)[:length]}"


def flat(container: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in container.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _sum_of_code(config: Config) -> str:
    files: list[Path] = []
    for package in OURS:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            files += sorted(file for ending in ("*.py", "*.c") for file in folder.rglob(ending))
    total = hashlib.sha256()
    for file in (*files, *_code_of_user(config)):
        total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def _code_of_user(config: Config) -> Iterator[Path]:
    """The files of each module that the configuration names by an import path, and of what it imports."""
    for target in _targets(config):
        locate(target)
        parts = target.replace(":", ".").split(".")
        prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        module = next(name for name in prefixes if name in sys.modules)
        yield from user_code.files_of(module, without=(*OURS, *LIBRARIES))


def _targets(config: Config) -> list[str]:
    """Every import path in the configuration, wherever it stands."""

    def found(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from [str(inner)] if key == TARGET else found(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from found(inner)

    return list(found(to_container(config)))
