"""A client that fails, lies or is silent never ends a run: its reply is dropped, counted and named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from twin import Draws, Settings, Softmax, scaled_local
from whole_runs import NATURAL, Run, run, save_arrays

from clients import training
from fedscale_local import wire
from fedscale_local.engines.in_process import FIRST_NODE, InProcessGrid
from fedscale_local.replies import REASON_AT_MOST

SIZES, FEATURES, CLASSES = (4, 9, 3, 6), 3, 4
BAD = 2
"""The client that misbehaves, in round 2 of 4."""

SETTINGS = {
    "num_rounds": 4,
    "dtype": "float64",
    "client.batch_size": "full",
    "client.local_steps": 3,
    "client.step_size": 0.1,
    "scaling.alpha": 0.05,
    "scaling.beta": 0.9,
}
METHODS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "fedavg": (("strategy=fedavg", "scaling=identity"), {"rule": "identity"}),
    "savic": ((), {}),
    "momentum": (
        ("client.momentum=0.5", "client.momentum_buffer=averaged"),
        {"momentum": 0.5, "momentum_buffer": "averaged"},
    ),
    "displacement": (("scaling.statistic=displacement",), {"statistic": "displacement"}),
    "seldom": (("scaling.refresh_every=2",), {"refresh_every": 2}),
    "local": (
        ("scaling.scope=local", "strategy.mixing=preconditioned"),
        {"scope": "local", "mixing": "preconditioned"},
    ),
}


@pytest.fixture(scope="module")
def problem() -> Softmax:
    return Softmax.drawn(SIZES, FEATURES, CLASSES)


@pytest.fixture(scope="module")
def arrays(problem: Softmax, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_arrays(tmp_path_factory.mktemp("arrays") / "four.npz", problem.features, problem.targets)


def small(run_dir: Path, arrays: Path, *overrides: str, **more: Any) -> Run:
    return run(
        run_dir, *NATURAL, "scaling=adam", *overrides, settings=SETTINGS | {"data.path": str(arrays)} | more
    )


def without(problem: Softmax, absent: dict[int, list[int]], **settings: Any) -> np.ndarray:
    """The twin's model of a run in which these clients did not take part in these rounds."""
    draws = Draws(
        lambda p: [m for m in range(len(SIZES)) if m not in absent.get(p, [])],
        lambda p, m, k: list(range(SIZES[m])),
        lambda p, k: np.zeros(0),
        lambda p, m, k: [],
    )
    settings = {"rule": "adam", "alpha": 0.05, "beta": 0.9, "step_size": 0.1, "num_rounds": 4} | settings
    found = scaled_local(
        problem, Settings(local_steps=(3,) * 4, **settings), draws, np.zeros((FEATURES + 1) * CLASSES)
    )
    return found.x[-1]


def model_of(finished: Run) -> np.ndarray:
    """Weight row by row, then bias, as the twin has it."""
    tensors = finished.tensors
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors, key=lambda n: -tensors[n].ndim)])


def tamper(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Message, list[Message]], Iterable[Any]],
    rounds: set[int],
) -> None:
    """Let `change(reply of BAD, all earlier replies of BAD)` stand for the reply of BAD in these rounds."""
    send = InProcessGrid.send_and_receive
    earlier: list[Message] = []

    def tampered(self: InProcessGrid, messages: Iterable[Message], **options: Any) -> list[Any]:
        sent = list(messages)
        round = sent[0].content[wire.CONFIG][wire.ROUND]  # type: ignore[index]
        replies: list[Any] = []
        for reply in send(self, sent, **options):
            if reply.metadata.src_node_id == FIRST_NODE + BAD:
                replies += change(reply, earlier) if round in rounds else [reply]
                earlier.append(reply)
            else:
                replies.append(reply)
        return replies

    monkeypatch.setattr(InProcessGrid, "send_and_receive", tampered)


def with_array(reply: Message, array: np.ndarray, record: str = wire.ARRAYS) -> Message:
    """The reply with its first array of a record replaced."""
    records = {key: value.copy() for key, value in reply.content.items()}
    first = next(iter(records[record]))
    records[record][first] = Array(array)
    return like(reply, RecordDict(records))


def with_metrics(reply: Message, **metrics: Any) -> Message:
    records = dict(reply.content)
    changed = dict(records[wire.METRICS]) | {k.replace("_", "-"): v for k, v in metrics.items()}  # type: ignore[call-overload]
    records[wire.METRICS] = MetricRecord({k: v for k, v in changed.items() if v is not None})
    return like(reply, RecordDict(records))


def like(reply: Message, content: RecordDict) -> Message:
    return Message(content=content, metadata=reply.metadata)  # type: ignore[call-overload,no-any-return]


