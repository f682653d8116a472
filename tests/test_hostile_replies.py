"""Whatever one client replies, in any round of any strategy: it is dropped, counted and named, and the others count.

Each strategy of conf/strategy, and those of Flower, runs two rounds on a tiny problem. In every exchange (the probe,
the exchange of gradients, the rounds) one client's reply is replaced by each fault in turn, for each vector that the
method sends, and handed to the check that stands between Grid and strategy in every engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from whole_runs import NATURAL, Run, run, save_arrays

from fedscale_local import compose, rounds, wire
from fedscale_local.replies import usable

SIZES, FEATURES, CLASSES = (4, 9, 6, 5, 7), 3, 4
CLIENTS = 4
"""Of five, so that there is one who was not asked."""
NOT_NEGATIVE = ("second", "first_clock", "second_clock")
"""Roots are taken of the first, and the others count steps."""
FLOWER = {
    name: {"_target_": f"flwr.serverapp.strategy.{name}", **more}
    for name, more in {
        "FedAvg": {},
        "FedAdam": {},
        "FedMedian": {},
        "Krum": {"num_malicious_nodes": 1},
    }.items()
}
"""Of all of Flower's the replies are checked alike."""
ADAM = {"scaling.rule": "adam", "scaling.alpha": 0.05}
SCALED: dict[str, dict[str, Any]] = {
    "savic": ADAM,
    "savic, displacement": ADAM | {"scaling.statistic": "displacement"},
    "savic, mixing": ADAM | {"scaling.scope": "local", "strategy.mixing": "preconditioned"},
    "savic, momentum": ADAM | {"client.momentum": 0.5, "client.momentum_buffer": "averaged"},
}
OWN = sorted(set(compose.groups()["strategy"].choices) - {"flower", "savic"})
Change = Callable[[Message], list[Any]]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(11)
    x = [rng.normal(size=(n, FEATURES)) for n in SIZES]
    return save_arrays(
        tmp_path_factory.mktemp("arrays") / "five.npz", x, [rng.integers(0, CLASSES, n) for n in SIZES]
    )


def like(reply: Message, content: RecordDict) -> Message:
    return Message(content=content, metadata=reply.metadata)  # type: ignore[call-overload,no-any-return]


def with_record(reply: Message, key: str, arrays: dict[str, np.ndarray] | None) -> Message:
    """The reply with these arrays as its record of that name, or without such a record."""
    records: dict[str, Any] = {k: record for k, record in reply.content.items() if k != key}
    if arrays is not None:
        records[key] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return like(reply, RecordDict(records))


def with_metrics(reply: Message, **metrics: Any) -> Message:
    changed = dict(reply.content.metric_records[wire.METRICS])
    changed |= {name.replace("_", "-"): value for name, value in metrics.items()}
    kept = MetricRecord({name: value for name, value in changed.items() if value is not None})
    return like(reply, RecordDict({**reply.content, wire.METRICS: kept}))


def of_vectors(reply: Message, ours: bool) -> Iterator[tuple[str, str, Change]]:
    """(fault, what the reason says, change) for each record of the reply."""
    for key, record in reply.content.array_records.items():
        plain = {name: array.numpy() for name, array in record.items()}
        first = next(iter(plain))

        def changed(how: Callable[[np.ndarray], np.ndarray], key: str = key, plain: Any = plain) -> Change:
            first = next(iter(plain))
            return lambda reply: [with_record(reply, key, plain | {first: how(plain[first])})]

        def spoiled(value: float) -> Callable[[np.ndarray], np.ndarray]:
            return lambda a: np.concatenate([[value], a.ravel()[1:]]).astype(a.dtype).reshape(a.shape)

        size = plain[first].size
        huge = math.sqrt(np.finfo(plain[first].dtype).max / max(size, 1))
        yield f"{key} nan", f"{key}: not all numbers are finite", changed(spoiled(math.nan))
        yield f"{key} inf", f"{key}: not all numbers are finite", changed(spoiled(-math.inf))
        yield f"{key} huge", f"{key}: a number of size", changed(spoiled(huge))
        yield (
            f"{key} shape",
            f"{key}: array {first!r} is",
            changed(lambda a: np.zeros((*a.shape, 2), a.dtype)),
        )
        yield f"{key} empty", f"{key}: array {first!r} is", changed(lambda a: np.zeros(0, a.dtype))
        for dtype in ("float32", "U3"):
            yield (
                f"{key} {dtype}",
                f"{key}: array {first!r} is",
                changed(lambda a, d=dtype: np.ones(a.shape, d)),
            )
        renamed = {(f"{name}x" if name == first else name): array for name, array in plain.items()}
        yield (
            f"{key} renamed",
            f"{key}: array {first!r} is missing",
            lambda r, k=key, a=renamed: [with_record(r, k, a)],
        )
        if ours:
            yield f"{key} missing", f"the reply has no {key}", lambda r, k=key: [with_record(r, k, None)]
        if key == wire.PRECONDITIONER:
            yield f"{key} zero", f"{key}: not all numbers are above 0", changed(spoiled(0.0))
        if key in NOT_NEGATIVE:
            yield f"{key} negative", f"{key}: a number below 0", changed(spoiled(-1e-9))


