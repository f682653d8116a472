"""Chunks of clients: whole runs through our ClientApp on nodes that get pickled messages, as Ray's workers do.

What Ray itself does with them is in tests/test_engines_agree.py.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import touchy_model
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from touchy_model import RAISE, SLEEP, SPOIL
from whole_runs import NATURAL, Run, configured, run, save_arrays

from clients.client_app import app
from fedscale_local import checkpoint, chunk, experiment, lifecycle, sending, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local import run_dir as run_dirs
from fedscale_local.config import from_container, to_json
from fedscale_local.engines import ray
from fedscale_local.errors import ConfigError
from fedscale_local.vector import Layout
from strategies import server_app

SIZES = (9, 1, 4, 7, 2, 5)


class Nodes(Grid):
    """Workers that run the ClientApp on what they unpickle; `spoil(round, node, reply)` may change what they answer."""

    def __init__(
        self, run_config: dict[str, Any], count: int, spoil: Callable[..., Any] | None = None
    ) -> None:
        adapter.become_server()
        self.run_config, self.spoil = run_config, spoil
        self.nodes = [100 + 7 * number for number in range(count)]
        self.sent: list[list[Message]] = []

    def get_node_ids(self) -> list[int]:
        return self.nodes

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.sent.append(list(messages))
        replies = []
        for number, message in enumerate(self.sent[-1]):
            adapter.stamp(message, f"{len(self.sent)}, {number}")
            arrived = pickle.loads(pickle.dumps(message))
            context = adapter.new_context(message.metadata.dst_node_id, {}, self.run_config)
            reply: Any = pickle.loads(pickle.dumps(app(arrived, context)))
            assert not context.state, "a node keeps nothing: the next chunk may be anybody's"
            if self.spoil is not None:
                reply = self.spoil(len(self.sent), number, reply)
            replies += [] if reply is None else [reply]
        return replies[::-1]

    def create_message(self, *args: Any, **kwargs: Any) -> Any: ...
    def push_messages(self, messages: Any) -> Any: ...
    def pull_messages(self, message_ids: Any) -> Any: ...
    def set_run(self, run: Any) -> None: ...
    @property
    def run(self) -> Any: ...


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    x = [rng.normal(size=(n, 4)) for n in SIZES]
    return save_arrays(
        tmp_path_factory.mktemp("arrays") / "six.npz", x, [rng.integers(0, 3, len(p)) for p in x]
    )


@pytest.fixture(scope="module")
def touchy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, where client 0 raises, client 3 answers NaN, and client 5 would never come back."""
    return touchy_model.save(
        tmp_path_factory.mktemp("arrays") / "six.npz", SIZES, {0: RAISE, 3: SPOIL, 5: SLEEP}
    )


SETTINGS: dict[str, Any] = {"num_rounds": 5, "clients_per_round": 5, "client.local_steps": 2}


def here(run_dir: Path, arrays: Path, *overrides: str, **more: Any) -> Run:
    settings = SETTINGS | {"data.path": str(arrays), "engine.mode": "looped"} | more
    return run(run_dir, *NATURAL, *overrides, settings=settings)


def in_chunks(
    run_dir: Path, arrays: Path, chunks: int, *overrides: str, nodes: int = 4, spoil: Any = None, **more: Any
) -> tuple[Run, Nodes]:
    """The same run in chunks, and the nodes that did it."""
    settings = SETTINGS | {"data.path": str(arrays), "run_dir": str(run_dir), "engine.chunks": chunks} | more
    config = configured(*NATURAL, "engine=ray", *overrides, settings=settings)
    run_config = {"config": to_json(config)}
    grid, built = Nodes(run_config, nodes, spoil), experiment.build(config)
    context = adapter.new_context(1, {}, run_config)
    with patch("fedscale_local.reports.write"):
        lifecycle.begin(built, ray.choose(built, {}), lambda: server_app.app(grid, context))
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    return Run(run_dir, lines, {}), grid


