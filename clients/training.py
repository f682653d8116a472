"""What a client computes in one round, for a cohort of one or of many.

`plan` divides a round's orders into cohorts, `train` runs one cohort. A cohort of one runs looped, which is the
reference; a larger one runs stacked. Both read the same draws: batches from (seed, "batch", round, client), probes
from (seed, "probe", round), sampled labels from (seed, "labels", round, client).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fedscale_local import curvature
from fedscale_local.client_step import Measure, probe, scaled_local_steps
from fedscale_local.errors import RAISED, ClientError
from fedscale_local.experiment import Experiment
from fedscale_local.local_rule import MOMENTUM, LocalRule, State
from fedscale_local.randomness import derive, generator
from fedscale_local.scaling import Memory, Scaling
from fedscale_local.tasks import Batch, Looped, Stacked
from fedscale_local.vector import is_finite

log = logging.getLogger(__name__)


class Order(NamedTuple):
    """What one client is asked to do in one round; round 0 is the probe: measure the statistic, take no step."""

    client: int
    round: int
    params: Tensor
    buffers: Tensor
    d_hat: Tensor | None = None
    """The server's D-hat (d,), global scope."""
    memory: Memory | None = None
    """The client's own D, local scope; None at its first participation."""
    clock: int = 0
    """Of d_hat, or of memory: how often it was refreshed."""
    measure: bool = False
    """Is the statistic of the round's first mini-batch wanted?"""
    state: Mapping[str, Tensor] = {}
    """What the local rule was sent and what it kept, by name; what is missing is zero."""
    prepare: bool = False
    """Is the full-batch gradient at x wanted, and no step?"""
    mix: bool = False
    """Is the D-hat of the steps wanted, for preconditioned mixing?"""
    due: tuple[str, ...] | None = None
    """What of the local rule's vectors is wanted; None: all that it sends."""
    personal: bool = False
    """Is it wanted how the client does on its test examples once it has made the model its own?"""


class ClientUpdate(NamedTuple):
    """What one client answers; of the optional parts those that its order asked for or its state keeps."""

    client: int
    num_examples: int
    num_steps: int = 0
    loss: float = 0.0
    params: Tensor | None = None
    buffers: Tensor | None = None
    statistic: Tensor | None = None
    d_hat: Tensor | None = None
    memory: Memory | None = None
    state: Mapping[str, Tensor] = {}
    """What the local rule sends and keeps, by name."""
    test: tuple[float, float | None] | None = None
    """Loss and accuracy on the client's test examples, where its order is personal."""


Outcome = ClientUpdate | ClientError


