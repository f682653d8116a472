"""What every strategy of this project shares: who takes part, what is sent, and updates in client order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedscale_local import flower_adapter as adapter
from fedscale_local.config import Strategy as Method
from fedscale_local.experiment import Experiment
from fedscale_local.randomness import generator
from fedscale_local.server_step import client_weights, weighted_sum


@dataclass(frozen=True)
class Reply:
    """One client's reply, unpacked."""

    client: int
    params: Tensor
    buffers: Tensor
    extra: dict[str, Tensor]
    """Further vectors (d,) by record key."""
    metrics: MetricRecord


class FederatedStrategy(Strategy):
    """Samples clients by index from (seed, "sampling", round) and hands replies on as tensors, in client order.

    A method says what it sends (`downlink`) and what it makes of the replies (`update`).
    """

    first_round = 1
    """0 for a method that wants a probe before the first round."""

    survives: tuple[str, ...] = ("momentum",)
    """Attributes that a checkpoint keeps."""

    def __init__(self, experiment: Experiment, method: Method) -> None:
        self.experiment, self.method = experiment, method
        self.task = experiment.task
        self.nodes: dict[int, int] = {}
        self.momentum: Tensor | None = None
        """The clients' averaged momentum buffer, where client.momentum_buffer is "averaged"."""

    def expects(self, round: int) -> tuple[str, ...]:
        """The vectors that each reply holds, by record key; replies that do not are dropped before `update`."""
        client = self.experiment.config.client
        averages = client.momentum > 0 and client.momentum_buffer == "averaged"
        return (adapter.ARRAYS, adapter.MOMENTUM) if averages else (adapter.ARRAYS,)

    @abstractmethod
    def downlink(self, round: int, client: int) -> tuple[dict[str, Tensor], ConfigRecord]:
        """Vectors for this client beside the model, and the round's instructions."""

    @abstractmethod
    def update(
        self, round: int, replies: list[Reply], weights: list[float]
    ) -> tuple[Tensor, dict[str, float]]:
        """The new parameters (d,) and diagnostics; `self.params` still holds the old ones."""

    def sample(self, round: int) -> list[int]:
        """The round's clients, ascending; equal for all strategies of one seed."""
        eligible, count = self.experiment.eligible, self.experiment.clients_per_round
        if count == len(eligible):
            return [int(client) for client in eligible]
        stream = generator(self.experiment.config.seed, "sampling", round)
        chosen = torch.randperm(len(eligible), generator=stream)[:count].numpy()
        return sorted(int(client) for client in eligible[chosen])

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.nodes = self.nodes or adapter.roster(grid, len(self.experiment.partition))
        self.params, self.buffers = (
            adapter.from_record(arrays, layout, self.task.dtype)
            for layout in (self.task.layout, self.task.buffer_layout)
        )
        contents: dict[tuple[object, ...], RecordDict] = {}
        messages = []
        for client in self.sample(server_round):
            vectors, instructions = self.downlink(server_round, client)
            if self.momentum is not None:
                vectors[adapter.MOMENTUM] = self.momentum
            key = (*vectors, *instructions.items())
            if key not in contents:  # clients that are told the same share one content
                instructions[adapter.ROUND] = server_round
                records = {name: adapter.vector_record(vector) for name, vector in vectors.items()}
                contents[key] = adapter.content({adapter.ARRAYS: arrays, **records}, instructions)
            messages.append(adapter.message_to(self.nodes[client], contents[key]))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        unpacked = [self._unpack(server_round, message) for message in replies]
        counts = [int(reply.metrics[adapter.NUM_EXAMPLES]) for reply in unpacked]  # type: ignore[arg-type]
        weights = client_weights(counts, self.method.weighting)
        params, diagnostics = self.update(server_round, unpacked, weights)
        if adapter.MOMENTUM in self.expects(server_round):
            self.momentum = weighted_sum((reply.extra[adapter.MOMENTUM] for reply in unpacked), weights)
        buffers = weighted_sum((reply.buffers for reply in unpacked), weights)
        losses = [float(reply.metrics["train-loss"]) for reply in unpacked]  # type: ignore[arg-type]
        train_loss = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        record = adapter.to_record([(self.task.layout, params), (self.task.buffer_layout, buffers)])
        return record, MetricRecord({"train-loss": train_loss, **diagnostics})

    def _unpack(self, round: int, message: Message) -> Reply:
        records, expected = message.content.array_records, self.expects(round)
        layouts = (self.task.layout, self.task.buffer_layout)
        params, buffers = (
            (adapter.from_record(records[adapter.ARRAYS], layout, self.task.dtype) for layout in layouts)
            if adapter.ARRAYS in expected
            else (self.params, self.buffers)
        )
        extra = {
            key: adapter.from_vector_record(records[key], self.task.layout.size, self.task.dtype)
            for key in expected
            if key != adapter.ARRAYS
        }
        metrics = message.content.metric_records[adapter.METRICS]
        return Reply(int(metrics["client"]), params, buffers, extra, metrics)  # type: ignore[arg-type]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        """Nothing to log: the run directory says it."""