ENCODED = "encoded, with what was not said"
METHODS = {
    "fedavg": ("strategy=fedavg",),
    "global D, kept by clients": ("scaling=oasis",),
    "own D and momentum": (
        "scaling=adam", "scaling.scope=local", "client.momentum=0.9", "client.momentum_buffer=kept",
    ),
    "control variates": ("strategy=scaffold",),
    "two exchanges": ("strategy=mime",),
    "kept moments": ("strategy=diloco",),
    ENCODED: ("strategy=fedavg", "model=mlp", "model.hidden=[16]", "sending.parameters.up=top_k", "sending.share=0.1"),
    "of Flower": ("strategy=flower", "strategy._target_=flwr.serverapp.strategy.FedAdam",
                  "strategy.fraction_train=0.84"),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_chunks_give_the_bytes_of_the_run_in_process(method: str, arrays: Path, tmp_path: Path) -> None:
    """Five of six clients a round in two chunks of unequal size; what a client keeps is there wherever it lands."""
    reference = here(tmp_path / "here", arrays, *METHODS[method])
    got, nodes = in_chunks(tmp_path / "chunks", arrays, 2, *METHODS[method])
    assert got.bytes == reference.bytes
    held = [[len(chunk.unpack(message.content)) for message in sent] for sent in nodes.sent]
    assert all(len(sizes) == 2 and sum(sizes) == 5 for sizes in held)
    states = [part.state for message in nodes.sent[-1] for part in chunk.unpack(message.content)]
    assert all((sending.residual_key(wire.ARRAYS) in state) == (method == ENCODED) for state in states)
    assert any(sizes[0] != sizes[1] for sizes in held)


@pytest.mark.parametrize(
    ("chunks", "nodes", "sent"), [(1, 4, 1), (3, 4, 3), (5, 9, 5), (64, 64, 5), (64, 4, 4)]
)
def test_any_number_of_chunks_gives_the_same_bytes(
    chunks: int, nodes: int, sent: int, arrays: Path, tmp_path: Path
) -> None:
    reference = here(tmp_path / "here", arrays, *METHODS["own D and momentum"])
    got, grid = in_chunks(tmp_path / "chunks", arrays, chunks, *METHODS["own D and momentum"], nodes=nodes)
    assert got.bytes == reference.bytes
    assert {len(messages) for messages in grid.sent} == {sent}


@pytest.mark.timeout(60, method="thread")  # the usual one has an alarm of its own
def test_clients_that_fail_do_not_fail_their_chunk(touchy: Path, tmp_path: Path) -> None:
    """One raises, one answers NaN, one never comes back; the run in process says the same of them, byte for byte."""
    model = ("model=custom", "model._target_=touchy_model.Touchy", "strategy=scaffold", "eval_clients=false")
    more = {"round_timeout": 3.0, "num_rounds": 1, "clients_per_round": None}
    reference = here(tmp_path / "here", touchy, *model, **more)
    got, _ = in_chunks(tmp_path / "chunks", touchy, 1, *model, **more)
    assert got.bytes == reference.bytes
    raised, spoilt, slept = got.lines[0]["failures"]
    assert (raised["client"], spoilt["client"], slept["client"]) == (0, 3, 5)
    assert raised["reason"].endswith("ArithmeticError: no convergence")
    assert "is no longer finite" in spoilt["reason"]
    assert slept["reason"].endswith("no reply in time")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda reply: adapter.error_reply("the worker died", reply), "the worker died"),
        (lambda reply: None, "no reply in time"),
        (lambda reply: adapter.with_content(reply, RecordDict()), "the reply of its chunk cannot be read"),
    ],
)
def test_a_chunk_that_fails_is_a_failure_of_its_clients_alone(
    spoil: Callable[[Message], Any], says: str, arrays: Path, tmp_path: Path
) -> None:
    """What these clients kept before the round they keep after it."""

    def second_of_round_2(round: int, number: int, reply: Message) -> Any:
        if (round, number) != (2, 1):
            return reply
        changed = spoil(reply)
        if changed is not None and changed.has_error():
            changed.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
        return changed

    got, nodes = in_chunks(
        tmp_path / "run", arrays, 2, "strategy=scaffold", spoil=second_of_round_2, clients_per_round=None
    )
    asked = [{part.client for part in chunk.unpack(message.content)} for message in nodes.sent[1]]
    failures = [line["failures"] for line in got.lines]
    assert [len(found) for found in failures] == [0, len(asked[1]), 0, 0, 0]
    assert {failure["client"] for failure in failures[1]} == asked[1]
    assert all(failure["reason"].startswith(says) for failure in failures[1])
    kept = [
        {
            part.client: {key: record["flat"].data for key, record in part.state.array_records.items()}
            for message in nodes.sent[round]
            for part in chunk.unpack(pickle.loads(pickle.dumps(message.content)))
        }
        for round in (1, 2)
    ]
    assert {client for client in kept[0] if kept[0][client] == kept[1][client]} == asked[1]


def test_a_run_in_chunks_is_carried_on_with_what_its_clients_kept(arrays: Path, tmp_path: Path) -> None:
    """The checkpoints are those of the run in process: the grid that keeps the states is the same."""
    method = METHODS["own D and momentum"]
    reference = here(tmp_path / "here", arrays, *method, num_rounds=3)
    got, nodes = in_chunks(tmp_path / "run", arrays, 2, *method, num_rounds=2)
    nodes.sent.clear()

    def again(built: experiment.Experiment, *_: Any) -> None:
        nodes.run_config = {"config": to_json(built.config)}
        server_app.app(nodes, adapter.new_context(1, {}, nodes.run_config))

    longer = from_container(run_dirs.head(got.run_dir)[0]).model_copy(update={"num_rounds": 3})
    with patch("fedscale_local.reports.write"), patch("fedscale_local.engines.ray.run", again):
        lifecycle.resume(got.run_dir, longer)
    assert len(nodes.sent) == 1, "only round 3 was left to do"
    assert got.bytes == reference.bytes


