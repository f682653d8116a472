"""The strategy that every method of this project is: who takes part, what is sent, and updates in client order.

A method is three parts, named together in conf/strategy/: what clients do (local_rule.py), how their models become one
(server_step.py, robust/), and how the server moves (server_rules/). With nothing of its own in any of them it is
FedAvg, which with local steps is Local SGD (McMahan et al. 2017, Algorithm 1): x <- sum_m w_m v_m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedscale_local import diagnostics, privacy, robust, sampling, sending, server_rules, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local.config_strategies import Strategy as Method
from fedscale_local.experiment import Experiment
from fedscale_local.local_rule import MOMENTUM, Upkeep
from fedscale_local.randomness import generator
from fedscale_local.server_step import client_weights, mix, weighted_sum
from strategies.secure import SecureSum

UNKNOWN = -1
"""No version of a shared vector."""
Instructions = dict[str, bool | int | float | str]
"""What a client is told beside vectors, as a ConfigRecord takes it."""


class Reply(NamedTuple):
    """One client's reply, unpacked."""

    client: int
    params: Tensor
    buffers: Tensor
    extra: dict[str, Tensor]
    """Further vectors (d,) by record key."""
    metrics: MetricRecord


class FederatedStrategy(Strategy):
    """Samples clients by index from (seed, "sampling", round) and makes one model of their replies, in client order.

    A method that sends or computes more extends `expects`, `downlink` and `update`.
    """

    first_round: int
    """0 for a method that wants a probe before the first round."""

    survives: tuple[str, ...] = ("server_state", "shared", "versions", "has", "charged")
    """Attributes that a checkpoint keeps."""

    def __init__(self, experiment: Experiment, method: Method) -> None:
        self.experiment, self.method = experiment, method
        self.task, self.rule = experiment.task, experiment.local_rule
        self.nodes: Mapping[int, int] = {}
        self.first_round = 0 if experiment.has_probe else 1
        self.server = server_rules.make(method)
        self.server_state = self.server.start(self.task.initial_params)
        self.combine = make_combine(experiment, method)
        self.shared = {
            name: torch.zeros(shared.size(self.task.layout), dtype=self.task.dtype)
            for name, shared in self.rule.shared.items()
        }
        self.versions = dict.fromkeys(self.shared, 0)
        """How often each shared vector was renewed."""
        self.has: dict[str, dict[int, int]] = {name: {} for name in self.shared}
        """Which version of it each client has, as far as it is known; 0, which is zeros, needs no sending."""
        self.prepares = self.rule.wants_mean_gradient
        """Does each round begin with an exchange of gradients at x?"""
        self.preparing = False
        self.prepared: dict[int, list[int]] = {}
        """The round that has had its first exchange, and who took part in it."""
        self.mechanism = experiment.mechanism
        self.charged: privacy.Charged = {}
        """What privacy was lost so far."""
        self.answered: list[int] = []
        """Whose replies the round's update is made of."""
        section = experiment.secure
        self.secure = None if section is None else SecureSum(experiment, section, self.asked, self.expects)

    def expects(self, round: int) -> dict[str, int]:
        """The vectors that each reply holds, by record key, and their sizes (0: the model, by its tensors' names);
        replies that do not hold them are dropped before `update`."""
        if self.preparing:
            return {wire.GRADIENT: self.task.layout.size}
        vectors = {wire.ARRAYS: 0} if round > 0 else {}
        return vectors | {name: self._size(name) for name in self._due(round)}

    def downlink(self, round: int, client: int) -> tuple[dict[str, Tensor], Instructions]:
        """Vectors for this client beside the model, and the round's instructions."""
        if round == 0:
            return {}, {}
        vectors = {name: vector for name, vector in self.shared.items() if self._wants(name, client)}
        due = self._due(round)
        return vectors, {} if due == list(self.rule.sends) else {"due": " ".join(due)}

    def update(
        self, round: int, replies: list[Reply], weights: list[float]
    ) -> tuple[Tensor, dict[str, float]]:
        """The new parameters (d,) and diagnostics; `self.params` still holds the old ones."""
        if round == 0:
            for name in self._due(round):
                self.shared[name] = weighted_sum((reply.extra[name] for reply in replies), weights)
            return self.params, {}
        share = self._share(self.answered)
        combined = self.combine(self.params, replies, weights)
        after = self.server.move(self.params, combined, self.server_state, share)
        steps = [float(reply.metrics["local-steps"]) for reply in replies]  # type: ignore[arg-type]
        num_steps = sum(w * n for w, n in zip(weights, steps, strict=True))
        for name, shared in self.rule.shared.items():
            self.has[name] |= dict.fromkeys(self.answered, self.versions[name])
            if (round - 1) % shared.every == 0:
                sent = [reply.extra[name] for reply in replies if name in reply.extra]
                gradient = self.shared.get(wire.GRADIENT)
                known = Upkeep(
                    self.shared[name], sent, weights, self.params, after, num_steps, share, gradient
                )
                self.shared[name] = shared.renew(known)
                self.versions[name] += 1
        return after, {}

    def _share(self, clients: list[int]) -> float:
        """How much of all clients' weight these have: S/N, or their part of all examples. How many answered is no
        secret of theirs alone, so with central privacy S is the number expected."""
        sizes = self.experiment.partition.sizes
        if self.is_central:
            return self.experiment.clients_per_round / len(sizes)
        if self.method.weighting == "uniform":
            return len(clients) / len(sizes)
        return float(sizes[clients].sum() / sizes.sum())

    def _size(self, name: str) -> int:
        return (
            self.rule.shared[name].size(self.task.layout)
            if name in self.rule.shared
            else self.task.layout.size
        )

    def _due(self, round: int) -> list[str]:
        """What the local rule sends in this round; in round 0 what it finds out without a step."""
        shared = self.rule.shared
        if round == 0:
            return [n for n in self.rule.sends if self.rule.probe is not None and n != MOMENTUM]
        return [n for n in self.rule.sends if n not in shared or (round - 1) % shared[n].every == 0]

    def _wants(self, name: str, client: int) -> bool:
        """Is this shared vector to be sent? One that clients go on with themselves is sent once a version."""
        if name not in self.rule.keeps:
            return name != MOMENTUM or self.versions[name] > 0  # before the first round's it is zero
        # Until it answers, nobody knows what the client has.
        had, self.has[name][client] = self.has[name].get(client, 0), UNKNOWN
        return had != self.versions[name]

    def sample(self, round: int) -> list[int]:
        """The round's clients, ascending; equal for all strategies of one seed."""
        experiment, config = self.experiment, self.experiment.config
        secure = self.mechanism is not None and self.mechanism.secure
        stream = None if secure else generator(config.seed, "sampling", round)
        return sampling.choose(experiment.eligible, experiment.clients_per_round, config.sampling, stream)

    def asked(self, round: int) -> list[int]:
        """Whom the next exchange of vectors asks: those who prepared the round, or whom it begins with."""
        return self.prepared[round] if round in self.prepared else self.sample(round)

    def _begin(self, round: int, arrays: ArrayRecord, grid: Grid) -> None:
        """The round's model, as it is and as it travels, and which node serves which client."""
        self.nodes = self.nodes or adapter.roster(grid, len(self.experiment.partition))
        self.params, self.buffers = wire.from_model_record(arrays, self.task)
        # A round that begins with an exchange of gradients is one release of the vectors of both.
        self.num_vectors = len(self.expects(round).keys() - self.rule.counts)
        self.num_vectors += self.prepares if round > 0 else 0
        leg, model = sending.Leg(self.experiment, "down", round), {wire.ARRAYS: arrays}
        packed = leg.pack(model)[0]
        self.model, self.sent = packed[wire.ARRAYS], self.params
        if leg.codec(wire.ARRAYS) is not None:
            read = leg.unpack(packed)[wire.ARRAYS]
            self.sent = wire.from_record(read, self.task.layout, self.task.dtype)

    def configure_prepare(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send x and ask for full-batch gradients at it; those who answer keep x for the round's other exchange."""
        self._begin(server_round, arrays, grid)
        self.preparing = True
        instructions = ConfigRecord({wire.ROUND: server_round, "prepare": True})
        asked = wire.content({wire.ARRAYS: self.model}, instructions)
        clients = self.asked(server_round)
        self._charge_local(clients)
        return [adapter.message_to(self.nodes[client], asked) for client in clients]

    def aggregate_prepare(self, server_round: int, replies: Iterable[Message]) -> None:
        """Take the mean of the gradients; without any, nobody is asked to step."""
        unpacked, weights = self._taken(server_round, replies)
        self.prepared, self.preparing = {server_round: self.answered}, False
        if unpacked:
            gradients = (reply.extra[wire.GRADIENT] for reply in unpacked)
            self.shared[wire.GRADIENT] = weighted_sum(gradients, weights)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._begin(server_round, arrays, grid)
        leg, packed = sending.Leg(self.experiment, "down", server_round), dict[str, ArrayRecord]()
        contents: dict[tuple[object, ...], RecordDict] = {}
        messages, clients = [], self.asked(server_round)
        self._charge_local(clients)
        for client in clients:
            vectors, instructions = self.downlink(server_round, client)
            key = (*vectors, *instructions.items())
            if key not in contents:  # clients that are told the same share one content
                told = ConfigRecord({**instructions, wire.ROUND: server_round})
                new = {name: wire.vector_record(v) for name, v in vectors.items() if name not in packed}
                packed |= leg.pack(new)[0]  # a vector is the same for all who are sent it
                model = {} if server_round in self.prepared else {wire.ARRAYS: self.model}
                contents[key] = wire.content(model | {name: packed[name] for name in vectors}, told)
            messages.append(adapter.message_to(self.nodes[client], contents[key]))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        unpacked, weights = self._taken(server_round, replies)
        spent = self._spent()
        if not unpacked:  # only with local privacy: the round has no model, and was paid for
            return None, MetricRecord(spent)  # type: ignore[arg-type]
        is_asked = self.experiment.config.diagnostics == "drift" and server_round > 0
        d_hat = self.divisor(unpacked, weights) if is_asked else None
        params, reported = self.update(server_round, unpacked, weights)
        if is_asked:
            reported |= self._drift(unpacked, weights, params, d_hat)
        buffers = self.buffers
        if self.task.buffer_layout.names:
            buffers = weighted_sum((reply.buffers for reply in unpacked), weights)
        record = wire.model_record(self.task, params, buffers)
        if self.mechanism is not None:
            return record, MetricRecord(reported | spent)  # type: ignore[arg-type]
        if self.secure is not None:
            reported["secure-clipped"] = float(unpacked[0].metrics["secure-clipped"])  # type: ignore[arg-type]
        losses = [float(reply.metrics["train-loss"]) for reply in unpacked]  # type: ignore[arg-type]
        train_loss = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        return record, MetricRecord({"train-loss": train_loss, **reported})

    def _taken(self, round: int, replies: Iterable[Message]) -> tuple[list[Reply], list[float]]:
        """What the round's update is made of, and the weights: the replies, or with central privacy and with secure
        aggregation one in the place of all of them. What is computed of that afterwards costs no more."""
        expected = self.expects(round)
        unpacked = (
            [self._unpack(round, message, expected) for message in replies] if self.secure is None else []
        )
        self.answered = [reply.client for reply in unpacked] if self.secure is None else self.secure.clients
        if self.is_central or (self.secure is not None and self.answered):
            return [self._together(round, unpacked)], [1.0]
        return unpacked, self._weights(unpacked) if unpacked else []

    @property
    def is_central(self) -> bool:
        """Does the server see to it that no client can be found out?"""
        return self.mechanism is not None and self.mechanism.kind == "central"

    def _together(self, round: int, replies: list[Reply]) -> Reply:
        """The mean of the replies, which with central privacy is one release, whichever vectors it has (privacy.py)."""
        config, expects = self.experiment.config, self.expects(round)
        steps, mixes = config.client.local_steps or 0, self.method.mixing == "preconditioned"
        means: dict[str, Tensor] = {}
        for key, size in expects.items():
            if key in self.rule.counts:  # every client has taken as many
                every = self.rule.shared[key].every if self.versions[key] else 1
                means[key] = self.shared[key] + every * steps
                continue
            means[key] = self._mean(round, key, size, [self._sent(reply, key, mixes) for reply in replies])
            if key in privacy.NOT_NEGATIVE:
                means[key].clamp_(min=0.0)
        moved = means.pop(wire.ARRAYS, torch.zeros_like(self.params))
        if mixes and wire.PRECONDITIONER in means:
            moved = moved / means[wire.PRECONDITIONER].clamp_(min=config.scaling.alpha)
        if self.mechanism is not None and self.is_central and not self.preparing:
            privacy.charge(self.charged, [privacy.EVERYBODY], self.mechanism.release)
        told = {"local-steps": steps} if self.secure is None or self.is_central else self.secure.metrics
        metrics = MetricRecord(told)  # type: ignore[arg-type]
        return Reply(privacy.EVERYBODY, self.params + moved, self.buffers, means, metrics)

    def _mean(self, round: int, key: str, size: int, sent: list[Tensor]) -> Tensor:
        """Of one of the vectors: with central privacy clipped, here or by the clients that only tell their sum, and
        noised."""
        if self.secure is not None:
            sent = [self.secure.sums[key]] if self.secure.clients else []
        if not self.is_central:
            assert self.secure is not None
            return sent[0] / self.secure.beside["weight"]
        assert self.mechanism is not None
        bound = self.mechanism.bounds[sending.bound_of(key)]
        return privacy.private_mean(
            sent,
            torch.zeros(size or self.task.layout.size, dtype=self.task.dtype),
            bound if self.secure is None else None,
            self.experiment.clients_per_round,
            privacy.scale(self.mechanism.multiplier, self.num_vectors, bound),
            self.mechanism.stream(self.experiment.config.seed, f"privacy-{key}", round),
        )

    def _sent(self, reply: Reply, key: str, mixes: bool) -> Tensor:
        """What is clipped of a reply: of its model the displacement, for preconditioned mixing times D-hat."""
        if key != wire.ARRAYS:
            return reply.extra[key]
        moved = reply.params - self.params
        return moved * reply.extra[wire.PRECONDITIONER] if mixes else moved

    def _charge_local(self, clients: Sequence[int]) -> None:
        """Each of these is about to send a message of its own."""
        if self.mechanism is not None and self.mechanism.kind == "local":
            privacy.charge(self.charged, clients, self.mechanism.release)

    def _spent(self) -> dict[str, float]:
        """What the round's record says of privacy."""
        if self.mechanism is None:
            return {}
        return {"epsilon": privacy.spent(self.charged, self.mechanism.accountant, self.mechanism.delta)}

    def divisor(self, replies: list[Reply], weights: list[float]) -> Tensor | None:
        """What the round's steps were divided by, (d,): ones where by nothing, None where the server cannot know."""
        if self.rule.step is None:
            return torch.ones_like(self.params)
        if self.rule.is_frozen and self.rule.divisor is not None:
            return self.rule.divisor(self.shared)
        own = self._own_divisors(replies)
        return weighted_sum(own, weights) if own else None

    def _own_divisors(self, replies: list[Reply]) -> list[Tensor]:
        """The clients' preconditioners after the round, where what makes them travels."""
        told = self.rule.divisor or (lambda vectors: vectors.get(wire.PRECONDITIONER))
        return [own for reply in replies if (own := told(reply.extra)) is not None]

    def _drift(
        self, replies: list[Reply], weights: list[float], params: Tensor, d_hat: Tensor | None
    ) -> dict[str, float]:
        """What diagnostics=drift adds to the round's record; `self.params` still holds the model before it."""
        found = diagnostics.drift(self.params, [reply.params for reply in replies], weights)
        found |= diagnostics.update_norms(self.params, params, self.task.layout)
        if d_hat is not None:
            found |= diagnostics.steps(d_hat, self.experiment.config.client.step_size)
        if own := self._own_divisors(replies):
            found |= diagnostics.spread(own, weights)
        if (quadratic := self.experiment.quadratic) is not None:
            found["distance"] = quadratic.distance(params, self.task.initial_params)
            found |= {} if d_hat is None else {"hessian_condition": quadratic.condition(d_hat)}
        return found

    def _weights(self, replies: Sequence[Reply]) -> list[float]:
        counts = [int(reply.metrics[wire.NUM_EXAMPLES]) for reply in replies]  # type: ignore[arg-type]
        return client_weights(counts, self.method.weighting)

    def decoded(self, round: int, client: int, records: sending.Records) -> sending.Records:
        """A reply's records as plain vectors; ValueError for bytes that are none of their codec's."""
        if self.experiment.sends_plain:
            return records
        return sending.Leg(self.experiment, "up", round, client).unpack(records, self.params, self.sent)

    def _unpack(self, round: int, message: Message, expected: Mapping[str, int]) -> Reply:
        metrics: MetricRecord = message.content[wire.METRICS]  # type: ignore[assignment]
        client = int(metrics["client"])  # type: ignore[arg-type]
        records = self.decoded(round, client, wire.of_kind(message.content, ArrayRecord))
        params, buffers = (
            wire.from_model_record(records[wire.ARRAYS], self.task)
            if wire.ARRAYS in expected
            else (self.params, self.buffers)
        )
        extra = {
            key: wire.from_vector_record(records[key], size, self.task.dtype)
            for key, size in expected.items()
            if key != wire.ARRAYS
        }
        return Reply(client, params, buffers, extra, metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        """Nothing to log: the run directory says it."""


Combine = Callable[[Tensor, Sequence[Reply], list[float]], Tensor]
"""(x, replies, weights) -> what the clients' models become, (d,)"""


def make_combine(experiment: Experiment, method: Method) -> Combine:
    """How models become one, by this section of the configuration."""
    keys = method.combine.model_dump()
    rule = keys.pop("rule")
    if method.mixing == "preconditioned" and not experiment.scaling.is_identity:
        return lambda x, replies, weights: mix(
            [reply.params for reply in replies],
            [reply.extra[wire.PRECONDITIONER] for reply in replies],
            weights,
        )
    if rule == "mean":
        return lambda x, replies, weights: weighted_sum((reply.params for reply in replies), weights)
    if rule == "normalised":
        client, local = experiment.config.client, method.local
        pull = client.step_size * getattr(local, "mu", 0.0)
        return lambda x, replies, weights: robust.normalised_mean(
            x,
            _stack(replies),
            weights,
            [robust.local_work(int(r.metrics["local-steps"]), client.momentum, pull) for r in replies],  # type: ignore[arg-type]
        )
    if rule == "clipped_mean":
        return lambda x, replies, weights: robust.clipped_mean(x, _stack(replies), weights, **keys)
    if rule == "geometric_median":
        return lambda x, replies, weights: robust.geometric_median(_stack(replies), weights, **keys)
    return lambda x, replies, weights: robust.RULES[rule](_stack(replies), **keys)


def _stack(replies: Sequence[Reply]) -> Tensor:
    return torch.stack([reply.params for reply in replies])
