"""The engine in this process: a Flower Grid whose nodes are function calls.

A ClientApp that offers `cohort` gets all messages of a round at once and runs them looped or stacked; any other is
called one by one, as Flower calls it. What a strategy sees does not differ.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedscale_local import flower_adapter as adapter
from fedscale_local.config import CustomClient, to_json
from fedscale_local.config_engines import InProcess
from fedscale_local.dense import layers
from fedscale_local.engines.workers import Work, Workers
from fedscale_local.errors import ClientError
from fedscale_local.experiment import Experiment
from fedscale_local.flower_adapter import FIRST_NODE


class InProcessGrid(Grid):
    """Delivers messages by calling the ClientApp; contexts exist only for clients that were called."""

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        run_config: dict[str, Any],
        seed: int = 0,
        **cohort_options: Any,
    ) -> None:
        self.client_app, self.seed = client_app, seed
        self.run_config = run_config
        self.cohort_options = cohort_options
        self.node_of_client = range(FIRST_NODE, FIRST_NODE + num_clients)
        self.contexts: dict[int, Context] = {}
        self.num_sent = 0
        self.replies: dict[str, Message] = {}
        adapter.become_server()

    def context(self, node: int) -> Context:
        """The node's own context, kept for the whole run."""
        if node not in self.contexts:
            node_config = {"partition-id": node - FIRST_NODE, "num-partitions": len(self.node_of_client)}
            self.contexts[node] = adapter.new_context(node, node_config, self.run_config)
        return self.contexts[node]

    def client_states(self) -> dict[int, RecordDict]:
        """What each client keeps from round to round, by node id."""
        return {node: context.state for node, context in self.contexts.items() if context.state}

    def restore_clients(self, states: Mapping[int, RecordDict]) -> None:
        """Give each client back what it kept."""
        for node, state in states.items():
            self.context(node).state = state

    def get_node_ids(self) -> Iterable[int]:
        return list(self.node_of_client)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        stamped = []
        for message in messages:
            self.num_sent += 1
            stamped.append(adapter.stamp(message, str(self.num_sent)))
        if not stamped:
            return []
        contexts = [self.context(message.metadata.dst_node_id) for message in stamped]
        cohort = getattr(self.client_app, "cohort", None)
        if cohort is not None:
            replies: list[Message] = cohort(stamped, contexts, **self.cohort_options)
            return replies
        return [self._call(message, context) for message, context in zip(stamped, contexts, strict=True)]

    def _call(self, message: Message, context: Context) -> Message:
        """One client as Flower calls it; its state is kept only when it did not raise."""
        before = RecordDict({key: record.copy() for key, record in context.state.items()})
        try:
            with adapter.seeded_globals(self.seed, adapter.round_of(message), context.node_id):
                reply = self.client_app(adapter.private_copy(message), context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__}, expected a Message")
            return reply
        except Exception as error:
            context.state = before
            return adapter.error_reply(f"{type(error).__name__}: {error}", message)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        replies = list(self.send_and_receive(messages))
        self.replies |= {reply.metadata.reply_to_message_id: reply for reply in replies}
        return [reply.metadata.reply_to_message_id for reply in replies]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(message_id) for message_id in message_ids if message_id in self.replies]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        return adapter.empty_run()


def choose(experiment: Experiment) -> dict[str, Any]:
    """Mode and stack size: a rule on the model and not a measurement, so that equal configs give equal bits.

    Stacking pays for fully connected networks, whose gradient is taken by hand; elsewhere it is for the asking
    (docs/explanation-engines.md has the measurements). A stack is as large as a cache likes, and no larger.
    """
    task, config = experiment.task, experiment.config.engine
    assert isinstance(config, InProcess)
    mode, workers = config.mode, config.workers
    if mode == "auto":
        mode = "stacked" if layers(task) is not None else "looped"
    stack_size = max(2, min(64, STACK_NUMBERS // task.layout.size)) if mode == "stacked" else 1
    workers = _num_cores() if workers == "auto" else workers
    return {"name": "in_process", "mode": mode, "stack_size": stack_size, "workers": workers}


STACK_NUMBERS = 500_000
"""Parameters of all clients of a stack together."""


def _num_cores() -> int:
    """The cores this process may use; one where processes cannot safely be forked."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def run(experiment: Experiment, chosen: dict[str, Any], server_app: ServerApp, client_app: ClientApp) -> None:
    """All rounds, each process on one thread: more threads would change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    adapter.quiet_flower()
    config = experiment.config
    run_config: dict[str, Any] = {"config": to_json(config)}
    if isinstance(config.client, CustomClient):
        run_config = config.client.run_config | run_config
    runner = _Runner(chosen["workers"])
    options = {"stack_size": chosen["stack_size"], "run": runner}
    try:
        grid = InProcessGrid(client_app, len(experiment.partition), run_config, config.seed, **options)
        server_app(grid, adapter.new_context(1, {}, run_config))
    finally:
        runner.close()
        torch.set_num_threads(threads)


class _Runner:
    """Runs cohorts on workers that are forked when the first round asks for them; one worker is this process."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.workers: Workers | None = None

    def __call__(self, train: Work, experiment: Experiment, cohorts: Sequence[Sequence[Any]]) -> list[Any]:
        if self.num_workers == 1:
            return [train(experiment, cohort) for cohort in cohorts]
        if self.workers is None:
            _ = experiment.task.resident  # made here, it is one copy for all of them
            self.workers = Workers(self.num_workers, train, experiment)
        costs = [sum(_cost(experiment, order.client) for order in cohort) for cohort in cohorts]
        return self.workers.map(cohorts, costs, _lost)

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()


def _cost(experiment: Experiment, client: int) -> float:
    """Examples that the client will work through in a round."""
    config, size = experiment.config.client, int(experiment.partition.sizes[client])
    if config.local_epochs is not None:
        return size * config.local_epochs
    batch = size if config.batch_size == "full" else min(size, config.batch_size)
    return batch * (config.local_steps or 0)


def _lost(cohort: Sequence[Any], reason: str) -> list[ClientError]:
    return [ClientError("train", order.client, order.round, reason) for order in cohort]