def test_what_clients_share_crosses_once(tmp_path: Path, arrays: Path) -> None:
    """Six clients in one chunk, in models: D is measured every other round, sent once, and kept by all of them."""
    up = []

    def noted(round: int, number: int, reply: Message) -> Message:
        up.append(wire.num_bytes(reply.content)[0])
        return reply

    more = {"dtype": "float64", "scaling.refresh_every": 2, "clients_per_round": None, "num_rounds": 4}
    _, nodes = in_chunks(tmp_path / "run", arrays, 1, "scaling=oasis", spoil=noted, **more)
    down = [wire.num_bytes(message.content)[0] for (message,) in nodes.sent]
    model = 8 * (4 * 3 + 3)
    # The probe; the first D is sent; it is there; the second D is sent, and the first comes along; it is there.
    assert [found / model for found in down] == [1, 2, 2, 3, 2]
    # Six statistics; six models and D; six models, six statistics and D; and so on.
    assert [found / model for found in up] == [6, 7, 13, 7, 13]


def test_parts_come_back_as_they_were() -> None:
    layout = Layout(("weight", "bias", "scale", "empty"), ((3, 4), (3,), (), (0, 2)))
    flat, d = torch.randn(layout.size), torch.randn(layout.size)
    model, settings = (
        wire.to_record([(layout, flat)]),
        ConfigRecord({"clock": 3, "raw": b"\0\1", "on": True}),
    )
    metrics = MetricRecord({"loss": 0.1, "count": 2, "many": [1.5, float("inf")]})
    parts = [
        chunk.Part(
            client,
            RecordDict({"arrays": model, "config": settings, "metrics": metrics}),
            RecordDict({"own": wire.vector_record(d), "more": wire.vector_record(d[:2] + client)}),
        )
        for client in (4, 0, 9)
    ]
    parts.append(chunk.Part(7, "it failed", RecordDict()))
    content = pickle.loads(pickle.dumps(chunk.pack(parts)))
    assert wire.num_bytes(content)[0] == 4 * (2 * layout.size + 3 * 2)
    back = chunk.unpack(content)
    assert [part.client for part in back] == [4, 0, 9, 7]
    assert (back[3].said, dict(back[3].state)) == ("it failed", {})
    for part, before in zip(back[:3], parts, strict=False):
        assert part.said["config"] == settings and part.said["metrics"] == metrics  # type: ignore[index]
        assert part.said["arrays"].object_id == model.object_id  # type: ignore[index,union-attr]
        assert {k: r.object_id for k, r in part.state.items()} == {
            k: r.object_id for k, r in before.state.items()
        }
        got = wire.from_record(part.said["arrays"], layout, torch.float32)  # type: ignore[index,arg-type]
        assert torch.equal(got, flat)
        assert got is wire.from_record(back[0].said["arrays"], layout, torch.float32)  # type: ignore[index,arg-type]


def test_sections_are_those_of_the_record_and_no_others() -> None:
    """A record whose arrays lie in another order than in memory, or are not all of it, is taken array by array."""
    layout = Layout(("a", "b"), ((2,), (2,)))
    flat = torch.arange(4.0)
    (found,) = wire.sections(wire.to_record([(layout, flat)]))
    assert found[0] == layout and found[1].data_ptr() == flat.data_ptr()
    whole = wire.to_record([(layout, flat)])
    for names in (["b", "a"], ["b"]):
        record = ArrayRecord()
        for name in names:
            record[name] = whole[name]
        back = wire.to_record(wire.sections(record))
        assert [(name, array.numpy().tolist()) for name, array in back.items()] == [
            (name, whole[name].numpy().tolist()) for name in names
        ]


def test_a_vector_that_many_keep_is_in_a_checkpoint_once() -> None:
    d = torch.randn(50)
    kept = {client: wire.dump_records(RecordDict({"d": wire.vector_record(d)})) for client in range(3)}
    _, leaves = checkpoint.encode([kept, d[:25], d.reshape(5, 10)])
    assert [tuple(leaf.shape) for leaf in leaves.values()] == [(50,), (25,), (5, 10)]


def test_somebody_elses_client_app_gets_no_chunks(arrays: Path, tmp_path: Path) -> None:
    config = configured(
        *NATURAL, "engine=ray", "engine.chunks=2", "client._target_=foreign_app.app", f"data.path={arrays}"
    )
    with pytest.raises(ConfigError, match=r"engine\.chunks=2: somebody else's ClientApp"):
        ray.choose(experiment.build(config), {})


def test_what_a_server_builds_imports_no_client() -> None:
    """Flower's simulation loads the ClientApp in another thread, and takes a module that is there half imported."""
    code = (
        "import sys; from fedscale_local import compose, experiment; from strategies import server_app;"
        "server_app.make_strategy(experiment.build(compose.config(sys.argv[1:])));"
        "print([name for name in sys.modules if name.startswith('clients')])"
    )
    overrides = ["engine=ray", "data=synthetic", "num_clients=4", "clients_per_round=2"]
    child = subprocess.run(
        [sys.executable, "-c", code, *overrides], capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == "[]"
