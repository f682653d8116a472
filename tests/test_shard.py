"""A device that holds one client's shard alone: its folder, what is refused of it, and that no number changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from whole_runs import configured, save_arrays

from clients.client_app import answer
from fedscale_local import cli, experiment, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local.config import Config, to_json
from fedscale_local.data.dataset import Dataset
from fedscale_local.data.shard import ARRAYS, HEADER, Place, origin, read, write
from fedscale_local.errors import DataError

CLIENTS, CLIENT = 3, 1
SETS = {
    "images": ["data=fashion_mnist_12k", "partition=dirichlet", "model=cnn"],
    "features": ["data=synthetic", "model=logistic", "dtype=float64"],
    "targets": ["data=quadratic", "data.examples=30"],
    "tokens": ["data=shakespeare", "model.hidden=8"],
}


def tokens(*_: Any) -> Dataset:
    """Windows of seven letters of an alphabet of five, some without a next one; in place of the real text."""
    rng = np.random.default_rng(3)
    x, y = (torch.from_numpy(rng.integers(low, 5, (40, 7))) for low in (0, -1))
    return Dataset("shakespeare", "tokens", x, y, x[:4], y[:4], 5, client=rng.integers(0, CLIENTS, 40))


def small(kind: str, **settings: Any) -> Config:
    """Mini-batches, and a statistic with drawn labels: both come from round and client, not from where rows lie."""
    overrides = [*SETS[kind], "clients_per_round=null", "client.batch_size=4", "client.local_steps=3"]
    return configured(*overrides, "scaling=sophia", settings={"num_clients": CLIENTS} | settings)


@pytest.fixture
def shard(tmp_path: Path) -> Callable[[Config], Path]:
    def written(config: Config) -> Path:
        whole = experiment.build(config)
        write(tmp_path / "shard", whole.dataset, whole.partition, CLIENT, origin(config))
        return tmp_path / "shard"

    return written


def ask(config: Config, data_path: Path | None = None, personal: bool = False) -> Message:
    """What CLIENT's node answers in round 1 to a first model, asked to measure a statistic too; or how it does."""
    adapter.become_server()
    task = experiment.build(config, data_path and Place(str(data_path), CLIENT)).task
    model = wire.model_record(task, torch.ones_like(task.initial_params) / 8, task.initial_buffers)
    instructions = ConfigRecord({wire.ROUND: 1, "measure": True, wire.PERSONAL: personal})
    content = wire.content({wire.ARRAYS: model}, instructions)
    return told(config, content, data_path)


