"""Nodes say which client they serve; who is believed, who is refused, and who is asked again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedscale_local import client_grid, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local.client_grid import ClientGrid, take_refusals
from fedscale_local.client_store import OnDisk
from fedscale_local.keys import client_of_name, name_of_client

FIRST = adapter.FIRST_NODE


class Nodes(Grid):
    """A SuperLink's nodes: id -> (name, the client that it says it serves)."""

    def __init__(self, **nodes: tuple[str, Any]) -> None:
        adapter.become_server()
        self.nodes = {int(key.removeprefix("n")): value for key, value in nodes.items()}
        self.silent: set[int] = set()
        self.asked: list[int] = []
        self.kinds: list[tuple[int, str]] = []
        self.waiting: list[Message] = []
        self.sent = 0

    def get_nodes(self) -> Any:
        return [SimpleNamespace(node_id=node, name=name) for node, (name, _) in self.nodes.items()]

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            self.sent += 1
            node = message.metadata.dst_node_id
            adapter.stamp(message, f"sent {self.sent}")
            if message.metadata.message_type == "query":
                self.asked.append(node)
            self.kinds.append((node, message.metadata.message_type))
            if node not in self.silent:
                said = MetricRecord({wire.PARTITION: self.nodes[node][1]})
                told = MetricRecord({"node": node, "number": self.sent})
                reply = Message(RecordDict({wire.METRICS: told, wire.PARTITION: said}), reply_to=message)
                reply.metadata.__dict__["_src_node_id"] = node
                replies.append(reply)
        return replies

    def create_message(self, *args: Any, **kwargs: Any) -> Any: ...
    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.waiting += self.send_and_receive(messages)
        return [f"sent {self.sent}"]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        told, self.waiting = self.waiting, []
        assert {reply.metadata.reply_to_message_id for reply in told} <= set(message_ids)
        return told

    def set_run(self, run: Any) -> None: ...
    @property
    def run(self) -> Any: ...


class Late(Nodes):
    """Of these nodes the silent ones are one message behind: each message brings the answer to the one before."""

    def __init__(self, **nodes: tuple[str, Any]) -> None:
        super().__init__(**nodes)
        self.behind: dict[int, Message] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        late, self.silent = self.silent, set()
        replies = []
        for reply in super().send_and_receive(messages):
            node = reply.metadata.src_node_id
            if node in late:
                before = self.behind.pop(node, None)
                self.behind[node] = reply
                replies += [] if before is None else [before]
            else:
                replies.append(reply)
        self.silent = late
        return replies


def answering(clients: ClientGrid, num_clients: int = 2) -> list[int | None]:
    """The node that answers for each client; None where none does."""
    messages = [adapter.message_to(FIRST + client, RecordDict()) for client in range(num_clients)]
    replies = {r.metadata.src_node_id - FIRST: r for r in clients.send_and_receive(messages)}
    return [
        None if replies[m].has_error() else replies[m].content["metrics"]["node"]  # type: ignore[index,misc]
        for m in range(num_clients)
    ]


def test_a_node_whose_name_says_whom_it_serves_is_not_asked() -> None:
    nodes = Nodes(n11=("client-1", 1), n12=("client-0", 0), n13=("", 2))
    assert answering(ClientGrid(nodes, 3), 3) == [12, 11, 13]
    assert nodes.asked == [13]


def test_a_node_whose_name_is_that_of_another_client_is_refused_and_told_once() -> None:
    nodes = Nodes(n11=("client-0", 0), n12=("client-1", 0))
    clients = ClientGrid(nodes, 2)
    assert answering(clients) == [11, None]
    del nodes.nodes[11]
    assert answering(clients) == [None, None]
    assert take_refusals(clients) == [
        "the node registered as client-1 says that it serves client 0: refused, its name is that of another"
    ]
    assert take_refusals(clients) == []
    assert nodes.sent == 2, "who was refused is sent nothing more"


def test_a_node_that_says_now_this_and_now_that_is_refused() -> None:
    nodes = Nodes(n11=("", 0), n12=("laptop", 1))
    clients = ClientGrid(nodes, 2)
    assert answering(clients) == [11, 12]
    nodes.nodes[12] = ("laptop", 0)
    assert answering(clients) == answering(clients) == [11, None]
    assert take_refusals(clients) == [
        "the node registered as laptop says that it serves client 0: refused, it said another"
    ]


def test_nothing_of_who_serves_whom_is_left_in_a_reply() -> None:
    clients = ClientGrid(Nodes(n11=("client-0", 0)), 1)
    (reply,) = clients.send_and_receive([adapter.message_to(FIRST, RecordDict())])
    assert list(reply.content) == [wire.METRICS]


