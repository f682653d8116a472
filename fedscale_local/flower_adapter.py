"""The only place that knows Flower's record keys and private corners.

What crosses a border is named tensors: the model as one ArrayRecord by name, so that any Flower strategy or client
reads it, and each further vector (a statistic, a preconditioner, a momentum buffer) as one flat array.

Flower builds each array into bytes and back. `LazyArray` holds the live tensor instead and becomes bytes only when
somebody asks for them, which is bit for bit what Flower would have built.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from fedscale_local.randomness import derive
from fedscale_local.vector import Layout

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
PRECONDITIONER, MEMORY, STATISTIC, MOMENTUM = "preconditioner", "memory", "statistic", "momentum"
ROUND, NUM_EXAMPLES, PARTITION, DATA_PATH = "server-round", "num-examples", "partition-id", "data-path"
STATE, RESTORE = "query.state", "query.restore"
"""Messages that fetch what a client keeps, and that give it back."""
FIRST_NODE = 2
"""Node ids that strategies see follow the client indices from here; Flower keeps 1 for the server."""

Sections = Sequence[tuple[Layout, Tensor]]
"""Parts of a record: a layout and its flat vector (d,)."""


class LazyArray(Array):
    """A Flower Array over a live tensor: `view`, a part of the flat vector `flat`."""

    def __init__(self, view: Tensor, flat: Tensor) -> None:
        # Array.__init__ would serialise; the dataclass fields are set beside it.
        self.__dict__.update(
            dtype=str(view.dtype).removeprefix("torch."),
            shape=tuple(view.shape),
            stype="numpy.ndarray",
            view=view,
            flat=flat,
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        buffer = BytesIO()
        np.save(buffer, self.__dict__["view"].numpy(), allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> np.ndarray:
        """A copy, as from bytes: whoever changes it in place changes nobody else's."""
        copy: np.ndarray = self.__dict__["view"].numpy().copy()
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


# Flower writes this name into an object's bytes, which its id is the hash of.
LazyArray.__qualname__ = Array.__qualname__


def to_record(sections: Sections) -> ArrayRecord:
    """The named tensors of flat vectors as one ArrayRecord, without a copy."""
    record = ArrayRecord()
    for layout, flat in sections:
        flat = flat.detach()
        for name, view in layout.split(flat).items():
            record[name] = LazyArray(view, flat)
    return record


def vector_record(flat: Tensor) -> ArrayRecord:
    """One flat vector (d,) as an ArrayRecord."""
    return to_record([(Layout(("flat",), ((flat.numel(),),)), flat)])


