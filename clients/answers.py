"""From a ClientUpdate to a reply: what a client tells of its work, and what it keeps for later rounds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from torch import Tensor

from clients import secure
from clients.orders import kept_by
from clients.training import ClientUpdate, Order
from fedscale_local import flower_adapter as adapter
from fedscale_local import privacy, sending, wire
from fedscale_local.errors import ClientError
from fedscale_local.experiment import Experiment


def answered(
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
            packed, residuals = leg.pack(packed, order.params, kept_by(context))
        except ValueError as error:
            return adapter.error_reply(
                str(ClientError("pack", order.client, order.round, str(error))), message
            )
        for key, residual in residuals.items():
            context.state[sending.residual_key(key)] = wire.vector_record(residual)
    _keep(experiment, context, order, update)
    metrics = _metrics(experiment, order, update)
    return adapter.reply(wire.content(packed, metrics=metrics), message)


def _vectors(experiment: Experiment, order: Order, update: ClientUpdate) -> dict[str, Tensor]:
    """The vectors that were asked for, with local privacy clipped and noised."""
    config, asked = experiment.config, dict[str, Tensor]()
    if update.params is not None:
        asked[wire.ARRAYS] = update.params
    if update.statistic is not None and config.scaling.scope == "global":
        asked[wire.STATISTIC] = update.statistic
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
