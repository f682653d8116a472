"""A Flower Grid seen by client index, so that a run is the same whatever ids its nodes have.

Node ids of a real federation are random and change when a node comes back. Strategies see the ids of the in-process
engine instead, and whatever is sampled, ordered or seeded by them comes out as it does there.

A node whose key was registered under the name `client-N` serves client N and no other, and once it was seen nobody
without such a name serves N in its place. Any other node is asked which client it serves (its `partition-id`), and may
say what it likes. Each reply says it again; who says something else then is refused, which the records tell.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedscale_local import flower_adapter as adapter
from fedscale_local import wire
from fedscale_local.client_store import Kept
from fedscale_local.errors import FedscaleError
from fedscale_local.keys import client_of_name

WAIT_SECONDS = 120.0
"""How long the start of a run waits for the nodes of all clients; questions beside the rounds wait no longer."""

ASKED_AT_MOST = 3
"""How often a node that does not answer is asked which client it serves."""

QUIET_SECONDS, PAUSE_SECONDS = 60.0, 3.0
"""After which time without an answer a node is sent a question beside, and between two looks for answers."""

log = logging.getLogger(__name__)


def by_client(grid: Grid, num_clients: int, keeps_state: bool, round_timeout: float | None = None) -> Grid:
    """The grid itself if it has a node for each client index, else a ClientGrid over it, its clients awaited."""
    if hasattr(grid, "node_of_client"):
        return grid
    clients = ClientGrid(grid, num_clients, keeps_state, min(round_timeout or WAIT_SECONDS, WAIT_SECONDS))
    clients.wait()
    return clients


def take_refusals(grid: Grid) -> list[str]:
    """Which claims to be a client were refused since this was last asked, in words."""
    if not isinstance(grid, ClientGrid):
        return []
    refusals, grid.refusals = grid.refusals, []
    return refusals


class ClientGrid(Grid):
    """`grid` with one node per client, `adapter.FIRST_NODE` + client index.

    A client whose node is not there replies with an error at once; when its node comes (back), it is found.
    """

    def __init__(
        self, grid: Grid, num_clients: int, keeps_state: bool = True, patience: float = WAIT_SECONDS
    ) -> None:
        self.grid, self.patience = grid, patience
        self.keeps_state = keeps_state
        """Does a client keep anything that a checkpoint must have?"""
        self.node_of_client = range(adapter.FIRST_NODE, adapter.FIRST_NODE + num_clients)
        self.client_of: dict[int, int] = {}
        """Which client each node serves, in the order in which the nodes said so."""
        self.proven: set[int] = set()
        """Nodes whose names say so."""
        self.names: dict[int, str] = {}
        """What the keys of the nodes that are there were registered as, where it was under a name."""
        self.asked: Counter[int] = Counter()
        self.refusals: list[str] = []
        self.states: dict[int, RecordDict] = {}
        """What each client keeps, by node id, as far as it has told since it was last asked to do something."""
        self.at_work: set[int] = set()
        """Those that were asked since, by node id."""
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
                if message.metadata.message_type not in (adapter.STATE, adapter.RESTORE):
                    self.at_work.add(message.metadata.dst_node_id)
                asked.append(message)
                sent.append(adapter.forwarded(message, nodes[client]))
            else:
                replies.append(adapter.error_reply("its node is not there", message))
        received = self._exchange(sent, timeout) if sent else []
        # Flower gives the ids when it sends; an error's reply names node 1 as its sender, but the right message.
        original = {s.metadata.message_id: message for s, message in zip(sent, asked, strict=True)}
        for reply in received:
            if reply.metadata.reply_to_message_id in original:
                message = original[reply.metadata.reply_to_message_id]
                client = message.metadata.dst_node_id - adapter.FIRST_NODE
                replies.append(self._checked(reply, message, nodes[client], client))
        return replies

    def _checked(self, reply: Message, message: Message, node: int, client: int) -> Message:
        """The reply as that of the client whom the message was for, or an error if it is another's."""
        said = adapter.take_client(reply)
        if said is None or said == client:
            return adapter.answering(reply, message)
        if self.client_of.pop(node, None) is not None:  # not refused in this round already
            reason = "its name is that of another" if node in self.proven else "it said another"
            self._refuse(node, said, f"refused, {reason}")
        self.proven.discard(node)
        return adapter.error_reply(f"its node serves client {said}", message)

    def _exchange(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        """The replies that come in time; who is silent is sent a question beside, whose answer nobody waits for.

        A node that was about to receive a message when its run was stopped may, with Flower 1.41, answer it after all:
        to nobody, and in the place of the next answer, which then waits in the node until another message comes, and so
        does every one after it. The question is that other message. To a node that is at work it does no harm.
        """
        heard = time.monotonic()
        deadline = math.inf if timeout is None else heard + timeout
        new = list(self.grid.send_and_receive(messages, timeout=min(QUIET_SECONDS, timeout or math.inf)))
        waiting = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        received, beside = list(new), dict[str, int]()
        while True:
            for reply in new:
                for open_ones in (waiting, beside):
                    open_ones.pop(reply.metadata.reply_to_message_id, None)
            now = time.monotonic()
            if not waiting or now >= deadline:
                return received
            if now - heard >= QUIET_SECONDS:
                silent = sorted(set(waiting.values()) - set(beside.values()))
                questions = [adapter.message_to(node, RecordDict(), MessageType.QUERY) for node in silent]
                sent = zip(self.grid.push_messages(questions), silent, strict=False)
                beside |= {question: node for question, node in sent if question is not None}
                heard = now
            time.sleep(min(PAUSE_SECONDS, max(0.0, deadline - now)))
            new = list(self.grid.pull_messages({*waiting, *beside}))
            got = [reply for reply in new if reply.metadata.reply_to_message_id in waiting]
            received += got
            heard = time.monotonic() if got else heard

    def _nodes(self) -> dict[int, int]:
        """The node of each client that has one now: a proven one, else of several the one that was there first."""
        self.names = names = {node.node_id: node.name for node in self.grid.get_nodes()}
        new = [node for node in names if node not in self.client_of and self.asked[node] < ASKED_AT_MOST]
        named = {node: client_of_name(names[node]) for node in new}
        self._believe({node: client for node, client in named.items() if client is not None})
        if unnamed := sorted(node for node in new if named[node] is None):
            self._ask(unnamed)
        sure = {self.client_of[node] for node in self.proven}
        nodes: dict[int, int] = {}
        for node, client in sorted(self.client_of.items(), key=lambda item: item[0] not in self.proven):
            if node in names and (node in self.proven or client not in sure):
                nodes.setdefault(client, node)
        return nodes

    def _ask(self, new: Sequence[int]) -> None:
        """Which client each new one of these nodes serves; who answered and was refused is not asked again."""
        self.asked.update(new)
        questions = [adapter.message_to(node, RecordDict(), MessageType.QUERY) for node in new]
        answers = {}
        for reply in self._exchange(questions, self.patience):
            if reply.has_error():
                log.warning("a node did not say which client it serves: %s", reply.error.reason)
            else:
                answers[reply.metadata.src_node_id] = adapter.take_client(reply)
        self._believe(answers)

    def _believe(self, claims: Mapping[int, int | None]) -> None:
        """These nodes serve these clients, as far as the run has them."""
        for node, client in sorted(claims.items()):
            self.asked[node] = ASKED_AT_MOST
            if client is None or not 0 <= client < len(self.node_of_client):
                self._refuse(node, client, "this run has no such client")
                continue
            if client in {self.client_of.get(other) for other in self.names}:
                self._refuse(
                    node, client, "so does another; the one whose name says so counts, else the first"
                )
            self.client_of[node] = client
            if client_of_name(self.names[node]) is not None:
                self.proven.add(node)

    def _refuse(self, node: int, client: int | None, fault: str) -> None:
        called = f"the node registered as {self.names[node]}" if self.names[node] else "a node without a name"
        self.refusals.append(f"{called} says that it serves client {client}: {fault}")
        log.warning("%s", self.refusals[-1])

    def client_states(self) -> dict[int, RecordDict]:
        """What each client keeps from round to round, by node id; asked are those that had something to do since."""
        if not self.keeps_state:
            return {}
        changed = [node for node in self.node_of_client if node in self.at_work]
        for node in changed:
            self.states.pop(node, None)
        questions = [adapter.message_to(node, RecordDict(), adapter.STATE) for node in changed]
        for reply in self.send_and_receive(questions, timeout=self.patience) if questions else []:
            if reply.has_content():
                self.states[reply.metadata.src_node_id] = reply.content
                self.at_work.discard(reply.metadata.src_node_id)
        return {node: self.states[node] for node in sorted(self.states) if len(self.states[node])}

    def settle_clients(self, round: int, is_due: bool) -> Kept | None:
        """What each client keeps now that this round is done; None: that would be asked for, and none is due."""
        if self.keeps_state and not is_due:
            return None
        return Kept({node: wire.dump_records(state) for node, state in self.client_states().items()}, {})

    def restore_clients(self, states: Mapping[int, RecordDict]) -> None:
        """Give each client back what it kept; raises FedscaleError if one of them cannot be reached."""
        orders = [adapter.message_to(node, state, adapter.RESTORE) for node, state in states.items()]
        for reply in self.send_and_receive(orders, timeout=self.patience) if orders else []:
            if reply.has_error():
                client = reply.metadata.src_node_id - adapter.FIRST_NODE
                raise FedscaleError(f"client {client} did not take back its state: {reply.error.reason}")
        self.states |= states

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