def beside(reply: Message, record: ArrayRecord | ConfigRecord) -> Message:
    return like(reply, RecordDict({**reply.content, "beside": record}))


def nan(reply: Message) -> np.ndarray:
    array = next(iter(reply.content.array_records[wire.ARRAYS].values())).numpy()
    array.flat[0] = math.nan
    return array


def only(reply: Message, *keys: str) -> Message:
    return like(reply, RecordDict({key: reply.content[key] for key in keys}))


D = (FEATURES + 1) * CLASSES
FAULTS: dict[str, tuple[Callable[[Message, list[Message]], Iterable[Any]], str]] = {
    "an error": (lambda r, _: [Message(error=Error(0, "disk full"), metadata=r.metadata)], "disk full"),
    "silence": (lambda r, _: [], "no reply in time"),
    "nan": (lambda r, _: [with_array(r, nan(r))], "arrays: not all numbers are finite"),
    "shape": (
        lambda r, _: [with_array(r, np.zeros((2, 3)))],
        "arrays: array 'weight' is float64 (2, 3), expected",
    ),
    "float32": (
        lambda r, _: [with_array(r, np.zeros((CLASSES, FEATURES), np.float32))],
        "arrays: array 'weight' is float32 (4, 3), expected float64 (4, 3)",
    ),
    "complex": (
        lambda r, _: [with_array(r, np.zeros((CLASSES, FEATURES), complex))],
        "arrays: array 'weight' is complex",
    ),
    "lies about its shape": (
        lambda r, _: [
            lying(r, Array("float64", (CLASSES, FEATURES), "numpy.ndarray", Array(np.zeros(2)).data))
        ],
        "arrays: ",
    ),
    "no bytes": (
        lambda r, _: [lying(r, Array("float64", (CLASSES, FEATURES), "numpy.ndarray", b"rubbish"))],
        "",
    ),
    "pickle": (
        lambda r, _: [lying(r, Array("float64", (CLASSES, FEATURES), "numpy.ndarray", pickled()))],
        "",
    ),
    "no arrays": (lambda r, _: [only(r, wire.METRICS)], "the reply has no arrays"),
    "an empty record": (
        lambda r, _: [like(r, RecordDict(dict(r.content) | {wire.ARRAYS: ArrayRecord()}))],
        "arrays: array 'weight' is missing",
    ),
    "no metrics": (lambda r, _: [only(r, *(k for k in r.content if k != wire.METRICS))], "metrics"),
    "no weight": (lambda r, _: [with_metrics(r, num_examples=None)], "num-examples"),
    "negative weight": (
        lambda r, _: [with_metrics(r, num_examples=-3)],
        "num-examples=-3: expected a number above 0",
    ),
    "no example": (
        lambda r, _: [with_metrics(r, num_examples=0)],
        "num-examples=0: expected a number above 0",
    ),
    "endless weight": (lambda r, _: [with_metrics(r, num_examples=math.inf)], "num-examples=inf: expected"),
    "weights": (lambda r, _: [with_metrics(r, num_examples=[1, 2])], "num-examples=[1, 2]: expected"),
    "more examples than it holds": (
        lambda r, _: [with_metrics(r, num_examples=10**18)],
        "num-examples=1000000000000000000: expected 3 at most",
    ),
    "huge numbers": (
        lambda r, _: [with_array(r, np.full((CLASSES, FEATURES), -1e200))],
        "arrays: a number of size 1e+200, expected less than 5.24e+151",
    ),
    "a type that NumPy does not know": (
        lambda r, _: [lying(r, Array("bfloat16", (CLASSES, FEATURES), "numpy.ndarray", b"12345"))],
        "arrays: array 'weight' is bfloat16",
    ),
    "a shape beyond all bounds": (
        lambda r, _: [lying(r, Array("float64", (2**40, 2**40), "numpy.ndarray", b"12345"))],
        "arrays: array 'weight' is float64 (1099511627776",
    ),
    "metrics without end": (
        lambda r, _: [with_metrics(r, history=[0.5] * 2**17)],
        "its metrics hold 10",
    ),
    "texts without end": (
        lambda r, _: [beside(r, ConfigRecord({"log": "x" * 2**21, "lines": ["y", ""]}))],
        "its metrics hold 20",
    ),
    "arrays without end": (
        lambda r, _: [beside(r, ArrayRecord({"more": Array(np.zeros(2**18))}))],
        "its arrays hold 20",
    ),
    "an error without end": (
        lambda r, _: [Message(error=Error(0, "x" * 10**6), metadata=r.metadata)],
        "x" * REASON_AT_MOST + "...",
    ),
    "loss is nan": (
        lambda r, _: [with_metrics(r, train_loss=math.nan)],
        "train-loss=nan: expected a finite number",
    ),
    "no step": (lambda r, _: [with_metrics(r, local_steps=0)], "local-steps=0: expected a number above 0"),
    "another's name": (lambda r, _: [with_metrics(r, client=0)], "client=0: the reply came from client 2"),
    "none": (lambda r, _: [None], "no reply in time"),
    "empty": (lambda r, _: [like(r, RecordDict())], "the reply has no arrays"),
}
OF_OTHER_RECORDS: dict[str, tuple[str, Callable[[Message, list[Message]], Iterable[Any]], str]] = {
    "statistic is nan": (
        "savic",
        lambda r, _: [with_array(r, np.full(D, np.nan), wire.STATISTIC)],
        "statistic: not all numbers are finite",
    ),
    "statistic has another size": (
        "savic",
        lambda r, _: [with_array(r, np.ones(D - 1), wire.STATISTIC)],
        "statistic: array 'flat' is float64 (15,), expected float64 (16,)",
    ),
    "no statistic": (
        "savic",
        lambda r, _: [only(r, wire.ARRAYS, wire.METRICS)],
        "the reply has no statistic",
    ),
    "no momentum": (
        "momentum",
        lambda r, _: [only(r, wire.ARRAYS, wire.STATISTIC, wire.METRICS)],
        "the reply has no momentum",
    ),
    "preconditioner below zero": (
        "local",
        lambda r, _: [with_array(r, np.full(D, -1.0), wire.PRECONDITIONER)],
        "preconditioner: not all numbers are above 0",
    ),
}


