"""A client's messages in a secure sum (fedscale_local/secagg): it answers each stage once, or with an error.

What it made up for the sum is in its state until it has answered the last stage, and no message tells of that: a state
that is fetched for a checkpoint leaves it out. A stage that is asked again, out of turn or for another round, is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from clients.training import ClientUpdate, Order
from fedscale_local import flower_adapter as adapter
from fedscale_local import privacy, sending, wire
from fedscale_local.config_secure import SecureAggregation
from fedscale_local.experiment import Experiment
from fedscale_local.randomness import generator
from fedscale_local.secagg import client as protocol
from fedscale_local.secagg import graph, rounding
from fedscale_local.secagg.client import Secrets


def is_stage(message: Message) -> bool:
    """Does it belong to a stage in which no vector is computed?"""
    return str(_stage(message).get("stage", "masked")) != "masked"


def answer(section: SecureAggregation, message: Message, context: Context) -> Message:
    """The reply to such a stage."""
    client, told = int(context.node_config[wire.PARTITION]), _stage(message)
    stage, round = str(told["stage"]), int(told[wire.ROUND])  # type: ignore[arg-type]
    try:
        if stage == "keys":
            data, kept = _keys(round)
        elif stage == "shares":
            data, kept = _shares(section, message, _state(context, "keys", round), client, round)
        else:
            data, kept = _unmask(section, message, _state(context, "masked", round), client, round), None
    except (ValueError, KeyError) as error:
        return adapter.error_reply(f"client {client}, round {round}: {error}", message)
    if kept is None:
        del context.state[wire.SECURE]
    else:
        context.state[wire.SECURE] = kept
    return Message(RecordDict({wire.SECURE: _bytes(data)}), reply_to=message)


def masked(
    experiment: Experiment,
    message: Message,
    context: Context,
    order: Order,
    vectors: Mapping[str, Tensor],
    update: ClientUpdate,
) -> RecordDict:
    """The content of the reply in stage masked: the vectors, and what else is summed up, as noise.

    Raises ValueError where the message belongs to no secure sum that this client has prepared: nothing is sent then.
    """
    section = experiment.secure
    assert section is not None
    told, client = _stage(message), order.client
    if told.get("stage") != "masked":
        raise ValueError("asked for vectors without masks, and secure=secagg sends none")
    state = _state(context, "shares", order.round)
    holders, senders = _numbers(state, "holders"), _numbers(told, "from")
    if not set(senders) <= set(holders) - {client}:
        raise ValueError("shares of clients that are no neighbours")
    _enough(section, len(senders) + 1, len(holders))
    keys = protocol.placed(holders, _data(state["keys"]), protocol.PUBLIC)
    sealed = _received(message)
    protocol.placed(senders, sealed, protocol.SEALED)  # raises ValueError for another length
    parts, beside = _summed(experiment, section, order, vectors, update)
    residues = rounding.to_residues(torch.cat([*parts.values(), beside]), section.modulus_bits)
    noise = protocol.masked(_secrets(state), client, {other: keys[other] for other in senders}, residues)
    pieces = rounding.from_residues(noise).to(rounding.signed(section.modulus_bits))
    sizes = [*(len(part) for part in parts.values()), len(beside)]
    records = zip((*parts, wire.SECURE), pieces.split(sizes), strict=True)
    content = RecordDict({key: wire.vector_record(piece.clone()) for key, piece in records})
    # Neither seed of a mask is needed any more, and without them no second vector can be masked like this one.
    kept = {name: state[name] for name in (wire.ROUND, "channel", "holders", "keys", "share")}
    context.state[wire.SECURE] = ConfigRecord(kept | {"stage": "masked", "from": senders, "sealed": sealed})
    return content


def _summed(
    experiment: Experiment,
    section: SecureAggregation,
    order: Order,
    vectors: Mapping[str, Tensor],
    update: ClientUpdate,
) -> tuple[dict[str, Tensor], Tensor]:
    """What is summed up, in whole numbers and weighted: the vectors by key, in the order of the keys, and beside them
    weight, local steps, loss (both weighted) and how many numbers were clipped."""
    config = experiment.config
    weight = 1 if getattr(config.strategy, "weighting", "uniform") == "uniform" else update.num_examples
    parts, num_clipped = dict[str, Tensor](), 0

    def whole(key: str, vector: Tensor, group: str) -> Tensor:
        nonlocal num_clipped
        stream = generator(config.seed, f"secure-{key}", order.round, order.client)
        steps, clipped = rounding.quantised(vector, getattr(section.range, group), section.bits, stream)
        num_clipped += clipped
        return steps * weight

    for key in sorted(vectors.keys() - experiment.local_rule.counts):
        vector, group = vectors[key], sending.bound_of(key)
        if key == wire.ARRAYS:
            vector = vector - order.params
            if getattr(config.strategy, "mixing", "mean") == "preconditioned":
                vector = vector * vectors[wire.PRECONDITIONER]
        bound = experiment.bounds_before_noise.get(group)
        if bound is not None:  # rounding adds less than a step to each number
            step = getattr(section.range, group) / rounding.most(section.bits)
            vector = privacy.clipped(vector, bound - step * vector.numel() ** 0.5)
        parts[key] = whole(key, vector, group)
    told = update.loss if experiment.mechanism is None else 0.0
    loss = whole("loss", torch.tensor([told], dtype=torch.float64), "loss")
    num_clipped = num_clipped if experiment.mechanism is None else 0  # which no noise would hide
    beside = torch.tensor([weight, weight * update.num_steps, int(loss), num_clipped])
    return parts, beside


def _keys(round: int) -> tuple[bytes, ConfigRecord]:
    secrets = protocol.fresh_secrets()
    return protocol.public(secrets), ConfigRecord({wire.ROUND: round, "stage": "keys", **secrets._asdict()})


def _shares(
    section: SecureAggregation, message: Message, state: ConfigRecord, client: int, round: int
) -> tuple[bytes, ConfigRecord]:
    holders, secrets = _numbers(_stage(message), "holders"), _secrets(state)
    keys = protocol.placed(holders, _received(message), protocol.PUBLIC)
    if sorted(set(holders)) != holders or keys.get(client) != protocol.public(secrets):
        raise ValueError("its own keys came back changed, or neighbours are named twice")
    threshold = graph.needed(section.threshold, len(holders))
    _enough(section, len(holders), len(holders))
    sealed, share = protocol.shared(secrets, client, keys, threshold, f"round {round}")
    kept = ConfigRecord(dict(state))
    kept["holders"], kept["keys"], kept["share"] = holders, _received(message), share
    kept["stage"] = "shares"
    return protocol.commitment(secrets.own) + b"".join(sealed[other] for other in sorted(sealed)), kept


def _unmask(
    section: SecureAggregation, message: Message, state: ConfigRecord, client: int, round: int
) -> bytes:
    """One share for each sender and one of this client's own seed, in the order of their owners."""
    holders, senders = _numbers(state, "holders"), _numbers(state, "from")
    arrived = set(_numbers(_stage(message), "arrived"))
    if client not in arrived or not arrived <= {*senders, client}:
        raise ValueError("told of vectors of clients whose shares did not come")
    _enough(section, len(arrived), len(holders))
    keys = protocol.placed(holders, _data(state["keys"]), protocol.PUBLIC)
    sealed = protocol.placed(senders, _data(state["sealed"]), protocol.SEALED)
    channel = _data(state["channel"])
    secrets = Secrets(channel, b"", b"")
    found = protocol.opened(secrets, client, keys, sealed, f"round {round}", arrived)
    found[client] = _data(state["share"])
    return b"".join(found[owner] for owner in sorted(found))