@pytest.mark.parametrize("kind", ["images", "features"])
def test_a_client_is_judged_by_the_same_bits_from_its_shard_alone(
    kind: str, shard: Callable[[Config], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(kind, eval_personal_steps=3)
    folder, from_all = shard(config), numbers(ask(config, personal=True))
    monkeypatch.setattr("fedscale_local.data.load", None)
    assert numbers(ask(config, folder, personal=True)) == from_all
    assert set(from_all) == {wire.TEST_LOSS, wire.TEST_ACCURACY}


def told(config: Config, content: Any, data_path: Path | None) -> Message:
    node = {wire.PARTITION: CLIENT} | ({} if data_path is None else {wire.DATA_PATH: str(data_path)})
    context = adapter.new_context(adapter.FIRST_NODE + CLIENT, node, {"config": to_json(config)})
    return answer(adapter.stamp(adapter.message_to(context.node_id, content), "1"), context)


def numbers(message: Message) -> dict[Any, Any]:
    """Everything in a reply: the bytes of each array, and the metrics."""
    assert message.has_content(), message.error.reason
    arrays = {
        (key, name): array.numpy().tobytes()
        for key, record in message.content.array_records.items()
        for name, array in record.items()
    }
    return arrays | dict(message.content.metric_records[wire.METRICS])


@pytest.mark.parametrize("kind", SETS)
def test_a_client_answers_the_same_bits_from_its_shard_alone(
    kind: str, shard: Callable[[Config], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "tokens":
        monkeypatch.setattr("fedscale_local.data.load", tokens)
    config = small(kind)
    folder, from_all = shard(config), numbers(ask(config))
    monkeypatch.setattr("fedscale_local.data.load", None)  # nothing else of the data set is looked for
    from_shard = numbers(ask(config, folder))
    assert from_shard == from_all
    assert from_all["client"] == CLIENT and any(key[0] == wire.STATISTIC for key in from_all)


@pytest.mark.parametrize("kind", SETS)
def test_a_shard_is_read_as_it_was_written(
    kind: str, shard: Callable[[Config], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "tokens":
        monkeypatch.setattr("fedscale_local.data.load", tokens)
    config = small(kind)
    whole, folder = experiment.build(config), shard(config)
    assert sorted(path.name for path in folder.iterdir()) == [HEADER, ARRAYS]
    dataset, partition, tested = read(Place(str(folder), CLIENT), origin(config))
    rows = whole.partition[CLIENT]
    assert torch.equal(dataset.x, whole.dataset.x[rows]) and dataset.x.dtype == whole.dataset.x.dtype
    assert torch.equal(dataset.y, whole.dataset.y[rows]) and dataset.y.dtype == whole.dataset.y.dtype
    test_rows = whole.test_partition[CLIENT]
    assert torch.equal(dataset.test_x, whole.dataset.test_x[test_rows]) and dataset.client is None
    assert torch.equal(dataset.test_y, whole.dataset.test_y[test_rows])
    assert tested[CLIENT].tolist() == list(range(len(test_rows)))
    for name in ("name", "kind", "num_classes", "class_names", "note"):
        assert getattr(dataset, name) == getattr(whole.dataset, name)
    for name in ("mean", "std"):
        ours, theirs = getattr(dataset, name), getattr(whole.dataset, name)
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert partition.sizes.tolist() == [0] * CLIENT + [len(rows)]
    assert partition[CLIENT].tolist() == list(range(len(rows)))


# ---------------------------------------------------------------- what is refused


def change(**values: Any) -> Callable[[Path], None]:
    """Other values in the header."""

    def changed(folder: Path) -> None:
        header = json.loads((folder / HEADER).read_text())
        (folder / HEADER).write_text(json.dumps(header | values))

    return changed


def replace(**arrays: Any) -> Callable[[Path], None]:
    """Other arrays, with their own checksum: what a device's owner may have put together by hand."""

    def replaced(folder: Path) -> None:
        with np.load(folder / ARRAYS) as found:
            kept = dict(found) | arrays
        buffer = BytesIO()
        np.savez(buffer, **{name: array for name, array in kept.items() if array is not None})
        (folder / ARRAYS).write_bytes(buffer.getvalue())
        change(sha256=hashlib.sha256(buffer.getvalue()).hexdigest())(folder)

    return replaced


def flip(folder: Path) -> None:
    content = bytearray((folder / ARRAYS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / ARRAYS).write_bytes(content)


N = 6
FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no header": (lambda f: (f / HEADER).unlink(), HEADER, "No such file"),
    "no arrays": (lambda f: (f / ARRAYS).unlink(), ARRAYS, "No such file"),
    "header is no JSON": (lambda f: (f / HEADER).write_text("{"), HEADER, "no description of a shard"),
    "header of another format": (change(format=2), HEADER, "format"),
    "header with other keys": (change(colour="red"), HEADER, "colour"),
    "of another client": (change(client=2), HEADER, "client 2, this node serves client 1"),
    "of another set": (
        change(origin={"data.name": "hapt"}),
        HEADER,
        "data.name=hapt, the run has data.name=arrays",
    ),
    "a byte is other": (flip, ARRAYS, "is damaged"),
    "torn": (lambda f: (f / ARRAYS).write_bytes((f / ARRAYS).read_bytes()[:90]), ARRAYS, "is damaged"),
    "no y": (replace(y=None), ARRAYS, "arrays x and y"),
    "objects": (replace(y=np.array([None] * N)), ARRAYS, "allow_pickle"),
    "other types": (replace(y=np.zeros(N)), ARRAYS, "which no classification set has"),
    "other lengths": (replace(y=np.zeros(N + 1, np.int64)), ARRAYS, "6 rows and y 7"),
    "not a number": (replace(x=np.full((N, 3), np.nan)), ARRAYS, "NaN"),
    "no such label": (replace(y=np.full(N, 9)), ARRAYS, "0..2"),
    "another number of test examples": (change(num_test_examples=4), ARRAYS, "says 4"),
    "test examples of another shape": (replace(test_x=np.zeros((0, 5))), ARRAYS, "one of test_x is"),
}


@pytest.fixture
def mine(tmp_path: Path) -> Config:
    rng = np.random.default_rng(2)
    x = [rng.normal(size=(N, 3)) for _ in range(CLIENTS)]
    path = save_arrays(tmp_path / "mine.npz", x, [np.arange(N) % 3 for _ in x])
    settings = {"num_clients": CLIENTS, "clients_per_round": None, "data.path": str(path)}
    return configured("data=arrays", "partition=natural", "data.path=mine.npz", settings=settings)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_shard_is_an_answer_that_names_the_file(
    fault: str, mine: Config, shard: Callable[[Config], Path]
) -> None:
    damage, file, reason = FAULTS[fault]
    folder = shard(mine)
    assert ask(mine, folder).has_content()
    damage(folder)
    experiment._build.cache_clear()  # a node's process is a new one for each message
    with pytest.raises(DataError, match=r"fedscale-local shard|partition-id"):
        read(Place(str(folder), CLIENT), origin(mine))
    reply = told(mine, wire.content({}), folder)
    assert reply.has_error() and str(folder / file) in reply.error.reason and reason in reply.error.reason


def test_a_shard_serves_the_runs_that_would_cut_it_so() -> None:
    """Another method is no reason to cut anew; another seed is one where data or division are drawn."""
    for kind, drawn in (("images", True), ("features", True), ("tokens", False)):
        here = origin(small(kind))
        assert origin(small(kind, **{"num_rounds": 9, "client.step_size": 0.5})) == here
        assert (origin(small(kind, seed=1)) != here) == drawn
        assert (origin(small(kind, num_clients=2)) != here) == drawn
    assert origin(small("images", **{"partition.alpha": 0.1})) != origin(small("images"))


# ---------------------------------------------------------------- the command


def test_the_command_writes_one_clients_shard_or_everybodys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["data=synthetic", f"num_clients={CLIENTS}"]
    assert cli.main(["shard", *overrides, "--client=1", f"--out={tmp_path / 'one'}"]) == 0
    assert cli.main(["shard", *overrides, "--all", f"--out={tmp_path / 'all'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["0", "1", "2"]
    for name in (HEADER, ARRAYS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "all" / "1" / name).read_bytes()
    config = configured(*overrides)
    whole = experiment.build(config)
    parts = [read(Place(str(tmp_path / "all" / str(c)), c), origin(config))[0].x for c in range(CLIENTS)]
    assert torch.equal(torch.cat(parts), whole.dataset.x[torch.from_numpy(whole.partition.order)])
    assert "client 1" in capsys.readouterr().out
