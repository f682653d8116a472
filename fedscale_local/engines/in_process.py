"""The engine in this process: a Flower Grid whose nodes are function calls.

A ClientApp that offers `cohort` gets all messages of a round at once and runs them looped or stacked; any other is
called one by one, as Flower calls it. What a strategy sees does not differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedscale_local import flower_adapter as adapter
from fedscale_local.config import to_json
from fedscale_local.experiment import Experiment

FIRST_NODE = 2
"""Node ids follow the client indices from here; Flower keeps 1 for the server."""


class InProcessGrid(Grid):
    """Delivers messages by calling the ClientApp; contexts exist only for clients that were called."""

    def __init__(
        self, client_app: ClientApp, num_clients: int, run_config: dict[str, Any], **cohort_options: Any
    ) -> None:
        self.client_app = client_app
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
    """Mode and stack size. A rule on the model and not a measurement, so that equal configs give equal bits.

    Stacking pays where dispatch dominates arithmetic, that is for small models; see docs/explanation-engines.md.
    """
    task, mode = experiment.task, experiment.config.engine.mode
    size = task.layout.size
    if mode == "auto":
        mode = "stacked" if task.is_stackable and size <= SMALL_MODEL else "looped"
    stack_size = max(2, min(64, 2_000_000 // size)) if mode == "stacked" else 1
    return {"name": "in_process", "mode": mode, "stack_size": stack_size, "workers": 1}


SMALL_MODEL = 20_000
"""Parameters up to which a stack was faster than a loop on two cores (docs/explanation-engines.md)."""


def run(
    experiment: Experiment, chosen: dict[str, Any], server_app: ServerApp, client_app: ClientApp
) -> None:
    """All rounds, in this process, on one thread: more threads would change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    adapter.quiet_flower()
    run_config = {"config": to_json(experiment.config)}
    grid = InProcessGrid(
        client_app, len(experiment.partition), run_config, stack_size=chosen["stack_size"]
    )
    try:
        server_app(grid, adapter.new_context(1, {}, run_config))
    finally:
        torch.set_num_threads(threads)