def from_record(record: ArrayRecord, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The flat vector of a layout's tensors in a record, (d,); the live one where the record still holds it.

    Raises ValueError for a missing name, another shape or another type of numbers.
    """
    expected = str(dtype).removeprefix("torch.")
    flats = set()
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in record:
            raise ValueError(f"array {name!r} is missing; the record holds {list(record)[:5]}")
        array = record[name]
        if tuple(array.shape) != shape or array.dtype != expected:
            raise ValueError(
                f"array {name!r} is {array.dtype} {tuple(array.shape)}, expected {expected} {shape}"
            )
        flats.add(id(array.__dict__.get("flat")) if isinstance(array, LazyArray) else None)
    if not layout.names:
        return torch.zeros(0, dtype=dtype)
    first = record[layout.names[0]]
    if len(flats) == 1 and isinstance(first, LazyArray) and first.__dict__["flat"].numel() == layout.size:
        live: Tensor = first.__dict__["flat"]
        return live
    named = {}
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        found = np.asarray(record[name].numpy(), order="C")
        if found.shape != shape or str(found.dtype) != expected:
            raise ValueError(f"array {name!r} says {expected} {shape} and holds {found.dtype} {found.shape}")
        named[name] = torch.from_numpy(found)
    return layout.join(named)


def in_dtype(record: ArrayRecord, dtype: torch.dtype) -> ArrayRecord:
    """The record with floating-point arrays of this type; Flower's FedAdam, for one, turns float32 into float64."""
    expected = str(dtype).removeprefix("torch.")
    for name, array in record.items():
        if array.dtype != expected:
            tensor = torch.from_numpy(array.numpy()).to(dtype)
            record[name] = LazyArray(tensor, tensor)
    return record


def from_vector_record(record: ArrayRecord, size: int, dtype: torch.dtype) -> Tensor:
    """The inverse of vector_record."""
    return from_record(record, Layout(("flat",), ((size,),)), dtype)


def private_copy(message: Message) -> Message:
    """The same message with records of its own: messages of one round share theirs, and a client may change them."""
    records = {key: record.copy() for key, record in message.content.items()}
    return Message(content=RecordDict(records), metadata=message.metadata)  # type: ignore[call-overload]


def num_bytes(content: RecordDict) -> int:
    """Bytes of all numbers in a message's arrays, without Flower's headers."""
    return sum(
        int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize
        for record in content.array_records.values()
        for array in record.values()
    )


def message_to(node: int, content: RecordDict, message_type: str = "train") -> Message:
    return Message(content=content, dst_node_id=node, message_type=message_type)


def error_reply(reason: str, reply_to: Message) -> Message:
    """What a client that failed sends: never None, which would wedge a real node."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=reply_to)


def forwarded(message: Message, node: int) -> Message:
    """The same message on its way to another node; Flower gives it an id of its own."""
    return Message(
        message.content,
        node,
        message.metadata.message_type,
        ttl=message.metadata.ttl,
        group_id=message.metadata.group_id,
    )


def answering(reply: Message, message: Message) -> Message:
    """A reply's content or error as the reply to `message`."""
    return Message(reply.error if reply.has_error() else reply.content, reply_to=message)


def partition_reply(message: Message, context: Context) -> Message:
    """What a node answers when it is asked which client it serves."""
    return Message(
        content({}, metrics=MetricRecord({PARTITION: int(context.node_config[PARTITION])})), reply_to=message
    )


def partition_of(reply: Message) -> int | None:
    """The client that a node said it serves; None if it said something else."""
    metrics = reply.content.metric_records.get(METRICS)
    number = None if metrics is None else metrics.get(PARTITION)
    return number if isinstance(number, int) else None


def content(
    arrays: Mapping[str, ArrayRecord], config: ConfigRecord | None = None, metrics: MetricRecord | None = None
) -> RecordDict:
    records: dict[str, Any] = dict(arrays)
    if config is not None:
        records[CONFIG] = config
    if metrics is not None:
        records[METRICS] = metrics
    return RecordDict(records)


def new_context(node: int, node_config: dict[str, Any], run_config: dict[str, Any]) -> Context:
    return Context(1, node, node_config, RecordDict(), run_config)


def dump_records(records: RecordDict) -> dict[str, Any]:
    """A client's state as plain values and arrays, for a checkpoint."""
    return {
        key: {name: _live(value) if isinstance(value, Array) else value for name, value in record.items()}
        for key, record in records.items()
    }


def _live(array: Array) -> Tensor:
    """The tensor behind an array, shared where clients share it."""
    if isinstance(array, LazyArray):
        view: Tensor = array.__dict__["view"]
        return array.__dict__["flat"] if view.numel() == array.__dict__["flat"].numel() else view
    return torch.from_numpy(array.numpy())


def load_records(state: Mapping[str, Mapping[str, Any]]) -> RecordDict:
    """The inverse of dump_records."""
    records = RecordDict()
    for key, values in state.items():
        if all(isinstance(value, Tensor) for value in values.values()):
            arrays = ArrayRecord()
            for name, value in values.items():
                arrays[name] = LazyArray(value, value)
            records[key] = arrays
        else:
            numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values.values())
            records[key] = (MetricRecord if numbers and key == METRICS else ConfigRecord)(dict(values))
    return records


def dump_strategy(strategy: Any) -> dict[str, Any]:
    """What of a strategy survives a round: what it names in `survives`, else its numbers and arrays."""
    names = getattr(strategy, "survives", None)
    if names is None:
        names = [name for name, value in vars(strategy).items() if _is_state(value)]
    state = {name: getattr(strategy, name) for name in names}
    inner = getattr(strategy, "strategy", None)
    return state | ({"strategy": dump_strategy(inner)} if inner is not None else {})


def load_strategy(strategy: Any, state: Mapping[str, Any]) -> None:
    """The inverse of dump_strategy."""
    for name, value in state.items():
        if name == "strategy":
            load_strategy(strategy.strategy, value)
        else:
            setattr(strategy, name, value)


def _is_state(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(isinstance(part, np.ndarray) for part in value.values())
    return isinstance(value, bool | int | float | np.ndarray)


def become_server() -> None:
    """Give this process the identity without which Flower builds no message."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def stamp(message: Message, message_id: str) -> Message:
    """Give a message the id that a SuperLink would have given it."""
    message.metadata.__dict__["_message_id"] = message_id
    return message


def empty_run() -> Run:
    return Run.create_empty(1)


def roster(grid: Grid, num_clients: int) -> dict[int, int]:
    """The node id of each client index, as the grids of this project have it."""
    nodes = grid.node_of_client  # type: ignore[attr-defined]
    return dict(enumerate(nodes[:num_clients]))


@contextmanager
def seeded_globals(seed: int, round: int, node: int = 0) -> Iterator[None]:
    """Flower's strategies and other people's clients draw from global generators: seed them all, then restore."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    number = derive(seed, "flower", round, node)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def round_of(message: Message) -> int:
    """The round that a message speaks of; 0 where it speaks of none."""
    said = (record.get(ROUND) for record in message.content.config_records.values())
    return next((number for number in said if isinstance(number, int)), 0)


def quiet_flower() -> None:
    """Flower logs each step of a round to the terminal; our records and progress say it instead."""
    import logging

    logging.getLogger("flwr").setLevel(logging.ERROR)
