"""What crosses a border, as Flower's records: named tensors, a message's content, what it weighs in bytes.

The model is one ArrayRecord by the names of its tensors, so that any Flower strategy or client reads it, and each
further vector (a statistic, a preconditioner, a momentum buffer) is one flat array.

Flower builds each array into bytes and back. `LazyArray` holds the live tensor instead and becomes bytes only when
somebody asks for them, which is bit for bit what Flower would have built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from io import BytesIO
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message.recorddict import _check_key, _SyncedDict
from torch import Tensor

from fedscale_local.vector import Layout

if TYPE_CHECKING:
    from fedscale_local.tasks import Task

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
PRECONDITIONER, MEMORY, STATISTIC = "preconditioner", "memory", "statistic"
GRADIENT = "mean_gradient"
SECURE, SECURE_STAGE = "secure", "secure-stage"
"""What secure aggregation exchanges beside vectors, and at which stage of it a message belongs."""
ENCODED = ".encoded"
"""The array of an encoded vector; no tensor of a module can have this name."""
ROUND, NUM_EXAMPLES, PARTITION, DATA_PATH = "server-round", "num-examples", "partition-id", "data-path"
PERSONAL, TEST_LOSS, TEST_ACCURACY = "personal", "test-loss", "test-accuracy"
Kind = TypeVar("Kind", ArrayRecord, MetricRecord, ConfigRecord)
KINDS = set(Kind.__constraints__)
Sections = Sequence[tuple[Layout, Tensor]]
"""Parts of a record: a layout and its flat vector (d,)."""


class LazyArray(Array):
    """A Flower Array over a live tensor: the part of the flat vector `flat` that begins at `start`."""

    def __init__(self, flat: Tensor, start: int, shape: tuple[int, ...]) -> None:
        # Array.__init__ would serialise; the dataclass fields are set beside it.
        self.__dict__.update(
            dtype=_name(flat.dtype), shape=shape, stype="numpy.ndarray", flat=flat, start=start
        )

    @property
    def view(self) -> Tensor:
        told = self.__dict__
        shape, start = told["shape"], told["start"]
        part: Tensor = told["flat"][start : start + math.prod(shape)]
        return part.view(shape)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        buffer = BytesIO()
        np.save(buffer, self.view.numpy(), allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> np.ndarray:
        """A copy, as from bytes: whoever changes it in place changes nobody else's."""
        copy: np.ndarray = self.view.numpy().copy()
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


def lazy(tensor: Tensor) -> LazyArray:
    """An Array over a tensor (...), which is the whole of a flat vector."""
    flat = tensor if tensor.dim() == 1 else tensor.reshape(-1)
    return LazyArray(flat, 0, tuple(tensor.shape))


@lru_cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Flower writes this name into an object's bytes, which its id is the hash of.
LazyArray.__qualname__ = Array.__qualname__


class _Unopened(dict[str, Any]):
    """What is in the __dict__ of a record that nobody has looked into: its arrays are made when somebody does."""

    def __missing__(self, key: str) -> Any:
        if key != "_data":
            raise KeyError(key)
        self[key] = {
            name: LazyArray(flat, start, shape)
            for layout, flat in self.pop("sections")
            for name, start, shape in zip(layout.names, layout.starts, layout.shapes, strict=True)
        }
        return self[key]

    def __iter__(self) -> Iterator[str]:
        """Whoever copies the record: with an __iter__ of its own, dict.update asks this class for keys and values."""
        _ = self["_data"]
        return super().__iter__()

    def keys(self) -> Any:
        return dict.fromkeys(self).keys()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def to_record(sections: Sections) -> ArrayRecord:
    """The named tensors of flat vectors as one ArrayRecord, without a copy."""
    record = ArrayRecord.__new__(ArrayRecord)
    whole = [(layout, flat.detach()) for layout, flat in sections]
    record.__dict__ = _Unopened(_checks(), sections=whole)
    return record


@lru_cache
def _checks() -> dict[str, Any]:
    """What an empty ArrayRecord has beside its arrays."""
    return {name: value for name, value in _blank(ArrayRecord).__dict__.items() if name != "_data"}


def _unopened(record: Any) -> list[tuple[Layout, Tensor]] | None:
    """The flat vectors of a record that is as to_record made it; None once somebody has looked into it."""
    found: list[tuple[Layout, Tensor]] | None = record.__dict__.get("sections")
    return found


def _held(record: Any) -> dict[str, Any]:
    """What a record holds, by name, without Flower's views of it."""
    held: dict[str, Any] = record.__dict__["_data"]
    return held


def _filled(kind: Any, values: dict[str, Any]) -> Any:
    """A new record that holds these values, which are known to fit: Flower's own way looks at each, in 5 us."""
    record = kind.__new__(kind)
    record.__dict__.update(_blank(kind).__dict__, _data=values)
    return record


@lru_cache
def _blank(kind: Any) -> Any:
    return kind()


