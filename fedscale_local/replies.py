"""Which replies of a round a strategy may see, and why the others are dropped: none of them ends a run.

A strategy of this project says what its replies have to hold (`expects(round)`, names and sizes of ArrayRecords). Any
other, such as Flower's own, sees replies that hold the model and agree with each other, on which Flower's strategies
insist.
What is normal in size follows from the model and the data set, which the server knows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedscale_local import privacy, wire
from fedscale_local.experiment import Experiment

MODELS_AT_MOST = 8
"""Arrays of a reply together, in multiples of the model; what is ours sends 4 (model, statistic, D and momentum)."""
LARGEST = 2**63
"""What whole numbers are on the way, and what floats still hold."""
BYTES_AT_MOST = 2**20
"""Names, metrics and settings of a reply together; and what arrays may have beside the multiple above."""
REASON_AT_MOST = 1000
"""Characters of a reason that are told."""

Records = Mapping[str, ArrayRecord]
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
    expected = None if expects is None else dict(expects(round))

    def decoded(client: int, records: Records) -> Records:
        return records if expected is None else strategy.decoded(round, client, records)  # type: ignore[attr-defined]

    secure = getattr(strategy, "secure", None)
    asked = {m.metadata.message_id: client_of[m.metadata.dst_node_id] for m in sent}
    weight = getattr(strategy, "weighted_by_key", wire.NUM_EXAMPLES)
    waiting = set(asked.values())
    good: dict[int, Message] = {}
    failures: list[tuple[int | None, str]] = []
    for reply in replies:
        client, reason = _sender(reply, asked, waiting, client_of)
        if client is not None and reason is None:
            waiting.remove(client)
            if secure is not None:
                reason = _secure_fault(experiment, secure, client, reply)
            else:
                reason = _fault(experiment, expected, client, reply, decoded, weight)
            if reason is None:
                good[client] = reply
        if reason is not None:
            failures.append((client, reason))
    late = "no reply in time" if secure is None else f"{secure.stage}: no reply in time"
    failures += [(client, late) for client in waiting]
    good = {client: good[client] for client in sorted(good)}
    if expected is None:
        for client in _outvoted(good):
            del good[client]
            failures.append((client, "its records have other keys or lengths than those of most clients"))
    failures.sort(key=lambda failure: (failure[0] is None, failure[0] or 0))
    return list(good.values()), [{"client": client, "reason": _short(reason)} for client, reason in failures]


def _short(reason: str) -> str:
    """What goes into the records of a reason, which a client may have written."""
    return reason if len(reason) <= REASON_AT_MOST else reason[:REASON_AT_MOST] + "..."


def _sender(
    reply: Any, asked: Mapping[str, int], waiting: set[int], client_of: Mapping[int, int]
) -> tuple[int | None, str | None]:
    """Whose reply it is, and what is wrong if nobody waits for it."""
    if not isinstance(reply, Message):
        return None, f"expected a Message as reply, found {type(reply).__name__}"
    said = reply.metadata
    client, source = asked.get(said.reply_to_message_id), client_of.get(said.src_node_id)
    if client is None:
        return source, "a reply to no message of this round"
    if source != client:
        return source, f"a reply to the message of client {client}"
    return client, None if client in waiting else "a second reply to one message"


def _fault(
    experiment: Experiment,
    expected: Mapping[str, int] | None,
    client: int,
    reply: Message,
    decoded: Callable[[int, Records], Records],
    weight: str,
) -> str | None:
    """Why a reply cannot be used, or None; weight: the metric that a strategy of somebody else weighs replies by."""
    if reply.has_error():
        return str(reply.error.reason)
    try:
        if (fault := _size_fault(experiment, reply.content)) is not None:
            return fault
        records = decoded(client, wire.of_kind(reply.content, ArrayRecord))
        for name, vector in _vectors(experiment, expected, records):
            if (fault := _numbers_fault(vector)) is not None:
                return f"{name}: {fault}"
            if name == wire.PRECONDITIONER and not bool((vector > 0).all()):
                return f"{name}: not all numbers are above 0"
            # Roots are taken of these, and steps counted: below zero they would end every client's next round.
            is_never_negative = name in privacy.NOT_NEGATIVE or name in experiment.local_rule.counts
            if expected is not None and is_never_negative and bool((vector < 0).any()):
                return f"{name}: a number below 0"
        has_stepped = expected is not None and wire.ARRAYS in expected
        if expected is None:
            return _foreign_metrics_fault(experiment, weight, reply.content)
        return _metrics_fault(experiment, client, has_stepped, reply.content)
    except Exception as error:
        return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _secure_fault(experiment: Experiment, secure: Any, client: int, reply: Message) -> str | None:
    """As `_fault`, of a reply that is nothing but noise to whoever reads it alone: only its form can be checked."""
    if reply.has_error():
        return f"{secure.stage}: {reply.error.reason}"
    try:
        fault = _size_fault(experiment, reply.content) or secure.fault(client, reply.content)
    except Exception as error:
        fault = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return None if fault is None else f"{secure.stage}: {fault}"


def _size_fault(experiment: Experiment, content: RecordDict) -> str | None:
    """More than any client of this run needs to say?"""
    task = experiment.task
    model = (task.layout.size + task.buffer_layout.size) * task.dtype.itemsize
    (arrays, rest), limit = wire.num_bytes(content), MODELS_AT_MOST * model + BYTES_AT_MOST
    if arrays > limit:
        return f"its arrays hold {arrays} bytes, at most {limit} are taken (the model has {model})"
    return (
        f"its metrics hold {rest} bytes, at most {BYTES_AT_MOST} are taken" if rest > BYTES_AT_MOST else None
    )


def _numbers_fault(vector: Tensor) -> str | None:
    """Numbers that would spoil the sums they enter: of squared distances, over a thousand clients, for one.

    |a - b|^2 <= 4 d L^2 where no number is larger than L, so L = sqrt(max / d) / 64 leaves room for 1024 of them.
    """
    if not vector.is_floating_point() or vector.numel() == 0:
        return None
    limit = _largest(vector.dtype, vector.numel())
    if torch.dot(vector, vector).item() < limit * limit:
        return None  # then no number is larger than that, and this is a quarter of the time
    low, high = (end.item() for end in torch.aminmax(vector))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "not all numbers are finite"
    largest = max(-low, high)
    return f"a number of size {largest:.3g}, expected less than {limit:.3g}" if largest > limit else None


@lru_cache
def _largest(dtype: torch.dtype, size: int) -> float:
    return math.sqrt(torch.finfo(dtype).max / size) / 64


def _vectors(
    experiment: Experiment, expected: Mapping[str, int] | None, records: Records
) -> Iterator[tuple[str, Tensor]]:
    """What the strategy will read, by record; ValueError for what is missing or has another shape or type."""
    task = experiment.task
    if expected is None and not records:
        raise ValueError("the reply has no arrays")
    model = wire.ARRAYS if expected is not None or wire.ARRAYS in records else next(iter(records))
    for name in (model,) if expected is None else expected:
        if name not in records:
            raise ValueError(f"the reply has no {name}")
        try:
            if name == model:
                params, buffers = wire.from_model_record(records[name], task)
                yield name, params
                if task.buffer_layout.names:
                    yield name, buffers
            else:
                assert expected is not None
                yield name, wire.from_vector_record(records[name], expected[name], task.dtype)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for name in set(records) - {model} if expected is None else ():
        yield from ((name, torch.from_numpy(array.numpy().reshape(-1))) for array in records[name].values())


def _foreign_metrics_fault(experiment: Experiment, weight: str, content: RecordDict) -> str | None:
    """A weight that is none, or more examples than there are in all; and numbers too large for means of them."""
    bounds = {weight: (0, math.inf), wire.NUM_EXAMPLES: (0, experiment.dataset.num_examples)}
    for metrics in wire.of_kind(content, MetricRecord).values():
        for name, value in metrics.items():
            fault = _misfit(name, value, *bounds[name]) if name in bounds else None
            if fault is None and any(abs(number) > LARGEST for number in _integers(value)):
                fault = f"{name}: a whole number beyond 64 bits"
            if fault is not None:
                return fault
    return None


def _integers(value: Any) -> list[int]:
    return [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]


def _metrics_fault(experiment: Experiment, client: int, has_stepped: bool, content: RecordDict) -> str | None:
    """What no client may say about itself: more examples than the partition gives it, or more steps than asked."""
    metrics = dict(wire.of_kind(content, MetricRecord)[wire.METRICS].items())
    if metrics["client"] != client:
        return f"client={metrics['client']}: the reply came from client {client}"
    config, held = experiment.config.client, int(experiment.partition.sizes[client])
    # An epoch has no more batches than examples.
    steps = config.local_steps or (config.local_epochs or 1) * held
    return (
        _misfit(wire.NUM_EXAMPLES, metrics[wire.NUM_EXAMPLES], 0, held)
        or _misfit("local-steps", metrics["local-steps"], 0 if has_stepped else -1, steps)
        or _misfit("train-loss", metrics["train-loss"], -math.inf, math.inf)
    )


def _misfit(name: str, value: Any, above: float, most: float) -> str | None:
    """What is wrong with a number that has to be finite, greater than `above` and not greater than `most`."""
    if not (isinstance(value, int | float) and math.isfinite(value) and value > above):
        return (
            f"{name}={value}: expected a {'finite number' if above == -math.inf else f'number above {above}'}"
        )
    return f"{name}={value}: expected {most} at most" if value > most else None


def _outvoted(good: Mapping[int, Message]) -> list[int]:
    """Clients whose records are of another form than those of most; where as many say this as that, the first wins."""
    forms = {
        client: frozenset(
            (name, frozenset((key, _form(value)) for key, value in record.items()))
            for name, record in reply.content.items()
            if isinstance(record, ArrayRecord | MetricRecord)
        )
        for client, reply in good.items()
    }
    most = Counter(forms.values()).most_common(1)
    return [client for client, own in forms.items() if own != most[0][0]]


def _form(value: Any) -> object:
    """What strategies need to be the same in all replies: an array's shape, a list's length."""
    if isinstance(value, list):
        return len(value)
    return tuple(value.shape) if isinstance(value, Array) else None
