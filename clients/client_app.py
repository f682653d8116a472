"""The Flower ClientApp: the same in every engine.

`app` answers one message at a time, as Flower asks. `app.cohort` answers many at once and is what the engines of this
project call. Both unpack, train and pack; a client's state is kept only when its work succeeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from clients.training import ClientUpdate, Order, Outcome, plan, train
from fedscale_local import flower_adapter as adapter
from fedscale_local import server_step
from fedscale_local.config import Config, CustomClient
from fedscale_local.data.shard import Place
from fedscale_local.errors import ClientError
from fedscale_local.experiment import Experiment, build, client_app, config_of
from fedscale_local.scaling import Memory

Train = Callable[[Experiment, Sequence[Order]], list[Outcome]]
Runner = Callable[[Train, Experiment, Sequence[Sequence[Order]]], list[list[Outcome]]]
"""Runs train(experiment, cohort) for each cohort, wherever it likes; their outcomes come in the same order."""

app = ClientApp()


def run_here(train: Train, experiment: Experiment, cohorts: Sequence[Sequence[Order]]) -> list[list[Outcome]]:
    """All cohorts in this process, one after the other."""
    return [train(experiment, cohort) for cohort in cohorts]


def cohort(
    messages: Sequence[Message], contexts: Sequence[Context], stack_size: int = 1, run: Runner = run_here
) -> list[Message]:
    """One reply per message, in their order; a client that fails replies with an error."""
    experiment = build(config_of(contexts[0].run_config), _place(contexts[0]))
    orders = [_try_unpack(experiment, m, c) for m, c in zip(messages, contexts, strict=True)]
    cohorts = plan(experiment, [order for order in orders if isinstance(order, Order)], stack_size)
    outcomes: dict[int, Outcome] = {
        order.client: outcome
        for asked, done in zip(cohorts, run(train, experiment, cohorts), strict=True)
        for order, outcome in zip(asked, done, strict=True)
    }
    replies = []
    for message, context, order in zip(messages, contexts, orders, strict=True):
        outcome = outcomes[order.client] if isinstance(order, Order) else order
        if isinstance(order, Order) and isinstance(outcome, ClientUpdate):
            reply = _pack(experiment, message, order, outcome)
            _keep(experiment, context, order, outcome)
        else:
            reply = adapter.error_reply(str(outcome), message)
        replies.append(reply)
    return replies


@app.train()
def answer(message: Message, context: Context) -> Message:
    """One client's round; whatever goes wrong is a reply, for a node that gets none waits for ever."""
    torch.set_num_threads(1)  # more would change the order of sums
    try:
        config = config_of(context.run_config)
        if isinstance(config.client, CustomClient):
            return _foreign(config, config.client, message, context)
        return cohort([message], [context])[0]
    except Exception as error:
        return adapter.error_reply(f"{type(error).__name__}: {error}", message)


def _foreign(config: Config, client: CustomClient, message: Message, context: Context) -> Message:
    """The reply of somebody else's ClientApp, which sees what it would see in process."""
    node = adapter.FIRST_NODE + int(context.node_config[adapter.PARTITION])
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
    return adapter.partition_reply(message, context)


@app.query("state")
def tell_state(message: Message, context: Context) -> Message:
    """What this client keeps from round to round, for the server's checkpoint."""
    return Message(RecordDict(dict(context.state)), reply_to=message)


@app.query("restore")
def take_state(message: Message, context: Context) -> Message:
    """Keep from now on what a checkpoint says."""
    context.state = message.content
    return Message(RecordDict(), reply_to=message)


app.cohort = cohort  # type: ignore[attr-defined]


def _place(context: Context) -> Place | None:
    """Where this device has its shard; None for one that holds the whole data set."""
    path = context.node_config.get(adapter.DATA_PATH)
    return None if path is None else Place(str(path), int(context.node_config[adapter.PARTITION]))


def _try_unpack(experiment: Experiment, message: Message, context: Context) -> Order | ClientError:
    client = int(context.node_config["partition-id"])
    round = -1
    try:
        round = int(_instructions(message)[adapter.ROUND])  # type: ignore[arg-type]
        return _unpack(experiment, message, context, client, round)
    except Exception as error:
        return ClientError("unpack", client, round, f"{type(error).__name__}: {error}")


def _instructions(message: Message) -> ConfigRecord:
    """The message's one ConfigRecord, whatever a strategy calls it."""
    records = message.content.config_records
    return records[adapter.CONFIG] if adapter.CONFIG in records else next(iter(records.values()))


def _unpack(experiment: Experiment, message: Message, context: Context, client: int, round: int) -> Order:
    task, config = experiment.task, experiment.config
    records, instructions = message.content.array_records, _instructions(message)
    arrays = records[adapter.ARRAYS] if adapter.ARRAYS in records else next(iter(records.values()))
    params, buffers = (
        adapter.from_record(arrays, layout, task.dtype) for layout in (task.layout, task.buffer_layout)
    )
    is_global = config.scaling.scope == "global"
    memory, d_hat = _load_memory(context, task.layout.size, task.dtype), None
    if is_global:
        memory, d_hat = _global_preconditioner(experiment, message, context, params, memory)
    momentum_from = records if config.client.momentum_buffer == "averaged" else context.state.array_records
    return Order(
        client,
        round,
        params,
        buffers,
        d_hat,
        memory,
        _vector(momentum_from, adapter.MOMENTUM, task.layout.size, task.dtype),
        clock=int(instructions.get("clock", 0)),  # type: ignore[arg-type]
        measure=bool(instructions.get("measure", False))
        if is_global
        else not experiment.scaling.is_identity and round % config.scaling.refresh_every == 0,
    )