def test_only_clients_that_did_something_are_asked_what_they_keep(tmp_path: Path) -> None:
    nodes = Nodes(n11=("client-0", 0), n12=("client-1", 1), n13=("client-2", 2))
    clients = ClientGrid(nodes, 3)

    def fetched(*at_work: int) -> tuple[list[int], dict[int, Any]]:
        """Whom the grid asks after these clients have worked, and when each client told what it keeps, by client."""
        for client in at_work:
            assert list(clients.send_and_receive([adapter.message_to(FIRST + client, RecordDict())]))
        nodes.kinds.clear()
        states = clients.client_states()
        asked = [node - 11 for node, kind in nodes.kinds if kind == adapter.STATE]
        assert len(asked) == len(nodes.kinds)
        return asked, {node - FIRST: state[wire.METRICS]["number"] for node, state in states.items()}

    assert fetched() == ([], {})
    assert fetched(1) == ([1], {1: 2})
    assert fetched(0, 1) == ([0, 1], {0: 5, 1: 6})
    assert fetched() == ([], {0: 5, 1: 6})
    kept = OnDisk(tmp_path)
    kept[FIRST + 2] = RecordDict({wire.METRICS: MetricRecord({"number": -1})})
    clients.restore_clients(kept)
    assert fetched(0) == ([0], {0: 9, 1: 6, 2: -1})
    clients.send_and_receive([adapter.message_to(FIRST, RecordDict())])
    del nodes.nodes[11]
    assert fetched() == ([], {1: 6, 2: -1}), "what a client that is away keeps by now nobody knows"
    nodes.nodes[11] = ("client-0", 0)
    assert fetched() == ([0], {0: 11, 1: 6, 2: -1})


@pytest.mark.parametrize("stranger", ["", "laptop"])
def test_nobody_without_its_name_stands_for_a_client_that_was_seen_with_it(stranger: str) -> None:
    nodes = Nodes(n11=(stranger, 0), n12=("client-1", 1))
    clients = ClientGrid(nodes, 2)
    assert answering(clients) == [11, 12]
    nodes.nodes[13] = ("client-0", 0)
    assert answering(clients) == [13, 12]
    del nodes.nodes[13]
    assert answering(clients) == [None, 12], "not even while its node is away"
    assert [text.split(": ")[1] for text in take_refusals(clients)] == [
        "so does another; the one whose name says so counts, else the first"
    ]


def test_of_nodes_without_names_the_first_counts_and_a_successor_is_welcome() -> None:
    nodes = Nodes(n11=("", 0), n12=("", 0))
    clients = ClientGrid(nodes, 1)
    assert answering(clients, 1) == [11]
    assert len(take_refusals(clients)) == 1
    del nodes.nodes[11]
    assert answering(clients, 1) == [12]
    nodes.nodes = {14: ("", 0)}  # the device came back and has another id
    assert answering(clients, 1) == [14]
    assert take_refusals(clients) == []


@pytest.mark.parametrize("said", [7, -1, 0.5])
def test_a_client_that_the_run_does_not_have(said: Any) -> None:
    clients = ClientGrid(Nodes(n11=("client-7", said)), 2)
    assert answering(clients) == [None, None]
    assert take_refusals(clients)[0].endswith("this run has no such client")


def test_a_node_that_does_not_answer_is_asked_again_but_not_for_ever() -> None:
    nodes = Nodes(n11=("", 0), n12=("", 1))
    nodes.silent = {11, 12}
    clients = ClientGrid(nodes, 2, patience=0.01)
    assert answering(clients) == [None, None]
    nodes.silent = {12}
    assert answering(clients) == [11, None]
    for _ in range(5):
        answering(clients)
    assert (nodes.asked.count(11), nodes.asked.count(12)) == (2, client_grid.ASKED_AT_MOST)


@pytest.mark.parametrize("late", [set(), {12}, {11, 12}])
def test_a_node_that_is_one_message_behind_is_heard_all_the_same(
    monkeypatch: pytest.MonkeyPatch, late: set[int]
) -> None:
    monkeypatch.setattr(client_grid, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(client_grid, "PAUSE_SECONDS", 0.01)
    nodes = Late(n11=("client-0", 0), n12=("", 1))
    nodes.silent = late
    clients = ClientGrid(nodes, 2)
    for _ in range(3):
        assert answering(clients) == [11, 12]
    beside = {node: 3 if node in late else 0 for node in (11, 12)}
    beside[12] += 2 if 12 in late else 1  # it was asked which client it serves
    assert {node: nodes.asked.count(node) for node in (11, 12)} == beside, "and no more"


def test_the_name_of_a_client() -> None:
    assert name_of_client(12) == "client-12" and client_of_name("client-12") == 12
    for other in (
        "",
        "laptop",
        "client-",
        "client-1a",
        "client--1",
        "client-01",
        "client-1 ",
        "Client-1",
        "client-²",
    ):
        assert client_of_name(other) is None
