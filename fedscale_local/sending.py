"""What travels, and how it is written: groups of vectors, each with a codec up and one down (the section sending).

Encoding is the last thing done to a message and decoding the first, so clients and strategies see vectors and nothing
else. An encoded vector is one uint8 array; of a model, the parameters are that, and the float buffers stay as they are
beside it. Up, the parameters' array says v - x: what the client added to the model that it received.

`send`, `every` and `combine` of a group are keys of their own; docs/how-to-save-bytes.md has the table of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedscale_local import codecs, wire
from fedscale_local.experiment import Experiment
from fedscale_local.local_rule import MOMENTUM
from fedscale_local.randomness import generator
from fedscale_local.vector import Layout

SERVER = -1
"""In the place of a client index: what is written once and read by all."""
FEWEST = 64
"""Shorter vectors, such as clocks, are never encoded."""
GROUPS = {
    wire.ARRAYS: "parameters",
    wire.STATISTIC: "statistic",
    wire.PRECONDITIONER: "preconditioner",
    wire.MEMORY: "preconditioner",
    MOMENTUM: "momentum",
    **dict.fromkeys(("first", "first_clock", "second", "second_clock"), "moments"),
    wire.SECURE: "secure",
}

Records = Mapping[str, ArrayRecord]


def group_of(key: str) -> str:
    """The group of a record, by its key."""
    return GROUPS.get(key, "control")


def bound_of(key: str) -> str:
    """Which of the bounds in privacy.clip the record of this key has."""
    return key if group_of(key) == "moments" else group_of(key)


class Leg(NamedTuple):
    """One way, in one round, between the server and one client (down: SERVER, for all clients share the bytes)."""

    experiment: Experiment
    way: Literal["up", "down"]
    round: int
    client: int = SERVER

    def codec(self, key: str) -> codecs.Codec | None:
        """The codec of the record of this key; None: it travels as it is."""
        config = self.experiment.config.sending
        name = "none" if key == wire.SECURE else getattr(getattr(config, group_of(key)), self.way)
        if name == "none" or self._size(key) < FEWEST:
            return None
        return codecs.make(name, block=config.block, share=config.share, levels=config.levels)

    def pack(
        self, records: Records, x: Tensor | None = None, residuals: Records | None = None
    ) -> tuple[dict[str, ArrayRecord], dict[str, Tensor]]:
        """The records as they travel, and by key what biased codecs failed to say.

        x: the model received, (d,), going up. residuals: what earlier messages failed to say, none at first.
        Raises ValueError for a vector that its codec cannot carry.
        """
        packed, left = dict(records), dict[str, Tensor]()
        if self.experiment.sends_plain:
            return packed, left
        for key, record in records.items():
            codec = self.codec(key)
            if codec is None:
                continue
            vector = wire.from_record(record, self._layout(key), self._dtype)
            if key == wire.ARRAYS and x is not None:
                vector = vector - x
            if codec.biased:
                kept = (residuals or {}).get(residual_key(key))
                size = self._size(key)
                residual = (
                    torch.zeros(size, dtype=self._dtype)
                    if kept is None
                    else wire.from_vector_record(kept, size, self._dtype)
                )
                data, left[key] = codecs.with_feedback(codec, vector, residual, self._stream(key))
            else:
                data = codec.encode(vector, self._stream(key))
            beside = {name: array for name, array in record.items() if name not in self._layout(key).names}
            packed[key] = wire.encoded_record(data, beside)
        return packed, left

    def unpack(
        self,
        records: Records,
        x: Tensor | None = None,
        sent: Tensor | None = None,
    ) -> dict[str, ArrayRecord]:
        """The inverse of `pack`, as far as the codecs allow.

        x: the server's model, and sent: what clients made of it, going up. What a client added to `sent` is put on x,
        so that the error of the way down does not pile up in the model (Philippenko and Dieuleveut 2021).
        Raises ValueError for bytes that are none of the codec's.
        """
        plain = dict(records)
        if self.experiment.sends_plain:
            return plain
        for key, record in records.items():
            codec = self.codec(key)
            if codec is None:
                if key == wire.ARRAYS and x is not None and sent is not None and x is not sent:
                    plain[key] = self._model(
                        record, x + (wire.from_record(record, self._layout(key), self._dtype) - sent)
                    )
                continue
            if wire.ENCODED not in record:
                raise ValueError(f"{key}: no array {wire.ENCODED!r}, though sending says {codec.name}")
            data = wire.from_encoded_record(record)
            try:
                vector = codec.decode(data, self._size(key), self._dtype, self._stream(key))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
            if key == wire.ARRAYS:
                plain[key] = self._model(record, vector if x is None else x + vector)
            else:
                plain[key] = wire.vector_record(vector)
        return plain

    def _model(self, record: ArrayRecord, params: Tensor) -> ArrayRecord:
        """A model of these parameters and the record's buffers."""
        task = self.experiment.task
        buffers = wire.from_record(record, task.buffer_layout, task.dtype)
        return wire.model_record(task, params, buffers)

    @property
    def _dtype(self) -> torch.dtype:
        return self.experiment.task.dtype

    def _layout(self, key: str) -> Layout:
        layout = self.experiment.task.layout
        return layout if key == wire.ARRAYS else Layout(("flat",), ((self._size(key),),))

    def _size(self, key: str) -> int:
        """How many numbers the record's vector has; the model's buffers are not counted."""
        layout, shared = self.experiment.task.layout, self.experiment.local_rule.shared
        return shared[key].size(layout) if key in shared else layout.size

    def _stream(self, key: str) -> torch.Generator:
        return generator(self.experiment.config.seed, f"codec-{key}", self.round, self.client)


def residual_key(key: str) -> str:
    """Where a client keeps what its messages of this key failed to say."""
    return f"residual-{key}"
