"""The Flower ClientApp: the same in every engine.

`app` answers one message at a time, as Flower asks; one message may be a chunk of many clients, as on Ray. `app.cohort`
answers many at once and is what the in-process engine calls. All unpack, train and pack; a client's state is kept only
when its work succeeded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients import secure
from clients.answers import answered
from clients.hostile import sent_instead
from clients.orders import Sent, try_unpack
from clients.training import ClientUpdate, Order, Outcome, plan, train
from fedscale_local import chunk, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local.config import Config, CustomClient
from fedscale_local.config_engines import Ray
from fedscale_local.config_secure import SecureAggregation
from fedscale_local.data.shard import Place
from fedscale_local.errors import RAISED, ClientError, late
from fedscale_local.experiment import Experiment, build, client_app, config_of
from fedscale_local.processes import ending_after, in_time

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
    seen: dict[int, Sent] = {}
    orders = [try_unpack(experiment, m, c, seen) for m, c in zip(messages, contexts, strict=True)]
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
            reply = answered(experiment, message, context, order, outcome, lies.get(order.client, outcome))
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
    except RAISED as error:
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
    except RAISED as error:
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
