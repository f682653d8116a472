"""How the last model does from client to client: by hand, in every mode the same, and without a trace in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from whole_runs import Run, configured, run, save_arrays

from fedscale_local import compose, evaluation, experiment, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local.config import ConfigError
from fedscale_local.data import held_out
from fedscale_local.data import partition as partitions

STEPS, SIZE = 4, 0.3
OWN = ("data=arrays", "partition=natural", "num_clients=null", "clients_per_round=null", "model=logistic")
PERSONAL = {"eval_personal_steps": STEPS, "eval_personal_step_size": SIZE}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clients of other sizes and other optima; the last has no test examples."""
    rng = np.random.default_rng(4)
    x = [rng.normal(size=(n, 3)) + m for m, n in enumerate((9, 5, 7, 6))]
    y = [(part @ rng.normal(size=3) > 0).astype(np.int64) for part in x]
    test = {"x_test": rng.normal(size=(8, 3)), "y_test": np.arange(8) % 2, "client_test": np.arange(8) % 3}
    return save_arrays(tmp_path_factory.mktemp("data") / "arrays.npz", x, y, **test)


def asked(arrays: Path, **settings: Any) -> experiment.Experiment:
    """The experiment in which these clients are asked for models of their own."""
    more = {"data.path": str(arrays), **PERSONAL, **settings}
    return experiment.build(configured(*OWN, "data.path=x.npz", settings=more))


def clients_of(done: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.run_dir / "clients.json").read_text())
    return found


def judged(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float, Any]:
    """Mean cross entropy, accuracy, and the gradient with respect to both."""
    logits = x @ weight.T + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss, off = -np.log(p[np.arange(len(y)), y]).mean(), (p - np.eye(p.shape[1])[y]) / len(y)
    return float(loss), float((logits.argmax(1) == y).mean()), (off.T @ x, off.sum(0))


def test_both_models_are_judged_as_by_hand_on_natural_test_shards(arrays: Path, tmp_path: Path) -> None:
    """Full batches in float64: nothing is random, so NumPy takes the same steps from the model that was saved."""
    full = {"client.batch_size": "full", "dtype": "float64", "num_rounds": 2, "data.path": str(arrays)}
    done = run(tmp_path / "run", *OWN, "data.path=x.npz", settings=full | PERSONAL)
    found, data = clients_of(done), np.load(arrays)
    assert found["failures"] == [] and {len(values) for k, values in found.items() if k != "failures"} == {4}
    for client in range(3):
        x, y = (data[name][data["client"] == client] for name in ("x", "y"))
        test = [data[name][data["client_test"] == client] for name in ("x_test", "y_test")]
        weight, bias = done.tensors["weight"].copy(), done.tensors["bias"].copy()
        assert found["test_loss"][client] == pytest.approx(judged(weight, bias, *test)[0], rel=1e-12)
        assert found["test_accuracy"][client] == judged(weight, bias, *test)[1]
        for _ in range(STEPS):
            for vector, gradient in zip((weight, bias), judged(weight, bias, x, y)[2], strict=True):
                vector -= SIZE * gradient
        assert found["personal_test_loss"][client] == pytest.approx(judged(weight, bias, *test)[0], rel=1e-12)
        assert found["personal_test_accuracy"][client] == judged(weight, bias, *test)[1]
    assert found["train_loss"][3] is not None
    assert all(values[3] is None for key, values in found.items() if "test" in key), "it has no test examples"


@pytest.mark.parametrize("method", [("scaling=adam", "scaling.scope=local"), ("strategy=scaffold",)])
def test_every_way_of_running_gives_the_same_figures_and_none_changes_the_training(
    method: tuple[str, ...], arrays: Path, tmp_path: Path
) -> None:
    """Mini-batches; the reference is looped. Stacked rounds otherwise, by the tolerance of float64."""
    base = {"client.batch_size": 3, "dtype": "float64", "num_rounds": 2, "data.path": str(arrays)}

    def ran(name: str, **settings: Any) -> Run:
        return run(tmp_path / name, *OWN, *method, "data.path=x.npz", settings=base | settings)

    looped = ran("looped", **PERSONAL, **{"engine.mode": "looped", "engine.workers": 1})
    workers = ran("workers", **PERSONAL, **{"engine.mode": "looped", "engine.workers": 2})
    stacked = ran("stacked", **PERSONAL, **{"engine.mode": "stacked", "engine.workers": 1})
    without = ran("without", **{"engine.mode": "looped", "engine.workers": 1})
    assert looped.bytes == workers.bytes == without.bytes
    assert clients_of(looped) == clients_of(workers)
    asked_for = {key for key in clients_of(looped) if key.startswith("personal")} | {"failures"}
    assert clients_of(without) == {k: v for k, v in clients_of(looped).items() if k not in asked_for}
    found = clients_of(stacked)
    assert found.pop("failures") == []
    for key, values in found.items():  # None becomes NaN
        wanted = np.array(clients_of(looped)[key], dtype=float)
        assert np.array(values, dtype=float) == pytest.approx(wanted, rel=1e-12, nan_ok=True), key


