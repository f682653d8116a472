"""A Flower Grid seen by client index, so that a run is the same whatever ids its nodes have.

Node ids of a real federation are random and change when a node comes back. Each node is asked once which client it
serves (its `partition-id`); from then on strategies see the ids of the in-process engine, and whatever is sampled,
ordered or seeded by them comes out as it does there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedscale_local import flower_adapter as adapter
from fedscale_local.errors import FedscaleError

WAIT_SECONDS = 120.0
"""How long the start of a run waits for the nodes of all clients, and a new node's answer is waited for."""

log = logging.getLogger(__name__)


def by_client(grid: Grid, num_clients: int, keeps_state: bool) -> Grid:
    """The grid itself if it has a node for each client index, else a ClientGrid over it, its clients awaited."""
    if hasattr(grid, "node_of_client"):
        return grid
    clients = ClientGrid(grid, num_clients, keeps_state)
    clients.wait()
    return clients


class ClientGrid(Grid):
    """`grid` with one node per client, `adapter.FIRST_NODE` + client index.

    A client whose node is not there replies with an error at once; when its node comes (back), it is found.
    """

    def __init__(self, grid: Grid, num_clients: int, keeps_state: bool = True) -> None:
        self.grid = grid
        self.keeps_state = keeps_state
        """Does a client keep anything that a checkpoint must have?"""
        self.node_of_client = range(adapter.FIRST_NODE, adapter.FIRST_NODE + num_clients)
        self.client_of: dict[int, int] = {}
        """Which client each node serves, in the order in which the nodes said so."""
        self.asked: set[int] = set()
        self.num_sent = 0

    def wait(self, seconds: float = WAIT_SECONDS) -> None:
        """Return when every client has a node, or after that time."""
        deadline = time.monotonic() + seconds
        while len(self._nodes()) < len(self.node_of_client) and time.monotonic() < deadline:
            time.sleep(0.5)
        missing = len(self.node_of_client) - len(self._nodes())
        if missing:
            log.warning("%d of %d clients have no node yet", missing, len(self.node_of_client))

    def get_node_ids(self) -> Iterable[int]:
        return list(self.node_of_client)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        nodes = self._nodes()
        replies, asked, sent = [], [], []
        for message in messages:
            self.num_sent += 1
            adapter.stamp(message, str(self.num_sent))
            client = message.metadata.dst_node_id - adapter.FIRST_NODE
            if client in nodes:
                asked.append(message)
                sent.append(adapter.forwarded(message, nodes[client]))
            else:
                replies.append(adapter.error_reply("its node is not there", message))
        received = self.grid.send_and_receive(sent, timeout=timeout) if sent else []
        # Flower gives the ids when it sends; an error's reply names node 1 as its sender, but the right message.
        original = {s.metadata.message_id: message for s, message in zip(sent, asked, strict=True)}
        for reply in received:
            if reply.metadata.reply_to_message_id in original:
                replies.append(adapter.answering(reply, original[reply.metadata.reply_to_message_id]))
        return replies

    def _nodes(self) -> dict[int, int]:
        """The node of each client that has one now; of two that claim a client the one that was there first."""
        here = set(self.grid.get_node_ids())
        if here - self.asked:
            self._ask(sorted(here - self.asked))
        nodes: dict[int, int] = {}
        for node, client in self.client_of.items():
            if node in here:
                nodes.setdefault(client, node)
        return nodes

    def _ask(self, nodes: list[int]) -> None:
        """Which client each new node serves."""
        self.asked.update(nodes)
        questions = [adapter.message_to(node, RecordDict(), MessageType.QUERY) for node in nodes]
        answers = {}
        for reply in self.grid.send_and_receive(questions, timeout=WAIT_SECONDS):
            if reply.has_error():
                log.warning("a node did not say which client it serves: %s", reply.error.reason)
            else:
                answers[reply.metadata.src_node_id] = adapter.partition_of(reply)
        for node, client in sorted(answers.items()):
            if client is None or not 0 <= client < len(self.node_of_client):
                log.warning("node %d serves client %s, which is none of this run", node, client)
                continue
            if client in self.client_of.values():
                log.warning("node %d claims client %d, which another node serves or served", node, client)
            self.client_of[node] = client

    def client_states(self) -> dict[int, RecordDict]:
        """What each client keeps from round to round, by node id, fetched for a checkpoint."""
        if not self.keeps_state:
            return {}
        questions = [adapter.message_to(node, RecordDict(), adapter.STATE) for node in self.node_of_client]
        replies = self.send_and_receive(questions, timeout=WAIT_SECONDS)
        return {r.metadata.src_node_id: r.content for r in replies if r.has_content() and len(r.content)}

    def restore_clients(self, states: Mapping[int, RecordDict]) -> None:
        """Give each client back what it kept; raises FedscaleError if one of them cannot be reached."""
        orders = [adapter.message_to(node, state, adapter.RESTORE) for node, state in states.items()]
        for reply in self.send_and_receive(orders, timeout=WAIT_SECONDS) if orders else []:
            if reply.has_error():
                client = reply.metadata.src_node_id - adapter.FIRST_NODE
                raise FedscaleError(f"client {client} did not take back its state: {reply.error.reason}")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError("strategies send and receive in one call")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError("strategies send and receive in one call")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self.grid.create_message(*args, **kwargs)

    def set_run(self, run: Any) -> None:
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        return self.grid.run
