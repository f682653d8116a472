"""The Flower ClientApp: the same in every engine.

`app` answers one message at a time, as Flower asks; one message may be a chunk of many clients, as on Ray. `app.cohort`
answers many at once and is what the in-process engine calls. All unpack, train and pack; a client's state is kept only
when its work succeeded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from clients import secure
from clients.hostile import sent_instead
from clients.training import ClientUpdate, Order, Outcome, plan, train
from fedscale_local import chunk, privacy, sending, server_step, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local.config import Config, CustomClient
from fedscale_local.config_engines import Ray
from fedscale_local.config_secure import SecureAggregation
from fedscale_local.data.shard import Place
from fedscale_local.errors import ClientError, late
from fedscale_local.experiment import Experiment, build, client_app, config_of
from fedscale_local.local_rule import State
from fedscale_local.processes import ending_after, in_time
from fedscale_local.scaling import Memory

Train = Callable[[Experiment, Sequence[Order]], list[Outcome]]
Runner = Callable[[Train, Experiment, Sequence[Sequence[Order]]], list[list[Outcome]]]
"""Runs train(experiment, cohort) for each cohort, wherever it likes; their outcomes come in the same order."""

app = ClientApp()
log = logging.getLogger(__name__)


def run_here(train: Train, experiment: Experiment, cohorts: Sequence[Sequence[Order]]) -> list[list[Outcome]]:
    """All cohorts in this process, one after the other."""
    return [train(experiment, cohort) for cohort in cohorts]


def cohort(
    messages: Sequence[Message], contexts: Sequence[Context], stack_size: int = 1, run: Runner = run_here
) -> list[Message]:
    """One reply per message, in their order; a client that fails replies with an error."""
    config = config_of(contexts[0].run_config)
    if isinstance(config.secure, SecureAggregation) and secure.is_stage(messages[0]):
        return [secure.answer(config.secure, m, c) for m, c in zip(messages, contexts, strict=True)]
    experiment = build(config, _place(contexts[0]))
    if isinstance(config.engine, Ray) and config.engine.num_gpus:
        experiment.task.to(torch.device("cuda"))  # Ray lets its worker see the one that it gave it
    seen: dict[int, _Sent] = {}
    orders = [_try_unpack(experiment, m, c, seen) for m, c in zip(messages, contexts, strict=True)]
    cohorts = plan(experiment, [order for order in orders if isinstance(order, Order)], stack_size)
    outcomes: dict[int, Outcome] = {
        order.client: outcome
        for asked, done in zip(cohorts, run(train, experiment, cohorts), strict=True)
        for order, outcome in zip(asked, done, strict=True)
    }
    lies = sent_instead(experiment, [order for order in orders if isinstance(order, Order)], outcomes)
    replies = []
    for message, context, order in zip(messages, contexts, orders, strict=True):
        outcome = outcomes[order.client] if isinstance(order, Order) else order
        if isinstance(order, Order) and isinstance(outcome, ClientUpdate):
            reply = _answered(experiment, message, context, order, outcome, lies.get(order.client, outcome))
        else:
            reply = adapter.error_reply(_reason(config, outcome), message)
        replies.append(reply)
    return replies


@app.train()
def answer(message: Message, context: Context) -> Message:
    """One client's round; whatever goes wrong is a reply, for a node that gets none waits for ever.

    After round_timeout nobody waits for the reply any more: then its process ends, and the node is free.
    """
    torch.set_num_threads(1)  # more would change the order of sums
    config = None
    try:
        config = config_of(context.run_config)
        with ending_after(config.round_timeout):
            if isinstance(config.client, CustomClient):
                reply = _foreign(config, config.client, message, context)
            else:
                reply = cohort([message], [context])[0]
            return adapter.with_client(reply, context)
    except Exception as error:
        return adapter.error_reply(_reason(config, error), message)


@app.evaluate()
def judge(message: Message, context: Context) -> Message:
    """How this client does on its test examples, once it has made the model its own."""
    return answer(message, context)


@app.train("chunk")
def answer_all(message: Message, context: Context) -> Message:
    """The round of several clients, whose states came along and go back with the replies.

    Clients that were not done by round_timeout answer with an error; if one does not stop, the process ends.
    """
    torch.set_num_threads(1)
    try:
        seconds = config_of(context.run_config).round_timeout

        def run(train: Train, experiment: Experiment, cohorts: Sequence[Sequence[Order]]) -> list[Any]:
            return in_time(partial(train, experiment), cohorts, late, seconds)

        with ending_after(None if seconds is None else seconds + chunk.GRACE_SECONDS / 2):
            parts = chunk.unpack(message.content)
            messages = [adapter.with_content(message, part.said) for part in parts]  # type: ignore[arg-type]
            contexts = [_context_of(part, context) for part in parts]
            replies = cohort(messages, contexts, run=run)
            return Message(chunk.pack(list(map(_part, parts, replies, contexts))), reply_to=message)
    except Exception as error:
        return adapter.error_reply(f"{type(error).__name__}: {error}", message)


def _reason(config: Config | None, error: object) -> str:
    """What the server is told of a failure: with secure aggregation not why, as reasons have a client's numbers."""
    if config is None or not isinstance(config.secure, SecureAggregation):
        return str(error) if isinstance(error, ClientError) else f"{type(error).__name__}: {error}"
    log.warning("%s", error)
    return "it failed; the reason stays with the client, in its log"