def test_the_clients_draws_are_of_the_seed_and_of_nothing_else(arrays: Path) -> None:
    def drawn(**settings: Any) -> list[list[int]]:
        built = asked(arrays, **settings)
        return [part.tolist() for client in range(4) for part in built.personal_batches(client)]

    few = {"client.batch_size": 2, "client.local_steps": 3}
    assert drawn(**few) == drawn(**few, **{"client.step_size": 0.5, "scaling.beta": 0.5})
    assert len(drawn(**few)) == 4 * STEPS
    assert drawn(**few) != drawn(**few, seed=1)
    built = asked(arrays, **few)
    trained = [
        part.tolist() for client in range(4) for part in built.batches(built.config.num_rounds, client)
    ]
    assert trained != drawn(**few)[: len(trained)]


# ---------------------------------------------------------------- by which examples


@pytest.mark.parametrize(
    "scheme", [["partition=dirichlet"], ["partition=pathological"], ["partition=main_class"]]
)
def test_a_test_shard_has_the_classes_of_the_training_shard(scheme: list[str]) -> None:
    """By less than one example a class, as largest remainders have it; disjoint, and whole where all is held."""
    settings = {"num_clients": 12, "clients_per_round": None}
    built = experiment.build(configured("data=fashion_mnist_12k", *scheme, settings=settings))
    data = built.dataset
    held = partitions.counts(built.partition, data.labels, 10)
    tested = partitions.counts(built.test_partition, data.test_y.numpy(), 10)
    assert tested.sum() == len(data.test_y) == len(np.unique(built.test_partition.order))
    assert np.abs(tested - held * (200 / 1200)).max() < 1
    assert (tested[held == 0] == 0).all()


def test_a_class_that_nobody_holds_is_nobodys() -> None:
    found = held_out.alike(np.array([0, 1, 2, 1, 0, 1]), np.array([[3, 0, 0], [1, 2, 0]]))
    assert found.owners(6)[2] == 2 and found.sizes.tolist() == [2, 3]


def test_a_sorted_set_is_spread() -> None:
    """Two equal clients of a sorted class: each has every other example, so neither has one end alone."""
    found = held_out.alike(np.zeros(10, np.int64), np.array([[4], [4]]))
    assert [rows.tolist() for rows in found] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


# ---------------------------------------------------------------- what goes wrong


class Grid:
    """Answers with what `replies` makes of each message."""

    node_of_client = range(adapter.FIRST_NODE, adapter.FIRST_NODE + 4)

    def __init__(self, replies: dict[int, Any]) -> None:
        self.replies = replies

    def send_and_receive(self, messages: list[Message], timeout: float | None) -> list[Message]:
        adapter.become_server()
        found = []
        for number, message in enumerate(messages):
            adapter.stamp(message, str(number))
            said = self.replies.get(message.metadata.dst_node_id - adapter.FIRST_NODE)
            if isinstance(said, str):
                found.append(adapter.error_reply(said, message))
            elif said is not None:
                content = RecordDict({wire.METRICS: MetricRecord(said)}) if said else RecordDict()
                found.append(Message(content, reply_to=message))
        return found


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("no memory", "no memory"),
        (None, "no reply in time"),
        ({}, "KeyError"),
        ({wire.TEST_LOSS: float("nan"), wire.TEST_ACCURACY: 0.5}, "expected finite numbers"),
        ({wire.TEST_LOSS: 1.0, wire.TEST_ACCURACY: 1.5}, "an accuracy from 0 to 1"),
        ({wire.TEST_LOSS: [1.0], wire.TEST_ACCURACY: 0.5}, "TypeError"),
    ],
)
def test_a_client_that_does_not_answer_well_is_named_and_the_others_count(
    said: Any, reason: str, arrays: Path
) -> None:
    adapter.become_server()
    built = asked(arrays)
    good = {wire.TEST_LOSS: 0.25, wire.TEST_ACCURACY: 0.75}
    task = built.task
    found = evaluation.of_clients(
        built, Grid({0: good, 1: said, 2: good}), task.initial_params, task.initial_buffers
    )  # type: ignore[arg-type]
    assert found["personal_test_loss"] == [0.25, None, 0.25, None]
    assert found["personal_test_accuracy"] == [0.75, None, 0.75, None]
    (failure,) = found["failures"]
    assert failure["client"] == 1 and reason in failure["reason"]


def test_the_messages_are_flowers_and_hold_the_model_alone(arrays: Path) -> None:
    """Of type "evaluate", to who has examples to train on and to be tested on."""
    adapter.become_server()
    built = asked(arrays)
    seen: list[Message] = []

    class Listening(Grid):
        def send_and_receive(self, messages: list[Message], timeout: float | None) -> list[Message]:
            seen.extend(messages)
            return []

    task = built.task
    evaluation.of_clients(built, Listening({}), task.initial_params, task.initial_buffers)  # type: ignore[arg-type]
    assert [m.metadata.dst_node_id - adapter.FIRST_NODE for m in seen] == [0, 1, 2]
    assert {m.metadata.message_type for m in seen} == {"evaluate"}
    assert all(list(m.content.array_records) == [wire.ARRAYS] for m in seen)
    instructions = ConfigRecord({wire.ROUND: built.config.num_rounds, wire.PERSONAL: True})
    assert all(m.content.config_records[wire.CONFIG] == instructions for m in seen)


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        (["eval_clients=false"], "set eval_clients=true"),
        (["client=custom", "client._target_=foreign_app.noisy", "strategy=fedavg"], "take our clients"),
        (["privacy=central"], "privacy=none"),
    ],
)
def test_what_cannot_be_asked_is_refused(more: list[str], remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"eval_personal_steps=2.*{remedy}"):
        compose.config(["eval_personal_steps=2", *more])
