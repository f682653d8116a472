"""Which replies of a round a strategy may see, and why the others are dropped: none of them ends a run.

A strategy of this project says what its replies have to hold (`expects(round)`, names of ArrayRecords). Any other,
such as Flower's own, sees replies that hold the model and agree with each other, which Flower's strategies insist on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedscale_local import flower_adapter as adapter
from fedscale_local.experiment import Experiment

Failures = list[dict[str, Any]]
"""{"client": its index, or None where nobody can tell, "reason": in words}"""


def usable(
    experiment: Experiment,
    strategy: Strategy,
    round: int,
    sent: Iterable[Message],
    replies: Iterable[Any],
    client_of: Mapping[int, int],
) -> tuple[list[Message], Failures]:
    """The replies that the strategy may see, in client order, and why the others were dropped."""
    expects = getattr(strategy, "expects", None)
    expected = None if expects is None else tuple(expects(round))
    asked = {m.metadata.message_id: client_of[m.metadata.dst_node_id] for m in sent}
    waiting = set(asked.values())
    good: dict[int, Message] = {}
    failures: list[tuple[int | None, str]] = []
    for reply in replies:
        client, reason = _sender(reply, asked, waiting, client_of)
        if client is not None and reason is None:
            waiting.remove(client)
            reason = _fault(experiment, expected, client, round, reply)
            if reason is None:
                good[client] = reply
        if reason is not None:
            failures.append((client, reason))
    failures += [(client, "no reply in time") for client in waiting]
    good = {client: good[client] for client in sorted(good)}
    if expected is None:
        for client in _outvoted(good):
            del good[client]
            failures.append((client, "its records have other keys than those of most clients"))
    failures.sort(key=lambda failure: (failure[0] is None, failure[0] or 0))
    return list(good.values()), [{"client": client, "reason": reason} for client, reason in failures]


def _sender(
    reply: Any, asked: Mapping[str, int], waiting: set[int], client_of: Mapping[int, int]
) -> tuple[int | None, str | None]:
    """Whose reply it is, and what is wrong if nobody waits for it."""
    if not isinstance(reply, Message):
        return None, f"expected a Message as reply, found {type(reply).__name__}"
    client = asked.get(reply.metadata.reply_to_message_id)
    if client is None:
        return client_of.get(reply.metadata.src_node_id), "a reply to no message of this round"
    return client, None if client in waiting else "a second reply to one message"


def _fault(
    experiment: Experiment, expected: tuple[str, ...] | None, client: int, round: int, reply: Message
) -> str | None:
    """Why a reply cannot be used, or None."""
    if reply.has_error():
        return str(reply.error.reason)
    try:
        for name, vector in _vectors(experiment, expected, reply.content):
            if not bool(vector.isfinite().all()):
                return f"{name}: not all numbers are finite"
            if name == adapter.PRECONDITIONER and not bool((vector > 0).all()):
                return f"{name}: not all numbers are above 0"
        return _metrics_fault(expected is not None, client, round, reply.content)
    except Exception as error:
        return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _vectors(
    experiment: Experiment, expected: tuple[str, ...] | None, content: RecordDict
) -> Iterator[tuple[str, Tensor]]:
    """What the strategy will read, by record; ValueError for what is missing or has another shape or type."""
    task, records = experiment.task, content.array_records
    if expected is None and not records:
        raise ValueError("the reply has no arrays")
    model = adapter.ARRAYS if expected is not None or adapter.ARRAYS in records else next(iter(records))
    for name in (model,) if expected is None else expected:
        if name not in records:
            raise ValueError(f"the reply has no {name}")
        try:
            if name == model:
                for layout in (task.layout, task.buffer_layout):
                    yield name, adapter.from_record(records[name], layout, task.dtype)
            else:
                yield name, adapter.from_vector_record(records[name], task.layout.size, task.dtype)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for name in set(records) - {model} if expected is None else ():
        yield from ((name, torch.from_numpy(array.numpy())) for array in records[name].values())


def _metrics_fault(is_ours: bool, client: int, round: int, content: RecordDict) -> str | None:
    """What no client may say about itself."""
    if not is_ours:
        said = (m[adapter.NUM_EXAMPLES] for m in content.metric_records.values() if adapter.NUM_EXAMPLES in m)
        return next(filter(None, (_too_small(adapter.NUM_EXAMPLES, value, 0) for value in said)), None)
    metrics = content.metric_records[adapter.METRICS]
    if metrics["client"] != client:
        return f"client={metrics['client']}: the reply came from client {client}"
    above = {adapter.NUM_EXAMPLES: 0, "local-steps": 0 if round > 0 else -1, "train-loss": -math.inf}
    return next(filter(None, (_too_small(name, metrics[name], bound) for name, bound in above.items())), None)


def _too_small(name: str, value: Any, bound: float) -> str | None:
    if isinstance(value, int | float) and math.isfinite(value) and value > bound:
        return None
    return f"{name}={value}: expected a {'finite number' if bound == -math.inf else f'number above {bound}'}"


def _outvoted(good: Mapping[int, Message]) -> list[int]:
    """Clients whose records have other keys than those of most; where as many say this as that, the first wins."""
    keys = {
        client: frozenset(
            (name, key)
            for records in (reply.content.array_records, reply.content.metric_records)
            for name, record in records.items()
            for key in (*record, None)
        )
        for client, reply in good.items()
    }
    most = Counter(keys.values()).most_common(1)
    return [client for client, own in keys.items() if own != most[0][0]]