def plan(experiment: Experiment, orders: Sequence[Order], stack_size: int) -> list[list[Order]]:
    """Cohorts of at most stack_size, alike in shard size, so that little is padded and steps are equally many.

    From four clients on they are an even number, equal but for one client, so that two workers have equally much to do.
    """
    if stack_size == 1:
        return [[order] for order in orders]
    sizes = experiment.partition.sizes
    ranked = sorted(orders, key=lambda order: (-sizes[order.client], order.client))
    count = 2 * -(-len(ranked) // (2 * stack_size)) if len(ranked) > 3 else 1
    ends = [len(ranked) * number // count for number in range(count + 1)]
    return [ranked[start:end] for start, end in pairwise(ends) if end > start]


def train(experiment: Experiment, cohort: Sequence[Order]) -> list[Outcome]:
    """One outcome per order. A stack that fails is done again one by one, which names the client at fault."""
    try:
        updates = _train(experiment, cohort)
    except RAISED as error:
        reason = f"{type(error).__name__}: {error}"
        if len(cohort) == 1:
            return [ClientError("train", cohort[0].client, cohort[0].round, reason)]
        outcomes = [outcome for order in cohort for outcome in train(experiment, [order])]
        if not any(isinstance(outcome, ClientError) for outcome in outcomes):
            log.warning("a stack of %d clients had to be done one by one: %s", len(cohort), reason)
        return outcomes
    return [_finite(experiment, order, update) for order, update in zip(cohort, updates, strict=True)]


def _finite(experiment: Experiment, order: Order, update: ClientUpdate) -> Outcome:
    """The update, unless a number in it is none: such a client has failed, and must not keep what it computed.

    Where it keeps nothing, and its loss is a number, that is left to who receives it, and looks at all of it anyway.
    """
    if not experiment.clients_keep_state and math.isfinite(update.loss):
        return update
    vectors = {"model": update.params, "statistic": update.statistic}
    vectors |= {"D": update.memory and update.memory.value, **update.state}
    for name, vector in vectors.items():
        if vector is not None and not is_finite(vector):
            reason = f"its {name} is no longer finite (mean loss {update.loss:g})"
            return ClientError("train", order.client, order.round, reason)
    return update


def _train(experiment: Experiment, cohort: Sequence[Order]) -> list[ClientUpdate]:
    config, task, scaling = experiment.config, experiment.task, experiment.scaling
    parts = {order.client: _batches(experiment, order) for order in cohort}
    # Clients with the most steps first: those that still step are then always a leading slice of the stack.
    ranked = sorted(cohort, key=lambda order: -len(parts[order.client]))
    first = ranked[0]
    oracle = task.looped if len(ranked) == 1 else task.stacked
    task.module.train()
    _seed_dropout(experiment, oracle, first)
    if first.round == 0:
        sent = _probed(experiment, oracle, ranked)
        statistics = _probe(experiment, oracle, ranked) if first.measure else [None] * len(ranked)
        updates = {
            order.client: ClientUpdate(
                order.client,
                len(experiment.shard(order.client)),
                statistic=h,
                state={
                    name: vectors if vectors.dim() == 1 else vectors[row] for name, vectors in sent.items()
                },
            )
            for row, (order, h) in enumerate(zip(ranked, statistics, strict=True))
        }
        return [updates[order.client] for order in cohort]

    if first.prepare:
        gradients = _full_gradient(experiment, oracle, ranked).cpu().reshape(len(ranked), -1)
        updates = {
            order.client: ClientUpdate(
                order.client, len(experiment.shard(order.client)), state={"mean_gradient": gradient}
            )
            for order, gradient in zip(ranked, gradients, strict=True)
        }
        return [updates[order.client] for order in cohort]

    if first.personal:
        tested = _personalised(experiment, oracle, ranked, [parts[order.client] for order in ranked])
        return [tested[order.client] for order in cohort]

    memories = _own_memories(experiment, oracle, ranked)
    if isinstance(oracle, Looped):
        oracle.load(first.params, first.buffers)
        _seed_dropout(experiment, oracle, first)  # whatever was measured before: all methods draw the same
    each_step = experiment.refreshes_each_step
    shared = None if first.d_hat is None else task.there(first.d_hat)
    rule, momentum = experiment.local_rule.in_round(first.due), config.client.momentum
    state = _rule_state(experiment, oracle, ranked, rule)
    result = scaled_local_steps(
        oracle,
        oracle.gather([order.params for order in ranked]),
        _stream(experiment, oracle, ranked, [parts[order.client] for order in ranked]),
        scaling,
        step_size=config.client.step_size,
        momentum=momentum,
        buffer=state.pop(MOMENTUM, None) if momentum else None,
        d_hat=shared
        if memories is None
        else _gather(oracle, ranked, [scaling.d_hat(memory) for memory in memories]),
        measure=_measure(experiment, oracle, ranked, first.round) if each_step or first.measure else None,
        memory=oracle.gather_memories(memories) if each_step and memories else None,
        rule=rule,
        state=state,
    )
    if result.momentum is not None:
        result.state[MOMENTUM] = result.momentum
    left = {name: result.state[name] for name in rule.leaves}
    result = result._replace(state=left, momentum=None).in_host_memory()
    updates = {}
    for row, order in enumerate(ranked):
        own = oracle.pick(result, row)
        memory, d_hat = None if memories is None else memories[row], order.d_hat
        if each_step:
            memory, d_hat = own.memory, own.d_hat
        elif memory is not None:
            d_hat = scaling.d_hat(memory)
            memory = memory if own.statistic is None else scaling.refresh(memory, own.statistic)
        updates[order.client] = ClientUpdate(
            order.client,
            len(experiment.shard(order.client)),
            len(parts[order.client]),
            float(own.loss),
            own.params,
            oracle.buffers() if isinstance(oracle, Looped) else order.buffers,
            own.statistic,
            d_hat,
            memory,
            own.state,
        )
    return [updates[order.client] for order in cohort]


NO_SCALING = Scaling("identity")


def _personalised(
    experiment: Experiment, oracle: Looped | Stacked, orders: Sequence[Order], parts: Sequence[list[Tensor]]
) -> dict[int, ClientUpdate]:
    """How each client does on its test examples after eval_personal_steps gradient steps from the model it received.

    They are plain steps without momentum, whatever the method: so models are compared and not optimisers.
    """
    config, task, dataset = experiment.config, experiment.task, experiment.dataset
    if isinstance(oracle, Looped):
        oracle.load(orders[0].params, orders[0].buffers)
        _seed_dropout(experiment, oracle, orders[0], "personal-dropout")
    x, step_size = oracle.gather([order.params for order in orders]), config.eval_personal_step_size
    result = scaled_local_steps(
        oracle, x, _stream(experiment, oracle, orders, parts), NO_SCALING, step_size=step_size
    ).in_host_memory()
    updates = {}
    for row, (order, part) in enumerate(zip(orders, parts, strict=True)):
        own, rows = oracle.pick(result, row), torch.from_numpy(experiment.test_partition[order.client])
        buffers = oracle.buffers() if isinstance(oracle, Looped) else order.buffers
        test = task.evaluate(own.params, buffers, dataset.test_x[rows], dataset.test_y[rows])
        updates[order.client] = ClientUpdate(order.client, len(rows), len(part), float(own.loss), test=test)
    return updates


def _seed_dropout(
    experiment: Experiment, oracle: Looped | Stacked, order: Order, purpose: str = "dropout"
) -> None:
    """Dropout draws from torch's global generator; a stack has none."""
    if isinstance(oracle, Looped) and experiment.task.is_random:
        torch.manual_seed(derive(experiment.config.seed, purpose, order.round, order.client))


def _batches(experiment: Experiment, order: Order) -> list[Tensor]:
    """The examples of each local step (one, for a probe), as indices into the training set."""
    parts = (
        experiment.personal_batches(order.client)
        if order.personal
        else experiment.batches(order.round, order.client)
    )
    if not parts:
        size, num_examples = experiment.config.client.batch_size, len(experiment.shard(order.client))
        raise ValueError(f"{num_examples} examples give no batch of {size}")
    return parts


def _stream(
    experiment: Experiment, oracle: Looped | Stacked, orders: Sequence[Order], parts: Sequence[list[Tensor]]
) -> Iterator[Batch]:
    """The cohort's mini-batches, step by step, each with those clients that still step."""
    return oracle.batches(
        parts, [_noise(experiment, order, own) for order, own in zip(orders, parts, strict=True)]
    )


def _noise(experiment: Experiment, order: Order, parts: Sequence[Tensor]) -> list[Tensor] | None:
    """The draws behind each batch's sampled labels, where the statistic is Gauss-Newton."""
    if experiment.config.scaling.statistic != "gauss_newton" or experiment.scaling.is_identity:
        return None
    stream = generator(experiment.config.seed, "labels", order.round, order.client)
    return [experiment.task.noise(experiment.dataset.y[part], stream) for part in parts]


def _measure(
    experiment: Experiment, oracle: Looped | Stacked, orders: Sequence[Order], round: int
) -> Measure:
    """The configured statistic; its Hutchinson probes come from a stream that all clients of the round share."""
    scaling, task = experiment.config.scaling, experiment.task

    def averaged(h: Tensor) -> Tensor:
        return curvature.average_kernels(h, task.layout) if scaling.spatial_average else h

    if scaling.statistic == "gradient":
        return Measure(of_gradient=lambda gradient: averaged(oracle.finish(gradient)))
    if scaling.statistic == "full_gradient":
        whole = oracle.batch([experiment.shard(order.client) for order in orders], [])
        return Measure(beside=lambda v, batch: oracle.gradient_at(v, whole))
    statistic = curvature.MEASURED[scaling.statistic]
    wants_probe = scaling.statistic == "hutchinson"
    probes = _probes(experiment.config.seed, round, task.layout.size, task.dtype) if wants_probe else None

    def beside(v: Tensor, batch: curvature.Batch) -> Tensor:
        z = None if probes is None else task.there(next(probes))
        return averaged(statistic(oracle, v, batch, z))

    return Measure(beside=beside)


def _probes(seed: int, round: int, size: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """The Hutchinson probes (size,) of a round, one after the other."""
    yield _first_probe(seed, round, size, dtype)
    stream = generator(seed, "probe", round)
    curvature.rademacher(stream, size, dtype)
    while True:
        yield curvature.rademacher(stream, size, dtype)


@lru_cache(maxsize=1)
def _first_probe(seed: int, round: int, size: int, dtype: torch.dtype) -> Tensor:
    """Most often the only one, and the same for all cohorts of a round."""
    return curvature.rademacher(generator(seed, "probe", round), size, dtype)


def _probe(experiment: Experiment, oracle: Looped | Stacked, orders: Sequence[Order]) -> list[Tensor]:
    """Each client's statistic at its x on one mini-batch of the stream of round 0."""
    probes = [order._replace(round=0) for order in orders]
    parts = [_batches(experiment, order)[:1] for order in probes]
    if isinstance(oracle, Looped):
        oracle.load(probes[0].params, probes[0].buffers)
    x = oracle.gather([order.params for order in probes])
    h = probe(
        oracle, x, next(_stream(experiment, oracle, probes, parts)), _measure(experiment, oracle, probes, 0)
    ).cpu()
    return [h] if h.dim() == 1 else list(h)


def _probed(experiment: Experiment, oracle: Looped | Stacked, orders: Sequence[Order]) -> State:
    """What the local rule sends before the first round, from the gradient on one mini-batch of round 0."""
    if experiment.local_rule.probe is None:
        return {}
    batch = next(_stream(experiment, oracle, orders, [_batches(experiment, order) for order in orders]))
    gradient = oracle.gradient_at(oracle.gather([order.params for order in orders]), batch)
    return {name: vectors.cpu() for name, vectors in experiment.local_rule.probe(gradient).items()}


def _own_memories(
    experiment: Experiment, oracle: Looped | Stacked, orders: Sequence[Order]
) -> list[Memory] | None:
    """Each client's own D in local scope. At its first participation a client measures it as round 0 would."""
    config, scaling = experiment.config.scaling, experiment.scaling
    if config.scope == "global" or scaling.is_identity:
        return None
    memories = {order.client: order.memory for order in orders if order.memory is not None}
    new = [order for order in orders if order.memory is None]
    for order in new:
        start = scaling.init(order.params, ones=config.start == "ones")
        assert start is not None
        memories[order.client] = start
    if new and config.start == "statistic" and not experiment.refreshes_each_step:
        for order, h in zip(new, _probe(experiment, oracle, new), strict=True):
            memories[order.client] = scaling.refresh(memories[order.client], h)
    return [memories[order.client] for order in orders]


def _rule_state(
    experiment: Experiment, oracle: Looped | Stacked, orders: Sequence[Order], rule: LocalRule
) -> State:
    """What the local rule begins with: vectors (d,) that all clients share, others gathered; zeros before any."""
    task, state = experiment.task, State()
    for name, size in rule.sizes.items():
        vectors = [order.state.get(name) for order in orders]
        if all(vector is vectors[0] for vector in vectors) and vectors[0] is not None:
            state[name] = task.there(vectors[0])
        else:
            nothing = torch.zeros(size(task.layout), dtype=task.dtype)
            state[name] = oracle.gather([nothing if vector is None else vector for vector in vectors])
    if rule.wants_full_gradient:
        state["full_gradient"] = _full_gradient(experiment, oracle, orders)
    return state


def _full_gradient(experiment: Experiment, oracle: Looped | Stacked, orders: Sequence[Order]) -> Tensor:
    """Each client's gradient at x over its whole shard, taken as one batch, (d,) or (clients, d)."""
    whole = oracle.batch([experiment.shard(order.client) for order in orders], [])
    return oracle.gradient_at(oracle.gather([order.params for order in orders]), whole)


def _gather(
    oracle: Looped | Stacked, orders: Sequence[Order], vectors: Sequence[Tensor | None]
) -> Tensor | None:
    """Vectors of the cohort; where some clients have none yet, ones stand for it; None where none has."""
    if all(vector is None for vector in vectors):
        return None
    filled = [
        torch.ones_like(order.params) if vector is None else vector
        for order, vector in zip(orders, vectors, strict=True)
    ]
    return oracle.gather(filled)
