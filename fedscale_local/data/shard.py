"""One client's examples as a folder, so that its device holds nothing else of the data set.

DIR/shard.npz      x, y: the client's training examples as they are stored, in the order of the data set;
                   test_x, test_y: its test examples
DIR/shard.json     what the set is, whose part of it this is, what it was cut from, and the SHA-256 of shard.npz

No pickle is read. Whatever is wrong with a folder is a DataError that names the file.
"""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedscale_local.data import held_out
from fedscale_local.data.dataset import Dataset, Kind
from fedscale_local.data.partition import Partition
from fedscale_local.errors import DataError

ARRAYS, HEADER = "shard.npz", "shard.json"
REMEDY = "write it again with `fedscale-local shard`"
TYPES = {
    "classification": ({"uint8", "float32", "float64"}, {"int64"}),
    "tokens": ({"int64"}, {"int64"}),
    "regression": ({"float32", "float64"}, {"float32", "float64"}),
}
"""Kind of a set -> the types of x, and of y."""
Count = Annotated[int, Field(ge=0)]
Origin = dict[str, str | int | float | bool | None]


class Place(NamedTuple):
    """Where a device has its shard, and which client it serves."""

    path: str
    client: int


class Header(BaseModel):
    """What shard.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    name: str
    kind: Kind
    num_classes: Annotated[int, Field(ge=1)]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...]
    note: str
    client: Count
    num_examples: Count
    num_test_examples: Count = 0
    origin: Origin
    sha256: str


def origin(config: Any) -> Origin:
    """What determines a shard, as dotted keys: options of data and partition, and of the draw if any."""
    found: Origin = {}
    for section, values in (("data", config.data.model_dump()), ("partition", config.partition.model_dump())):
        found |= {f"{section}.{key}": v for key, v in values.items() if key not in ("path", "download")}
    is_drawn = config.partition.scheme != "natural" or config.data.name in ("quadratic", "synthetic")
    return found | ({"seed": config.seed, "num_clients": config.num_clients} if is_drawn else {})


def write(folder: Path, dataset: Dataset, partition: Partition, client: int, cut_from: Origin) -> None:
    """Write the client's shard; the folder is made. shard.json comes last, so that what is torn has none."""
    rows = torch.from_numpy(partition[client])
    test_rows = held_out.make(str(cut_from["partition.scheme"]), dataset, partition)[client]
    x, y = dataset.x[rows].numpy(), dataset.y[rows].numpy()
    test_x, test_y = dataset.test_x[test_rows].numpy(), dataset.test_y[test_rows].numpy()
    buffer = BytesIO()
    np.savez(buffer, x=x, y=y, test_x=test_x, test_y=test_y)
    header = Header(
        name=dataset.name,
        kind=dataset.kind,
        num_classes=dataset.num_classes,
        mean=None if dataset.mean is None else tuple(dataset.mean.tolist()),
        std=None if dataset.std is None else tuple(dataset.std.tolist()),
        class_names=dataset.class_names,
        note=dataset.note,
        client=client,
        num_examples=len(rows),
        num_test_examples=len(test_rows),
        origin=cut_from,
        sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ARRAYS).write_bytes(buffer.getvalue())
    (folder / HEADER).write_text(header.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read(place: Place, wanted: Origin) -> tuple[Dataset, Partition, Partition]:
    """The device's data set, which is its shard, and partitions in which its client has all of it, and of its test set.

    Args:
        place: the folder, and the client whose shard has to be in it.
        wanted: the run's origin(config).

    Raises:
        DataError: the folder is missing, malformed, or of another client or data set.
    """
    folder = Path(place.path).expanduser()
    file = folder / HEADER
    try:
        header = Header.model_validate_json(_bytes(file))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "it"
        raise DataError(f"{file}", f"is no description of a shard ({key}: {first['msg']})", REMEDY) from None
    _match(file, header, place.client, wanted)
    (x, y), (test_x, test_y) = _arrays(folder / ARRAYS, header)
    mean, std = (
        None if values is None else torch.tensor(values, dtype=torch.float64)
        for values in (header.mean, header.std)
    )
    dataset = Dataset(
        header.name, header.kind, x, y, test_x, test_y, header.num_classes, mean, std,
        class_names=header.class_names, note=header.note,
    )  # fmt: skip
    return dataset, _all_of(len(x), place.client), _all_of(len(test_x), place.client)


def _all_of(num_examples: int, client: int) -> Partition:
    """The partition that ends with this client, which has every example."""
    offsets = np.zeros(client + 2, np.int64)
    offsets[-1] = num_examples
    return Partition(np.arange(num_examples, dtype=np.int64), offsets)


def _match(file: Path, header: Header, client: int, wanted: Origin) -> None:
    if header.client != client:
        raise DataError(
            f"{file}", f"is the shard of client {header.client}, this node serves client {client}",
            "set data-path and partition-id of the node to the same client",
        )  # fmt: skip
    for key in sorted(header.origin.keys() | wanted.keys()):
        had, has = header.origin.get(key), wanted.get(key)
        if had != has:
            raise DataError(
                f"{file}", f"was cut with {key}={had}, the run has {key}={has}",
                "run with the configuration it was cut with, or cut it anew with `fedscale-local shard`",
            )  # fmt: skip


Rows = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets of some examples."""


def _arrays(file: Path, header: Header) -> tuple[Rows, Rows]:
    """The examples to train on, and those to be tested on; of a folder without these there are none."""
    content = _bytes(file)
    if hashlib.sha256(content).hexdigest() != header.sha256:
        raise DataError(f"{file}", f"is damaged: its SHA-256 is not that of {HEADER}", REMEDY)
    try:
        with np.load(BytesIO(content), allow_pickle=False) as found:
            x, y = found["x"], found["y"]
            test_x, test_y = found.get("test_x", x[:0]), found.get("test_y", y[:0])
    except Exception as error:  # of NumPy and zip files there are many
        raise DataError(f"{file}", f"expected an .npz with arrays x and y ({error})", REMEDY) from None
    rows = _checked(file, header, x, y, header.num_examples)
    if test_x.shape[1:] != x.shape[1:]:
        raise DataError(
            f"{file}", f"an example is {x.shape[1:]}, one of test_x is {test_x.shape[1:]}", REMEDY
        )
    return rows, _checked(file, header, test_x, test_y, header.num_test_examples, "test_")


def _checked(file: Path, header: Header, x: np.ndarray, y: np.ndarray, size: int, of: str = "") -> Rows:
    """Arrays of that many examples of the set's kind; of: what their names begin with. Raises DataError."""
    types = TYPES[header.kind]
    if str(x.dtype) not in types[0] or str(y.dtype) not in types[1] or x.ndim < 2:
        found_types = f"{of}x is {x.dtype} {x.shape} and {of}y {y.dtype} {y.shape}"
        raise DataError(f"{file}", f"{found_types}, which no {header.kind} set has", REMEDY)
    if len(x) != size or len(y) != size:
        lengths = f"{of}x has {len(x)} rows and {of}y {len(y)}"
        raise DataError(f"{file}", f"{lengths}, {HEADER} says {size}", REMEDY)
    if not all(np.isfinite(part).all() for part in (x, y)):
        raise DataError(f"{file}", "holds NaN or infinite values", REMEDY)
    least = 0 if header.kind == "classification" else -1  # -1: no next token
    if header.kind != "regression" and y.size and (y.min() < least or y.max() >= header.num_classes):
        raise DataError(f"{file}", f"{of}y has to lie in {least}..{header.num_classes - 1}", REMEDY)
    if header.kind == "tokens" and x.size and (x.min() < 0 or x.max() >= header.num_classes):
        raise DataError(f"{file}", f"{of}x has to lie in 0..{header.num_classes - 1}", REMEDY)
    return torch.from_numpy(x), torch.from_numpy(y)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}", f"cannot be read ({error.strerror})", REMEDY) from None