def of_metrics(ours: bool, steps: bool) -> Iterator[tuple[str, str, Change]]:
    most = sum(SIZES)
    table: list[tuple[str, list[Any]]] = [
        ("num-examples", [0, -1, -0.5, math.nan, math.inf, [1, 2], most + 1, 10**400])
    ]
    if ours:
        table += [("client", [0, -1, 10**9]), ("train-loss", [math.nan, -math.inf, [0.1], 10**400])]
        table += [("local-steps", [-1, math.nan, 10**9, [1]] + [0] * steps)]
    for name, values in table:
        for value in [*values, None]:
            yield f"{name}={str(value)[:9]}", "", lambda r, n=name, v=value: [with_metrics(r, **{n: v})]
    if not ours:
        yield "train-loss=10**400", "64 bits", lambda r: [with_metrics(r, train_loss=10**400)]


def of_replies() -> Iterator[tuple[str, str, Change]]:
    metrics = [wire.METRICS]
    yield "error", "disk full", lambda r: [Message(error=Error(0, "disk full"), metadata=r.metadata)]
    yield "silence", "no reply in time", lambda r: []
    yield "empty", "", lambda r: [like(r, RecordDict())]
    yield (
        "no metrics",
        "",
        lambda r: [like(r, RecordDict({k: v for k, v in r.content.items() if k not in metrics}))],
    )
    oversized = ArrayRecord({"more": Array(np.zeros(2**18))})
    yield "oversized", "its arrays hold", lambda r: [like(r, RecordDict({**r.content, "beside": oversized}))]
    yield "long metrics", "its metrics hold", lambda r: [with_metrics(r, history=[0.5] * 2**17)]


def named(reply: Message, **metadata: Any) -> Message:
    """A copy of the reply that says something else of where it comes from or belongs to."""
    told = copy(reply.metadata)
    told.__dict__.update({f"_{name}": value for name, value in metadata.items()})
    return Message(content=reply.content, metadata=told)  # type: ignore[call-overload,no-any-return]


def checked(name: str, seen: list[str]) -> Callable[..., Any]:
    """In the place of `usable`: every fault on the second of the clients asked; then what there really was."""

    def check(experiment: Any, strategy: Any, round: int, sent: Any, replies: Any, client_of: Any) -> Any:
        sent, replies = list(sent), list(replies)
        ours = hasattr(strategy, "expects")
        clients = [client_of[message.metadata.dst_node_id] for message in sent]
        assert [client_of[reply.metadata.src_node_id] for reply in replies] == clients
        bad, reply = clients[1], replies[1]
        steps = ours and wire.ARRAYS in strategy.expects(round)

        def outcome(instead: list[Any], before: bool = False) -> Any:
            others = [*replies[:1], *replies[2:]]
            put = instead + others if before else others + instead
            good, failures = usable(experiment, strategy, round, sent, put, client_of)
            return [client_of[message.metadata.src_node_id] for message in good], good, failures

        for fault, reason, change in (*of_vectors(reply, ours), *of_metrics(ours, steps), *of_replies()):
            kept, _, failures = outcome(change(reply))
            told = f"{name}, round {round}, {fault}: {failures}"
            assert kept == sorted(set(clients) - {bad}), told
            assert [failure["client"] for failure in failures] == [bad], told
            assert reason in failures[0]["reason"] and failures[0]["reason"], told
            seen.append(fault)

        # What is beside a good reply takes nothing from it.
        other = with_metrics(reply, num_examples=1)
        stranger = next(node for node, client in client_of.items() if client not in clients)
        for instead, before, blamed, reason in (
            ([reply, other], False, bad, "a second reply to one message"),
            ([reply, named(other, reply_to_message_id="0")], True, bad, "a reply to no message of this round"),
            ([named(other, src_node_id=stranger, reply_to_message_id="0"), reply], True, client_of[stranger],
             "a reply to no message of this round"),
            ([named(other, src_node_id=stranger), reply], True, client_of[stranger],
             f"a reply to the message of client {bad}"),
            ([named(other, src_node_id=sent[0].metadata.dst_node_id), reply], True, clients[0],
             f"a reply to the message of client {bad}"),
            ([None, reply], True, None, "expected a Message as reply, found NoneType"),
            (["reply", reply], True, None, "expected a Message as reply, found str"),
        ):  # fmt: skip
            kept, good, failures = outcome(instead, before)
            assert kept == sorted(clients) and good[kept.index(bad)] is reply
            assert failures == [{"client": blamed, "reason": reason}]
        return usable(experiment, strategy, round, sent, replies, client_of)

    return check


