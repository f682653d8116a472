"""Several clients in one message: what each is told or answers, and what it keeps, side by side.

The states of the clients come along and go back, so any worker can take any client. A record that several clients
share is written once, and so is a vector that is in several records.

The content of such a message is one ArrayRecord of flat vectors, numbered, and one text of JSON that says by number
which vector, of which names and shapes, is where.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedscale_local import checkpoint, wire
from fedscale_local.vector import Layout

PARTS = "parts"
GRACE_SECONDS = 10.0
"""How much longer than round_timeout the server waits for a chunk, whose clients stop at round_timeout."""


class Part(NamedTuple):
    """One client's part of a chunk."""

    client: int
    said: RecordDict | str
    """What it is told or answers; a text says why it failed."""
    state: RecordDict
    """What it keeps from round to round."""


def pack(parts: Sequence[Part]) -> RecordDict:
    """The content of one message that holds them all."""
    table: dict[int, tuple[int, Any]] = {}

    def numbers(records: RecordDict) -> dict[str, int]:
        return {key: table.setdefault(id(record), (len(table), record))[0] for key, record in records.items()}

    rows = [
        [client, said if isinstance(said, str) else numbers(said), numbers(state)]
        for client, said, state in parts
    ]
    tree, vectors = checkpoint.encode([rows, [_plain(record) for _, record in table.values()]])
    arrays = ArrayRecord()
    for number, vector in vectors.items():
        arrays[number] = wire.lazy(vector)
    return wire.content({wire.ARRAYS: arrays}, config=ConfigRecord({PARTS: json.dumps(tree)}))


def unpack(content: RecordDict) -> list[Part]:
    """The inverse of pack; records and vectors that parts share are one object. Anything else raises an error."""
    arrays = content.array_records[wire.ARRAYS]
    vectors = {number: torch.from_numpy(array.numpy()) for number, array in arrays.items()}
    tree = json.loads(str(content.config_records[wire.CONFIG][PARTS]))
    rows, plain = checkpoint.decode(tree, vectors)
    table = [_record(kind, held) for kind, held in plain]

    def records(numbers: dict[str, int]) -> RecordDict:
        return RecordDict({key: table[number] for key, number in numbers.items()})

    return [
        Part(client, said if isinstance(said, str) else records(said), records(state))
        for client, said, state in rows
    ]


def _plain(record: ArrayRecord | MetricRecord | ConfigRecord) -> list[Any]:
    """A record as plain values and flat vectors."""
    if isinstance(record, ArrayRecord):
        return ["ArrayRecord", [[*_names(layout), flat] for layout, flat in wire.sections(record)]]
    return [type(record).__name__, dict(record)]


def _names(layout: Layout) -> tuple[list[str], list[list[int]]]:
    return list(layout.names), [list(shape) for shape in layout.shapes]


def _record(kind: str, held: Any) -> ArrayRecord | MetricRecord | ConfigRecord:
    """The inverse of _plain."""
    if kind == "ArrayRecord":
        sections = [
            (Layout(tuple(names), tuple(tuple(shape) for shape in shapes)), flat)
            for names, shapes, flat in held
        ]
        return wire.to_record(sections)
    return (MetricRecord if kind == "MetricRecord" else ConfigRecord)(held)