def _context_of(part: chunk.Part, context: Context) -> Context:
    """The context of one client of a chunk, which was sent to a node with this context."""
    own = adapter.new_context(
        adapter.FIRST_NODE + part.client, {wire.PARTITION: part.client}, dict(context.run_config)
    )
    own.state = part.state
    return own


def _part(part: chunk.Part, reply: Message, context: Context) -> chunk.Part:
    """One client's part of the answer."""
    if reply.has_error():
        return chunk.Part(part.client, str(reply.error.reason), RecordDict())
    return chunk.Part(part.client, reply.content, context.state)


def _foreign(config: Config, client: CustomClient, message: Message, context: Context) -> Message:
    """The reply of somebody else's ClientApp, which sees what it would see in process."""
    node = adapter.FIRST_NODE + int(context.node_config[wire.PARTITION])
    own = adapter.new_context(node, dict(context.node_config), client.run_config | dict(context.run_config))
    own.state = RecordDict({key: record.copy() for key, record in context.state.items()})
    with adapter.seeded_globals(config.seed, adapter.round_of(message), node):
        reply = client_app(config)(message, own)
    if not isinstance(reply, Message):
        raise TypeError(f"the ClientApp returned {type(reply).__name__}, expected a Message")
    context.state = own.state
    return reply


@app.query()
def which(message: Message, context: Context) -> Message:
    """Which client this node serves."""
    return adapter.with_client(Message(RecordDict(), reply_to=message), context)


@app.query("state")
def tell_state(message: Message, context: Context) -> Message:
    """What this client keeps from round to round, for the server's checkpoint."""
    return adapter.with_client(Message(adapter.kept(context.state), reply_to=message), context)


@app.query("restore")
def take_state(message: Message, context: Context) -> Message:
    """Keep from now on what a checkpoint says."""
    context.state = message.content
    return Message(RecordDict(), reply_to=message)


app.cohort = cohort  # type: ignore[attr-defined]


def _place(context: Context) -> Place | None:
    """Where this device has its shard; None for one that holds the whole data set."""
    path = context.node_config.get(wire.DATA_PATH)
    return None if path is None else Place(str(path), int(context.node_config[wire.PARTITION]))


def _answered(
    experiment: Experiment,
    message: Message,
    context: Context,
    order: Order,
    update: ClientUpdate,
    said: ClientUpdate,
) -> Message:
    """The reply, and what this client keeps; neither, where a codec cannot carry what was computed.

    said: what goes into the reply; of an honest client that is its update.
    """
    if update.test is not None:
        named = zip((wire.TEST_LOSS, wire.TEST_ACCURACY), update.test, strict=True)
        told = {name: value for name, value in named if value is not None}
        return adapter.reply(wire.content({}, metrics=wire.metric_record(told)), message)
    vectors = _vectors(experiment, order, said)
    if experiment.secure is not None:
        try:
            content = secure.masked(experiment, message, context, order, vectors, said)
        except (ValueError, KeyError) as error:
            return adapter.error_reply(f"client {order.client}, round {order.round}: {error}", message)
        _keep(experiment, context, order, update)
        return adapter.reply(content, message)
    packed = _records(experiment, vectors, said)
    if not experiment.sends_plain:
        leg = sending.Leg(experiment, "up", order.round, order.client)
        try:
            packed, residuals = leg.pack(packed, order.params, _kept(context))
        except ValueError as error:
            return adapter.error_reply(
                str(ClientError("pack", order.client, order.round, str(error))), message
            )
        for key, residual in residuals.items():
            context.state[sending.residual_key(key)] = wire.vector_record(residual)
    _keep(experiment, context, order, update)
    metrics = _metrics(experiment, order, update)
    return adapter.reply(wire.content(packed, metrics=metrics), message)