def _enough(section: SecureAggregation, there: int, holders: int) -> None:
    """Raise ValueError where so few are left among these that the sum would tell too much, or never be known."""
    threshold = graph.needed(section.threshold, holders)
    if there < threshold:
        raise ValueError(f"{there} of {holders} neighbours are there, {threshold} are needed")


def _stage(message: Message) -> ConfigRecord:
    return message.content.config_records.get(wire.SECURE_STAGE, ConfigRecord())


def _state(context: Context, stage: str, round: int) -> ConfigRecord:
    """What this client keeps of the sum, if it has just answered that stage of this round."""
    state = context.state.config_records.get(wire.SECURE, ConfigRecord())
    if state.get("stage") != stage or state.get(wire.ROUND) != round:
        raise ValueError(f"asked out of turn: it has not just answered the stage {stage} of this round")
    return state


def _secrets(state: ConfigRecord) -> Secrets:
    return Secrets(*(_data(state[name]) for name in Secrets._fields))


def _numbers(record: ConfigRecord, key: str) -> list[int]:
    return [int(number) for number in record[key]]  # type: ignore[union-attr]


def _data(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def _bytes(data: bytes) -> ArrayRecord:
    return wire.vector_record(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def _received(message: Message) -> bytes:
    record = message.content.array_records[wire.SECURE]
    size = record["flat"].shape[0]
    return wire.from_vector_record(record, size, torch.uint8).numpy().tobytes()