def of_kind(content: RecordDict, kind: type[Kind]) -> dict[str, Kind]:
    """A message's records of one kind, by name. `content.array_records` is a copy that keeps itself up to date.

    Flower's records are abstract containers: isinstance takes a microsecond to say that one is of another kind.
    """
    return {
        name: record
        for name, record in _held(content).items()
        if type(record) is kind or (type(record) not in KINDS and isinstance(record, kind))
    }


class Content(RecordDict):
    """A message's content whose views by kind are made at once: Flower's strategies ask six times for each reply, and
    its own way puts each record into the view and back into the content, with all checks, in 10 us."""

    @property
    def array_records(self) -> Any:
        return _view(self, ArrayRecord)

    @property
    def metric_records(self) -> Any:
        return _view(self, MetricRecord)

    @property
    def config_records(self) -> Any:
        return _view(self, ConfigRecord)

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordDict, (dict(_held(self)),)


Content.__qualname__ = RecordDict.__qualname__


def _view(content: RecordDict, kind: Any) -> Any:
    """What Flower's property of this kind gives."""
    view = _SyncedDict.__new__(_SyncedDict)
    view.__dict__.update(
        _check_key_fn=_check_key,
        _check_value_fn=view.check_value,
        _data=of_kind(content, kind),
        recorddict=content,
        allowed_type=kind,
    )
    return view


def metric_record(metrics: dict[str, int | float]) -> MetricRecord:
    """A MetricRecord of these numbers, which are its own from now on."""
    record: MetricRecord = _filled(MetricRecord, metrics)
    return record


def sections(record: ArrayRecord) -> list[tuple[Layout, Tensor]]:
    """The inverse of to_record: the flat vectors that the record still holds, else one for each array."""
    if (whole := _unopened(record)) is not None:
        return [(layout, flat) for layout, flat in whole if layout.names]
    found = []
    for _, group in groupby(record.items(), key=lambda item: id(item[1].__dict__.get("flat", item[1]))):
        arrays = dict(group)
        layout = Layout(tuple(arrays), tuple(tuple(array.shape) for array in arrays.values()))
        flat = next(iter(arrays.values())).__dict__.get("flat")
        if flat is not None and _fills(layout, arrays, flat):
            found.append((layout, flat))
            continue
        for name, array in arrays.items():
            vector = torch.from_numpy(array.numpy().reshape(-1))
            found.append((Layout((name,), (tuple(array.shape),)), vector))
    return found


def _fills(layout: Layout, arrays: Mapping[str, Array], flat: Tensor) -> bool:
    """Are these arrays the whole of the flat vector, one behind the other?"""
    starts = tuple(array.__dict__["start"] for array in arrays.values())
    return (flat.numel(), starts) == (layout.size, layout.starts)


def vector_record(flat: Tensor) -> ArrayRecord:
    """One flat vector (d,) as an ArrayRecord."""
    return to_record([(_one(flat.numel()), flat)])


@lru_cache
def _one(size: int) -> Layout:
    """The layout of one flat vector."""
    return Layout(("flat",), ((size,),))