def small(name: str, run_dir: Path, arrays: Path, **more: Any) -> Run:
    settings: dict[str, Any] = {
        "data.path": str(arrays), "dtype": "float64", "num_rounds": 2, "clients_per_round": CLIENTS,
        "client.batch_size": "full", "client.local_steps": 2, "client.step_size": 0.05, "engine.mode": "looped",
    }  # fmt: skip
    if name in FLOWER:
        settings["strategy"] = {"name": "flower", **FLOWER[name], "fraction_train": CLIENTS / len(SIZES)}
    chosen = "flower" if name in FLOWER else "savic" if name in SCALED else name
    return run(run_dir, *NATURAL, f"strategy={chosen}", settings=settings | SCALED.get(name, {}) | more)


@pytest.mark.parametrize("name", [*OWN, *SCALED, *FLOWER])
def test_every_fault_is_dropped_and_named(
    name: str, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(rounds, "usable", checked(name, seen))
    finished = small(name, tmp_path / "checked", arrays)
    assert not any(line["failures"] for line in finished.lines)
    if name in ("mime", "FedAvg"):
        monkeypatch.undo()
        assert finished.bytes == small(name, tmp_path / "plain", arrays).bytes, (
            "to look at replies changes nothing"
        )
    assert {"arrays nan", "arrays huge", "num-examples=0", "silence", "oversized"} <= set(seen)
    expected = {
        "savic": "statistic nan", "savic, mixing": "preconditioner zero", "savic, momentum": "momentum huge",
        "scaffold": "control nan", "mime": "mean_gradient shape", "local_adam_averaged": "second negative",
        "des_loc": "second_clock negative", "fedadamw": "second inf", "fafed": "first renamed",
    }  # fmt: skip
    assert expected.get(name, "arrays inf") in seen


HUGE = math.sqrt(np.finfo(np.float64).max / ((FEATURES + 1) * CLASSES)) / 65
"""Nearly the largest that is taken."""
BEARING = ("fedmedian", "trimmed_mean", "krum", "multikrum", "bulyan", "geometric_median", "norm_clipping")
OTHERS = ("fedavg", "fedyogi", "fedscaled", "feddyn", "fednova", "scaffold", "mime", "des_loc", "fafed", "fedmuon",
          *SCALED, "FedAdam", "FedMedian", "Krum")  # fmt: skip


@pytest.mark.parametrize("name", [*BEARING, *OTHERS])
def test_the_largest_numbers_that_are_taken_end_no_run(
    name: str, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain mean is lost then, and its clients say so; rules that bear with liars are where they would be."""

    def lied(experiment: Any, strategy: Any, round: int, sent: Any, replies: Any, client_of: Any) -> Any:
        replies = list(replies)
        for key, record in replies[1].content.array_records.items() if replies[1].has_content() else ():
            huge = {part: np.full_like(array.numpy(), HUGE) for part, array in record.items()}
            replies[1] = with_record(replies[1], key, huge)
        good, failures = usable(experiment, strategy, round, sent, replies, client_of)
        assert round > 1 or not failures, "they are taken"
        return good, failures

    monkeypatch.setattr(rounds, "usable", lied)
    own = {"trimmed_mean": {"strategy.combine.trim": 0.25}, "multikrum": {"strategy.combine.num_selected": 2}}
    finished = small(name, tmp_path / "run", arrays, num_rounds=3, **own.get(name, {}))
    assert [line["round"] for line in finished.lines] == [1, 2, 3]
    if name in BEARING:
        assert not any(line["failures"] for line in finished.lines)
        assert np.abs(finished.model).max() < 1
