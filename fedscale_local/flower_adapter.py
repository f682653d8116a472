"""Flower's messages and contexts as its own code makes them, what survives of a strategy, and what its processes have.

With wire.py it is the only place that knows Flower's record keys and private corners.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.app.constants import DEFAULT_TTL
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.proto.log_pb2 import PushLogsRequest
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedscale_local import wire
from fedscale_local.randomness import derive

STATE, RESTORE = "query.state", "query.restore"
"""Messages that fetch what a client keeps, and that give it back."""
CHUNK = "train.chunk"
"""A message for several clients at once."""
FIRST_NODE = 2
"""Node ids that strategies see follow the client indices from here; Flower keeps 1 for the server."""


def private_copy(message: Message) -> Message:
    """The same message with records of its own: messages of one round share theirs, and a client may change them."""
    return with_content(message, RecordDict({key: record.copy() for key, record in message.content.items()}))


def with_content(message: Message, content: RecordDict) -> Message:
    """The same message with this in the place of its own content."""
    return Message(content=content, metadata=message.metadata)  # type: ignore[call-overload]


def message_to(node: int, content: RecordDict, message_type: str = "train") -> Message:
    return _message(
        content,
        _run_id=TaskIdentity.run_id,
        _src_node_id=TaskIdentity.node_id,
        _dst_node_id=node,
        _src_task_id=TaskIdentity.task_id,
        _dst_task_id=None,
        _reply_to_message_id="",
        _group_id="",
        _created_at=time.time(),
        _ttl=DEFAULT_TTL,
        _message_type=message_type,
    )


def reply(content: RecordDict, reply_to: Message) -> Message:
    """A client's answer to a message."""
    asked, now = reply_to.metadata.__dict__, time.time()
    return _message(
        content,
        _run_id=asked["_run_id"],
        _src_node_id=asked["_dst_node_id"],
        _dst_node_id=asked["_src_node_id"],
        _src_task_id=asked["_dst_task_id"],
        _dst_task_id=asked["_src_task_id"],
        _reply_to_message_id=asked["_message_id"],
        _group_id=asked["_group_id"],
        _created_at=now,
        _ttl=asked["_created_at"] + asked["_ttl"] - now,
        _message_type=asked["_message_type"],
    )


def _message(content: RecordDict, **told: Any) -> Message:
    """A Message as Flower's constructor leaves it, which looks at its arguments for 20 us."""
    metadata, message = Metadata.__new__(Metadata), Message.__new__(Message)
    metadata.__dict__.update(told, _message_id="", _delivered_at="")
    message.__dict__.update(_metadata=metadata, _content=content, _error=None)
    return message


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


def with_client(reply: Message, context: Context) -> Message:
    """The reply, with which client its node serves."""
    if reply.has_content():
        client = int(str(context.node_config[wire.PARTITION]))
        reply.content[wire.PARTITION] = MetricRecord({wire.PARTITION: client})
    return reply


def take_client(reply: Message) -> int | None:
    """Take out of a reply which client its node says it serves; None if it does not say so."""
    if not reply.has_content() or wire.PARTITION not in reply.content:
        return None
    record = reply.content.pop(wire.PARTITION)
    number = record.get(wire.PARTITION) if isinstance(record, MetricRecord) else None
    return number if isinstance(number, int) else None


@cache
def renew_ray_workers() -> None:
    """Let Flower's simulation, in whose process this is, start a worker of Ray anew when it has ended.

    By itself it goes on handing out the one that ended, to which every message is lost at once.
    """
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool
    from ray.exceptions import RayActorError

    fetch = BasicActorPool.fetch_result_and_return_actor_to_pool

    def fetched(pool: BasicActorPool, future: Any) -> tuple[Message, Context]:
        try:
            return fetch(pool, future)
        except RayActorError:
            pool._future_to_actor[future] = pool.create_actor_fn()  # whom Flower puts back
            raise

    BasicActorPool.fetch_result_and_return_actor_to_pool = fetched  # type: ignore[assignment,method-assign]


def new_context(node: int, node_config: dict[str, Any], run_config: dict[str, Any]) -> Context:
    return Context(1, node, node_config, RecordDict(), run_config)


def kept(state: RecordDict) -> RecordDict:
    """Of what a client has in its state what it may tell the server: no secrets that hide its vectors."""
    return RecordDict({key: record for key, record in state.items() if key != wire.SECURE})


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
    """Numbers, texts and arrays, and containers of them."""
    if type(value) is dict:
        return all(isinstance(key, int | str) and _is_state(part) for key, part in value.items())
    if isinstance(value, list):
        return all(map(_is_state, value))
    return isinstance(value, bool | int | float | str | bytes | np.ndarray)


def become_server() -> None:
    """Give this process the identity without which Flower builds no message, unless Flower gave it one."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def stamp(message: Message, message_id: str) -> Message:
    """Give a message the id that a SuperLink would have given it."""
    message.metadata.__dict__["_message_id"] = message_id
    return message


def empty_run() -> Run:
    return Run.create_empty(1)


def roster(grid: Grid, num_clients: int) -> Mapping[int, int]:
    """The node id of each client index, as the grids of this project have it."""
    return _pairs(grid, num_clients)[0]


def clients_by_node(grid: Grid, num_clients: int) -> Mapping[int, int]:
    """The client index of each node id."""
    return _pairs(grid, num_clients)[1]


def _pairs(grid: Grid, num_clients: int) -> tuple[dict[int, int], dict[int, int]]:
    nodes = grid.node_of_client[:num_clients]  # type: ignore[attr-defined]
    # Nodes that are numbered stay as they are, and a hundred thousand take longer to list than a round's clients.
    return _numbered(nodes) if isinstance(nodes, range) else _listed(nodes)


def _listed(nodes: Iterable[int]) -> tuple[dict[int, int], dict[int, int]]:
    of_client = dict(enumerate(nodes))
    return of_client, {node: client for client, node in of_client.items()}


_numbered = lru_cache(maxsize=1)(_listed)


@contextmanager
def seeded_globals(seed: int, round: int, node: int = 0) -> Iterator[None]:
    """Flower's strategies and other people's clients draw from global generators: seed them all, then restore."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    number = derive(seed, "flower", round, node)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(
        number
    )  # torch.manual_seed seeds GPUs as well, which takes a millisecond
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def round_of(message: Message) -> int:
    """The round that a message speaks of; 0 where it speaks of none."""
    said = (record.get(wire.ROUND) for record in wire.of_kind(message.content, ConfigRecord).values())
    return next((number for number in said if isinstance(number, int)), 0)


def push_log(grid: Grid, line: str) -> None:
    """Add a line to the log of the run that this ServerApp works for, and return when the SuperLink has it.

    Flower's own way takes what is printed, in the background: it drops what is left three seconds after the end, and
    writes it to the SuperLink's own output as well.
    """
    request = PushLogsRequest(node=grid.node, run_id=grid.run.run_id, logs=[f"\n{line}\n"])  # type: ignore[attr-defined]
    grid._runtime_client.PushLogs(request)  # type: ignore[attr-defined]


def quiet_flower() -> None:
    """Flower logs each step of a round to the terminal; our records and progress say it instead."""
    import logging

    logging.getLogger("flwr").setLevel(logging.ERROR)