def from_record(record: ArrayRecord, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The flat vector of a layout's tensors in a record, (d,); the live one where the record still holds it.

    Raises ValueError for a missing name, another shape or another type of numbers.
    """
    if not layout.names:
        return _nothing(dtype)
    for own, flat in _unopened(record) or ():
        if (own is layout or own == layout) and flat.dtype == dtype:
            return flat
    arrays = _held(record)
    live = _live_flat(arrays, layout, dtype)
    if live is not None:
        return live
    expected = _name(dtype)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        array = arrays.get(name)
        if array is None:
            raise ValueError(f"array {name!r} is missing; the record holds {list(record)[:5]}")
        if tuple(array.shape) != shape or array.dtype != expected:
            raise ValueError(
                f"array {name!r} is {array.dtype} {tuple(array.shape)}, expected {expected} {shape}"
            )
    named = {}
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        found = np.asarray(record[name].numpy(), order="C")
        if found.shape != shape or str(found.dtype) != expected:
            raise ValueError(f"array {name!r} says {expected} {shape} and holds {found.dtype} {found.shape}")
        named[name] = torch.from_numpy(found)
    return layout.join(named)


def _live_flat(arrays: Mapping[str, Array], layout: Layout, dtype: torch.dtype) -> Tensor | None:
    """The flat vector of which the layout's arrays are the parts; None where they are no parts of one."""
    first = arrays.get(layout.names[0])
    flat: Tensor | None = None if first is None else first.__dict__.get("flat")
    if flat is None or flat.dtype != dtype or flat.numel() != layout.size:
        return None
    for name, start, shape in zip(layout.names, layout.starts, layout.shapes, strict=True):
        array = arrays.get(name)
        if array is None:
            return None
        told = array.__dict__
        if told.get("flat") is not flat or told["start"] != start or told["shape"] != shape:
            return None
    return flat


@lru_cache
def _nothing(dtype: torch.dtype) -> Tensor:
    return torch.zeros(0, dtype=dtype)


def model_record(task: Task, params: Tensor, buffers: Tensor) -> ArrayRecord:
    """A model as it travels: parameters (d,) and buffers, by the names of the module's tensors."""
    return to_record([(task.layout, params), (task.buffer_layout, buffers)])


def from_model_record(record: ArrayRecord, task: Task) -> tuple[Tensor, Tensor]:
    """The inverse of model_record; raises ValueError as from_record does."""
    return (
        from_record(record, task.layout, task.dtype),
        from_record(record, task.buffer_layout, task.dtype),
    )


def in_dtype(record: ArrayRecord, dtype: torch.dtype) -> ArrayRecord:
    """The record with floating-point arrays of this type; Flower's FedAdam, for one, turns float32 into float64."""
    expected = _name(dtype)
    for name, array in record.items():
        if array.dtype != expected:
            tensor = torch.from_numpy(array.numpy()).to(dtype)
            record[name] = lazy(tensor)
    return record


def from_vector_record(record: ArrayRecord, size: int, dtype: torch.dtype) -> Tensor:
    """The inverse of vector_record."""
    return from_record(record, _one(size), dtype)


def num_bytes(content: RecordDict) -> tuple[int, int]:
    """Bytes of all numbers in a message's arrays, and of all the rest: metrics, settings, and all names."""
    arrays = rest = 0
    for name, record in _held(content).items():
        rest += len(name)
        if (whole := _unopened(record)) is not None:
            for layout, flat in whole:
                arrays += layout.size * flat.itemsize
                rest += layout.num_characters
            continue
        for key, value in _held(record).items():
            rest += len(key)
            if type(value) is int or type(value) is float:
                rest += 8
            elif isinstance(value, Array):
                arrays += _array_bytes(value)
            else:
                rest += _size(value)
    return arrays, rest


def record_bytes(record: ArrayRecord) -> int:
    """Bytes of all numbers in a record, without Flower's headers."""
    whole = _unopened(record)
    return sum(map(_array_bytes, _held(record).values())) if whole is None else _bytes(whole)


def _bytes(sections: Sections) -> int:
    return sum(layout.size * flat.itemsize for layout, flat in sections)


def _array_bytes(array: Array) -> int:
    """Bytes of an array's numbers; of one that claims what its bytes cannot hold, those bytes."""
    if type(array) is LazyArray:
        told = array.__dict__
        return math.prod(told["shape"]) * int(told["flat"].itemsize)
    held = len(array.data)
    try:
        claimed = math.prod(array.shape) * np.dtype(array.dtype).itemsize
    except TypeError:
        claimed = -1
    return claimed if 0 <= claimed <= held else held


def _size(value: Any) -> int:
    """Bytes of a metric or setting, as Flower sends it."""
    if isinstance(value, list):
        return sum(map(_size, value)) if value and isinstance(value[0], str | bytes) else 8 * len(value)
    return len(value) if isinstance(value, str | bytes) else 8


def encoded_record(data: Tensor, beside: Mapping[str, Array]) -> ArrayRecord:
    """The bytes of one encoded vector, uint8 (n,), and the arrays that travel beside it as they are."""
    record = ArrayRecord()
    record[ENCODED] = lazy(data)
    for name, array in beside.items():
        record[name] = array
    return record


def from_encoded_record(record: ArrayRecord) -> Tensor:
    """The bytes that encoded_record was given; ValueError where they are no flat bytes."""
    size = int(np.prod(record[ENCODED].shape, dtype=np.int64))
    return from_record(record, Layout((ENCODED,), ((size,),)), torch.uint8)


def content(
    arrays: Mapping[str, ArrayRecord], config: ConfigRecord | None = None, metrics: MetricRecord | None = None
) -> RecordDict:
    records: dict[str, Any] = dict(arrays)
    if config is not None:
        records[CONFIG] = config
    if metrics is not None:
        records[METRICS] = metrics
    filled: RecordDict = _filled(Content, records)
    return filled


def dump_records(records: RecordDict) -> dict[str, Any]:
    """A client's state as plain values and arrays, for a checkpoint; what the client changes later is not changed."""
    return {
        key: {
            "kind": type(record).__name__,
            "values": {
                name: _live(value) if isinstance(value, Array) else deepcopy(value)
                for name, value in record.items()
            },
        }
        for key, record in records.items()
    }


def _live(array: Array) -> Tensor:
    """The tensor behind an array, shared where clients share it."""
    if isinstance(array, LazyArray):
        flat: Tensor = array.__dict__["flat"]
        return flat if tuple(flat.shape) == array.shape else array.view
    return torch.from_numpy(array.numpy())


def load_records(state: Mapping[str, Mapping[str, Any]]) -> RecordDict:
    """The inverse of dump_records."""
    records = RecordDict()
    for key, kept in state.items():
        values = kept["values"]
        if kept["kind"] == "ArrayRecord":
            arrays = ArrayRecord()
            for name, value in values.items():
                arrays[name] = lazy(value)
            records[key] = arrays
        else:
            records[key] = (MetricRecord if kept["kind"] == "MetricRecord" else ConfigRecord)(dict(values))
    return records