@dataclass
class _Sent:
    """What a message says, read once for all messages of a round that share a content."""

    round: int
    records: Mapping[str, ArrayRecord]
    instructions: Mapping[str, Any]
    model: tuple[Tensor, Tensor] | None
    """Parameters and buffers; None where they came with the round's first exchange."""
    to_new: Order | None = None
    """What it asks of those who keep nothing: the same of each."""


def _try_unpack(
    experiment: Experiment, message: Message, context: Context, seen: dict[int, _Sent]
) -> Order | ClientError:
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
    except Exception as error:
        return ClientError("unpack", client, round, f"{type(error).__name__}: {error}")


def _instructions(message: Message) -> Mapping[str, Any]:
    """The message's one ConfigRecord, whatever a strategy calls it."""
    records = wire.of_kind(message.content, ConfigRecord)
    return dict(records[wire.CONFIG] if wire.CONFIG in records else next(iter(records.values())))


def _read(experiment: Experiment, message: Message, instructions: Mapping[str, Any], round: int) -> _Sent:
    records = wire.of_kind(message.content, ArrayRecord)
    if not instructions.get(wire.PERSONAL, False):
        records = sending.Leg(experiment, "down", round).unpack(records)
    if experiment.local_rule.wants_mean_gradient and wire.ARRAYS not in records:
        return _Sent(round, records, instructions, None)
    arrays = records[wire.ARRAYS] if wire.ARRAYS in records else next(iter(records.values()))
    return _Sent(round, records, instructions, wire.from_model_record(arrays, experiment.task))


def _order(experiment: Experiment, sent: _Sent, context: Context, client: int) -> Order:
    task, config, told, kept = experiment.task, experiment.config, sent.instructions, _kept(context)
    round = sent.round
    params, buffers = sent.model or wire.from_model_record(kept[wire.ARRAYS], task)
    if told.get(wire.PERSONAL, False):
        return Order(client, round, params, buffers, personal=True)
    is_global = config.scaling.scope == "global"
    memory, d_hat = _load_memory(context, kept, task.layout.size, task.dtype), None
    if is_global:
        memory, d_hat = _global_preconditioner(experiment, sent, context, kept, params, memory)
    momentum_from = sent.records if config.client.momentum_buffer == "averaged" else kept
    return Order(
        client,
        round,
        params,
        buffers,
        d_hat,
        memory,
        _vector(momentum_from, wire.MOMENTUM, task.layout.size, task.dtype),
        clock=int(told.get("clock", 0)),
        measure=bool(told.get("measure", False))
        if is_global
        else not experiment.scaling.is_identity and round % config.scaling.refresh_every == 0,
        state=_rule_state(experiment, sent.records, kept),
        prepare=bool(told.get("prepare", False)),
        mix=bool(told.get("mix", False)),
        due=tuple(str(told["due"]).split()) if "due" in told else None,
    )


def _kept(context: Context) -> dict[str, ArrayRecord]:
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
    sent: _Sent,
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


def _vectors(experiment: Experiment, order: Order, update: ClientUpdate) -> dict[str, Tensor]:
    """The vectors that were asked for, with local privacy clipped and noised."""
    config, asked = experiment.config, dict[str, Tensor]()
    if update.params is not None:
        asked[wire.ARRAYS] = update.params
    if update.statistic is not None and config.scaling.scope == "global":
        asked[wire.STATISTIC] = update.statistic
    if update.momentum is not None and config.client.momentum_buffer == "averaged":
        asked[wire.MOMENTUM] = update.momentum
    if order.mix:
        asked[wire.PRECONDITIONER] = torch.ones_like(order.params) if update.d_hat is None else update.d_hat
    if order.prepare:
        asked[wire.GRADIENT] = update.state[wire.GRADIENT]
    for name in experiment.local_rule.sends:
        if name in update.state and (order.due is None or name in order.due):
            asked[name] = update.state[name]
    if experiment.mechanism is not None and experiment.mechanism.kind == "local":
        asked = _noised(experiment, experiment.mechanism, order, asked)
    return asked