def lying(reply: Message, array: Array) -> Message:
    changed = with_array(reply, np.zeros(1))
    record = changed.content.array_records[wire.ARRAYS]
    record[next(iter(record))] = array
    return changed


def pickled() -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    np.save(buffer, np.array([[None] * FEATURES] * CLASSES, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def check(finished: Run, problem: Softmax, reason: str, method: str) -> None:
    """Round 2 was done by the other clients, and said why."""
    clients = list(range(len(SIZES)))
    assert [line["clients"] for line in finished.lines] == [clients] * 4
    (failure, *strangers) = finished.lines[1]["failures"]
    assert failure["client"] == BAD
    assert reason in failure["reason"] and 0 < len(failure["reason"]) <= REASON_AT_MOST + 3
    assert finished.lines[1]["bytes_up"] < 2 * finished.lines[0]["bytes_up"] + 2**22
    assert all(stranger["client"] is None for stranger in strangers)
    assert not any(finished.lines[p]["failures"] for p in (0, 2, 3))
    expected = without(problem, {2: [BAD]}, **METHODS[method][1])
    np.testing.assert_allclose(model_of(finished), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_bad_reply(
    fault: str, problem: Softmax, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, reason = FAULTS[fault]
    tamper(monkeypatch, change, {2})
    check(small(tmp_path / "run", arrays), problem, reason, "savic")


@pytest.mark.parametrize("fault", OF_OTHER_RECORDS)
def test_one_bad_vector_beside_the_model(
    fault: str, problem: Softmax, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, change, reason = OF_OTHER_RECORDS[fault]
    tamper(monkeypatch, change, {2})
    finished = small(tmp_path / "run", arrays, *METHODS[method][0])
    assert finished.lines[1]["failures"] == [{"client": BAD, "reason": reason}]
    if method != "local":  # its client has refreshed its own D all the same
        check(finished, problem, reason, method)


@pytest.mark.parametrize("method", METHODS)
def test_one_reply_that_is_lost(
    method: str, problem: Softmax, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the client has kept by then, the next round is as if it had been away."""
    tamper(monkeypatch, FAULTS["nan"][0] if method == "local" else FAULTS["silence"][0], {2})
    finished = small(tmp_path / "run", arrays, *METHODS[method][0])
    if method == "local":
        assert np.isfinite(finished.model).all()
    else:
        check(finished, problem, "no reply in time", method)


def test_a_second_reply_and_one_to_an_old_message_are_named(
    problem: Softmax, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer to the message counts."""
    double = lambda reply, earlier: [reply, with_metrics(reply, num_examples=99), earlier[-1]]  # noqa: E731
    tamper(monkeypatch, double, {2})
    finished = small(tmp_path / "run", arrays)
    assert finished.lines[1]["failures"] == [
        {"client": BAD, "reason": "a second reply to one message"},
        {"client": BAD, "reason": "a reply to no message of this round"},
    ]
    np.testing.assert_allclose(model_of(finished), without(problem, {}), rtol=0, atol=1e-10)


def failing(monkeypatch: pytest.MonkeyPatch, absent: dict[int, list[int]]) -> None:
    """Let these clients raise in these rounds, where their mini-batches are drawn."""
    batches = training._batches

    def raising(experiment: Any, order: training.Order) -> Any:
        if order.client in absent.get(order.round, []):
            raise OSError("disk full")
        return batches(experiment, order)

    monkeypatch.setattr(training, "_batches", raising)


ALL = list(range(len(SIZES)))


@pytest.mark.parametrize("mode", ["looped", "stacked"])
@pytest.mark.parametrize("method", METHODS)
def test_a_client_that_raises(
    method: str, mode: str, problem: Softmax, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {2: [BAD], 3: [0, BAD]}
    failing(monkeypatch, absent)
    finished = small(tmp_path / "run", arrays, f"engine.mode={mode}", *METHODS[method][0])
    for line in finished.lines:
        assert line["failures"] == [
            {"client": m, "reason": f"client {m}, round {line['round']}, train: OSError: disk full"}
            for m in absent.get(line["round"], [])
        ]
    expected = without(problem, absent, **METHODS[method][1])
    np.testing.assert_allclose(model_of(finished), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_a_round_in_which_all_fail_changes_nothing(
    method: str, problem: Softmax, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = small(tmp_path / "once", arrays, *METHODS[method][0], num_rounds=1)
    failing(monkeypatch, {2: ALL})
    twice = small(tmp_path / "twice", arrays, *METHODS[method][0], num_rounds=2)
    assert np.array_equal(once.model, twice.model)
    assert [f["client"] for f in twice.lines[1]["failures"]] == ALL
    assert (twice.lines[1]["round"], twice.lines[1]["train_loss"], twice.lines[1]["bytes_up"]) == (2, None, 0)
    # Rounds 3 and 4 then do what rounds 2 and 3 would have done.
    finished = small(tmp_path / "run", arrays, *METHODS[method][0])
    assert not finished.lines[2]["failures"] and not finished.lines[3]["failures"]
    if method != "seldom":  # whose refreshes are tied to the number of the round
        expected = without(problem, {}, **(METHODS[method][1] | {"num_rounds": 3}))
        np.testing.assert_allclose(model_of(finished), expected, rtol=0, atol=1e-10)


def test_all_replies_are_lost_when_the_clients_have_already_refreshed_their_d(
    problem: Softmax, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They derive D from displacements: what they hold is then another D than the server's, and it is sent anew."""
    send = InProcessGrid.send_and_receive

    def lost(self: InProcessGrid, messages: Iterable[Message], **options: Any) -> list[Message]:
        sent = list(messages)
        replies = list(send(self, sent, **options))
        return [] if sent[0].content[wire.CONFIG][wire.ROUND] == 2 else replies  # type: ignore[index]

    monkeypatch.setattr(InProcessGrid, "send_and_receive", lost)
    finished = small(tmp_path / "run", arrays, *METHODS["displacement"][0])
    expected = without(problem, {}, statistic="displacement", num_rounds=3)
    np.testing.assert_allclose(model_of(finished), expected, rtol=0, atol=1e-10)


def test_failures_of_the_probe_are_told_with_round_1(
    problem: Softmax, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, {0: [BAD]})
    finished = small(tmp_path / "run", arrays)
    reason = f"client {BAD}, round 0, train: OSError: disk full"
    assert [line["failures"] for line in finished.lines] == [[{"client": BAD, "reason": reason}], [], [], []]
    np.testing.assert_allclose(model_of(finished), without(problem, {0: [BAD]}), rtol=0, atol=1e-10)


def test_a_client_whose_loss_runs_away_fails_and_keeps_nothing(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own D and momentum are those of its last good round, and it takes part again."""
    with np.load(arrays) as found:
        x, y, client = found["x"], found["y"], found["client"]
    # One huge example: its gradient squared is beyond float32.
    x[np.flatnonzero(client == BAD)[0]] = 1e25
    np.savez(tmp_path / "huge.npz", x=x, y=y, client=client)
    overrides = ("dtype=float32", "scaling.scope=local", "client.batch_size=1", "client.local_steps=1")
    settings = {
        k: v for k, v in SETTINGS.items() if k not in ("dtype", "client.batch_size", "client.local_steps")
    }
    settings |= {"data.path": str(tmp_path / "huge.npz"), "num_rounds": 8}
    finished = run(tmp_path / "run", *NATURAL, "scaling=adam", *overrides, settings=settings)
    failed = [line["round"] for line in finished.lines if line["failures"]]
    for line in finished.lines:
        assert all(f["client"] == BAD and "no longer finite" in f["reason"] for f in line["failures"])
    assert 0 < len(failed) < 8, "only in rounds in which it meets that example"
    assert np.isfinite(finished.model).all()
