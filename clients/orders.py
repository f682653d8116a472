"""From a message to an Order: what a round asks of a client, with what the client keeps from earlier rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor

from clients.training import Order
from fedscale_local import sending, server_step, wire
from fedscale_local.errors import RAISED, ClientError
from fedscale_local.experiment import Experiment
from fedscale_local.local_rule import State
from fedscale_local.scaling import Memory


@dataclass
class Sent:
    """What a message says, read once for all messages of a round that share a content."""

    round: int
    records: Mapping[str, ArrayRecord]
    instructions: Mapping[str, Any]
    model: tuple[Tensor, Tensor] | None
    """Parameters and buffers; None where they came with the round's first exchange."""
    to_new: Order | None = None
    """What it asks of those who keep nothing: the same of each."""


def try_unpack(
    experiment: Experiment, message: Message, context: Context, seen: dict[int, Sent]
) -> Order | ClientError:
    """What the message asks of this client, or why that cannot be told; seen: contents read for others, by id."""
    client = int(context.node_config["partition-id"])
    round = -1
    try:
        sent = seen.get(id(message.content))
        if sent is None:
            instructions = _instructions(message)
            round = int(instructions[wire.ROUND])
            sent = seen[id(message.content)] = _read(experiment, message, instructions, round)
        round = sent.round
        if context.state:
            return _order(experiment, sent, context, client)
        if sent.to_new is None:
            sent.to_new = _order(experiment, sent, context, client)
        return sent.to_new._replace(client=client)
    except RAISED as error:
        return ClientError("unpack", client, round, f"{type(error).__name__}: {error}")


def _instructions(message: Message) -> Mapping[str, Any]:
    """The message's one ConfigRecord, whatever a strategy calls it."""
    records = wire.of_kind(message.content, ConfigRecord)
    return dict(records[wire.CONFIG] if wire.CONFIG in records else next(iter(records.values())))


def _read(experiment: Experiment, message: Message, instructions: Mapping[str, Any], round: int) -> Sent:
    records = wire.of_kind(message.content, ArrayRecord)
    if not instructions.get(wire.PERSONAL, False):
        records = sending.Leg(experiment, "down", round).unpack(records)
    if experiment.local_rule.wants_mean_gradient and wire.ARRAYS not in records:
        return Sent(round, records, instructions, None)
    arrays = records[wire.ARRAYS] if wire.ARRAYS in records else next(iter(records.values()))
    return Sent(round, records, instructions, wire.from_model_record(arrays, experiment.task))


def _order(experiment: Experiment, sent: Sent, context: Context, client: int) -> Order:
    task, config, told, kept = experiment.task, experiment.config, sent.instructions, kept_by(context)
    round = sent.round
    params, buffers = sent.model or wire.from_model_record(kept[wire.ARRAYS], task)
    if told.get(wire.PERSONAL, False):
        return Order(client, round, params, buffers, personal=True)
    is_global = config.scaling.scope == "global"
    memory, d_hat = _load_memory(context, kept, task.layout.size, task.dtype), None
    if is_global:
        memory, d_hat = _global_preconditioner(experiment, sent, context, kept, params, memory)
    return Order(
        client,
        round,
        params,
        buffers,
        d_hat,
        memory,
        clock=int(told.get("clock", 0)),
        measure=bool(told.get("measure", False))
        if is_global
        else not experiment.scaling.is_identity and round % config.scaling.refresh_every == 0,
        state=_rule_state(experiment, sent.records, kept),
        prepare=bool(told.get("prepare", False)),
        mix=bool(told.get("mix", False)),
        due=tuple(str(told["due"]).split()) if "due" in told else None,
    )


def kept_by(context: Context) -> dict[str, ArrayRecord]:
    """The vectors that this client keeps."""
    return wire.of_kind(context.state, ArrayRecord)


def _rule_state(
    experiment: Experiment, sent: Mapping[str, ArrayRecord], kept: Mapping[str, ArrayRecord]
) -> State:
    """The local rule's vectors: what the server sent goes before what this client kept."""
    task, state = experiment.task, {}
    for name, size in experiment.local_rule.sizes.items():
        for records in (sent, kept):
            if name in records:
                state[name] = wire.from_vector_record(records[name], size(task.layout), task.dtype)
                break
    return state


def _global_preconditioner(
    experiment: Experiment,
    sent: Sent,
    context: Context,
    own: Mapping[str, ArrayRecord],
    params: Tensor,
    memory: Memory | None,
) -> tuple[Memory | None, Tensor | None]:
    """The D-hat of this round: sent, or kept from an earlier round, or derived from the last displacement."""
    records, instructions = sent.records, sent.instructions
    task, scaling, size = experiment.task, experiment.scaling, experiment.task.layout.size
    if wire.PRECONDITIONER in records:
        return None, wire.from_vector_record(records[wire.PRECONDITIONER], size, task.dtype)
    if wire.MEMORY in records:
        value = wire.from_vector_record(records[wire.MEMORY], size, task.dtype)
        memory = Memory(value, int(instructions["clock"]))
        return memory, scaling.d_hat(memory)
    if "mean-steps" in instructions:
        before = _vector(own, wire.ARRAYS, size, task.dtype)
        if memory is None or before is None:
            raise ValueError("asked to derive the preconditioner, but the last round's model is not here")
        steps, step_size = float(instructions["mean-steps"]), experiment.config.client.step_size
        h = server_step.displacement(before, params, scaling.d_hat(memory), steps, step_size)
        memory = scaling.refresh(memory, h)
        return memory, scaling.d_hat(memory)
    if "clock" not in instructions:  # nothing was measured yet, or the method has no preconditioner
        start = scaling.init(params, ones=experiment.starts_at_ones)
        return start if experiment.keeps_preconditioner else None, None
    if memory is not None and memory.clock == instructions["clock"]:
        return memory, scaling.d_hat(memory)
    kept = _vector(own, wire.PRECONDITIONER, size, task.dtype)
    if kept is None or _clock(context) != instructions["clock"]:
        raise ValueError(f"no preconditioner of clock {instructions['clock']!r} is kept here")
    return None, kept


def _vector(records: Mapping[str, ArrayRecord], key: str, size: int, dtype: torch.dtype) -> Tensor | None:
    return wire.from_vector_record(records[key], size, dtype) if key in records else None


def _clock(context: Context) -> int:
    return int(context.state.config_records[wire.CONFIG]["clock"])  # type: ignore[arg-type]


def _load_memory(
    context: Context, kept: Mapping[str, ArrayRecord], size: int, dtype: torch.dtype
) -> Memory | None:
    value = _vector(kept, wire.MEMORY, size, dtype)
    return None if value is None else Memory(value, _clock(context))