def _global_preconditioner(
    experiment: Experiment, message: Message, context: Context, params: Tensor, memory: Memory | None
) -> tuple[Memory | None, Tensor | None]:
    """The D-hat of this round: sent, or kept from an earlier round, or derived from the last displacement."""
    task, scaling, instructions = experiment.task, experiment.scaling, _instructions(message)
    records, size = message.content.array_records, task.layout.size
    if adapter.PRECONDITIONER in records:
        return None, adapter.from_vector_record(records[adapter.PRECONDITIONER], size, task.dtype)
    if adapter.MEMORY in records:
        value = adapter.from_vector_record(records[adapter.MEMORY], size, task.dtype)
        memory = Memory(value, int(instructions["clock"]))  # type: ignore[arg-type]
        return memory, scaling.d_hat(memory)
    if "mean-steps" in instructions:
        before = _vector(context.state.array_records, adapter.ARRAYS, size, task.dtype)
        if memory is None or before is None:
            raise ValueError("asked to derive the preconditioner, but the last round's model is not here")
        steps, step_size = float(instructions["mean-steps"]), experiment.config.client.step_size  # type: ignore[arg-type]
        h = server_step.displacement(before, params, scaling.d_hat(memory), steps, step_size)
        memory = scaling.refresh(memory, h)
        return memory, scaling.d_hat(memory)
    if "clock" not in instructions:  # nothing was measured yet, or the method has no preconditioner
        start = scaling.init(params, ones=experiment.starts_at_ones)
        return start if experiment.keeps_preconditioner else None, None
    if memory is not None and memory.clock == instructions["clock"]:
        return memory, scaling.d_hat(memory)
    kept = _vector(context.state.array_records, adapter.PRECONDITIONER, size, task.dtype)
    if kept is None or _clock(context) != instructions["clock"]:
        raise ValueError(f"no preconditioner of clock {instructions['clock']!r} is kept here")
    return None, kept


def _pack(experiment: Experiment, message: Message, order: Order, update: ClientUpdate) -> Message:
    task, config, instructions = experiment.task, experiment.config, _instructions(message)
    records: dict[str, ArrayRecord] = {}
    if update.params is not None and update.buffers is not None:
        sections = [(task.layout, update.params), (task.buffer_layout, update.buffers)]
        records[adapter.ARRAYS] = adapter.to_record(sections)
    d_hat = torch.ones_like(order.params) if update.d_hat is None else update.d_hat
    extra = {
        adapter.STATISTIC: update.statistic if config.scaling.scope == "global" else None,
        adapter.PRECONDITIONER: d_hat if instructions.get("mix", False) else None,
        adapter.MOMENTUM: update.momentum if config.client.momentum_buffer == "averaged" else None,
    }
    records |= {key: adapter.vector_record(vector) for key, vector in extra.items() if vector is not None}
    metrics: dict[str, int | float] = {
        adapter.NUM_EXAMPLES: update.num_examples,
        "client": order.client,
        "local-steps": update.num_steps,
        "train-loss": update.loss,
    }
    if config.scaling.scope == "local" and update.d_hat is not None:
        low, high = torch.aminmax(update.d_hat)
        metrics |= {"d-min": float(low), "d-max": float(high)}
    return Message(adapter.content(records, metrics=MetricRecord(metrics)), reply_to=message)  # type: ignore[arg-type]


def _keep(experiment: Experiment, context: Context, order: Order, update: ClientUpdate) -> None:
    """What this client needs in later rounds; nothing is kept that a later round would not read."""
    if order.round == 0:
        return
    kept: dict[str, Tensor | None] = {}
    clock = 0
    if experiment.config.client.momentum_buffer == "kept":
        kept[adapter.MOMENTUM] = update.momentum
    if update.memory is not None:
        kept[adapter.MEMORY], clock = update.memory.value, int(update.memory.clock)
    elif experiment.keeps_preconditioner and order.memory is not None:
        kept |= {adapter.MEMORY: order.memory.value, adapter.ARRAYS: order.params}
        clock = int(order.memory.clock)
    elif experiment.keeps_preconditioner:
        kept[adapter.PRECONDITIONER], clock = order.d_hat, order.clock
    for key, vector in kept.items():
        if vector is not None:
            context.state[key] = adapter.vector_record(vector)
    if kept:
        context.state[adapter.CONFIG] = ConfigRecord({"clock": clock})


def _vector(records: object, key: str, size: int, dtype: torch.dtype) -> Tensor | None:
    return adapter.from_vector_record(records[key], size, dtype) if key in records else None  # type: ignore[operator,index]


def _clock(context: Context) -> int:
    return int(context.state.config_records[adapter.CONFIG]["clock"])  # type: ignore[arg-type]


def _load_memory(context: Context, size: int, dtype: torch.dtype) -> Memory | None:
    value = _vector(context.state.array_records, adapter.MEMORY, size, dtype)
    return None if value is None else Memory(value, _clock(context))