def _records(
    experiment: Experiment, vectors: Mapping[str, Tensor], update: ClientUpdate
) -> dict[str, ArrayRecord]:
    """These vectors as they stand in a reply, the model with its buffers."""
    task, records = experiment.task, {}
    for key, vector in vectors.items():
        if key == wire.ARRAYS and update.buffers is not None:
            records[key] = wire.model_record(task, vector, update.buffers)
        else:
            records[key] = wire.vector_record(vector)
    return records


def _noised(
    experiment: Experiment, mechanism: privacy.Mechanism, order: Order, vectors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A message's vectors, each clipped and noised; of the model, what was added to the one received."""
    config, noised = experiment.config, dict(vectors)
    keys = [key for key in vectors if key not in experiment.local_rule.counts]
    for key in keys:
        centre = order.params if key == wire.ARRAYS else torch.zeros_like(vectors[key])
        bound = mechanism.bounds[sending.bound_of(key)]
        sent = centre + privacy.clipped(vectors[key] - centre, bound)
        if std := privacy.scale(mechanism.multiplier, len(keys), bound):
            stream = mechanism.stream(config.seed, f"local-privacy-{key}", order.round, order.client)
            sent = sent + privacy.noise(sent, std, stream)
        if key in privacy.NOT_NEGATIVE:
            sent = sent.clamp(min=0.0)
        if key == wire.PRECONDITIONER:  # models are divided by it
            sent = sent.clamp(min=config.scaling.alpha)
        noised[key] = sent
    return noised


def _metrics(experiment: Experiment, order: Order, update: ClientUpdate) -> MetricRecord:
    if experiment.mechanism is not None and experiment.mechanism.kind == "local":
        update = update._replace(num_examples=1, loss=0.0, d_hat=None)  # nothing that tells of its data
    metrics: dict[str, int | float] = {
        wire.NUM_EXAMPLES: update.num_examples,
        "client": order.client,
        "local-steps": update.num_steps,
        "train-loss": update.loss,
    }
    if experiment.config.scaling.scope == "local" and update.d_hat is not None:
        low, high = torch.aminmax(update.d_hat)
        metrics |= {"d-min": float(low), "d-max": float(high)}
    return wire.metric_record(metrics)


def _keep(experiment: Experiment, context: Context, order: Order, update: ClientUpdate) -> None:
    """What this client needs in later rounds; nothing is kept that a later round would not read."""
    if order.round == 0 or not experiment.clients_keep_state:
        return
    if order.prepare:
        context.state[wire.ARRAYS] = wire.model_record(experiment.task, order.params, order.buffers)
        return
    if experiment.local_rule.wants_mean_gradient:
        context.state.pop(wire.ARRAYS)
    kept: dict[str, Tensor | None] = {name: _own(update.state[name]) for name in experiment.local_rule.keeps}
    clock = 0
    if experiment.config.client.momentum_buffer == "kept":
        kept[wire.MOMENTUM] = _own(update.momentum)
    if update.memory is not None:
        kept[wire.MEMORY], clock = _own(update.memory.value), int(update.memory.clock)
    elif experiment.keeps_preconditioner and order.memory is not None:
        kept |= {wire.MEMORY: order.memory.value, wire.ARRAYS: order.params}
        clock = int(order.memory.clock)
    elif experiment.keeps_preconditioner:
        kept[wire.PRECONDITIONER], clock = order.d_hat, order.clock
    for key, vector in kept.items():
        if vector is not None:
            context.state[key] = wire.vector_record(vector)
    if kept:
        context.state[wire.CONFIG] = ConfigRecord({"clock": clock})


def _own(vector: Tensor | None) -> Tensor | None:
    """A copy: what a client computed lies beside what others did, in memory that is free after the round."""
    return None if vector is None else vector.clone()


def _vector(records: Mapping[str, ArrayRecord], key: str, size: int, dtype: torch.dtype) -> Tensor | None:
    return wire.from_vector_record(records[key], size, dtype) if key in records else None


def _clock(context: Context) -> int:
    return int(context.state.config_records[wire.CONFIG]["clock"])  # type: ignore[arg-type]


def _load_memory(
    context: Context, kept: Mapping[str, ArrayRecord], size: int, dtype: torch.dtype
) -> Memory | None:
    value = _vector(kept, wire.MEMORY, size, dtype)
    return None if value is None else Memory(value, _clock(context))
