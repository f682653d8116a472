"""Secure aggregation in whole runs: what the server computes, everything that it receives, and when it gets nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from scipy import stats
from whole_runs import NATURAL, Run, configured, run, save_arrays

from clients import client_app
from fedscale_local import flower_adapter as adapter
from fedscale_local import lifecycle, wire
from fedscale_local import run_dir as run_dirs
from fedscale_local.client_store import InMemory, OnDisk
from fedscale_local.config import from_container, to_container, to_json
from fedscale_local.engines.in_process import FIRST_NODE, InProcessGrid
from fedscale_local.errors import ClientError, ConfigError, FedscaleError
from fedscale_local.secagg import client as protocol
from fedscale_local.secagg import primitives, rounding

CLIENTS, CLASSES, FEATURES = 10, 4, 300
SIZES = (4, 9, 1, 6, 5, 7, 3, 8, 2, 6)
STAGES = ("keys", "shares", "masked", "unmask")
METHODS: dict[str, tuple[str, ...]] = {
    "fedavg": ("strategy=fedavg",),
    "fedavg, uniform": ("strategy=fedavg", "strategy.weighting=uniform"),
    "savic, whose statistic is summed up too": ("strategy=savic", "client.step_size=1e-3"),
    "savic, own D, mixed": ("strategy=savic", "scaling.scope=local", "strategy.mixing=preconditioned"),
    "savic, momentum": ("strategy=fedavg", "client.momentum=0.5", "client.momentum_buffer=averaged"),
    "scaffold": ("strategy=scaffold",),
    "mime, two sums a round": ("strategy=mime",),
    "epochs": ("strategy=fedavg", "client=epochs", "client.local_epochs=2"),
}


SECURE = "secure=secagg"


@cache
def section() -> dict[str, Any]:
    """The section secure, as it is by default."""
    return to_container(configured(SECURE))["secure"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(11)
    x = [rng.normal(size=(n, FEATURES)) / FEATURES**0.5 for n in SIZES]
    return save_arrays(
        tmp_path_factory.mktemp("arrays") / "ten.npz", x, [rng.integers(0, CLASSES, n) for n in SIZES]
    )


def small(run_dir: Path, arrays: Path, *overrides: str, **more: Any) -> Run:
    """Ten clients with a logistic model of 1,204 parameters; more: keys with `__` for the dots."""
    settings = {
        "data.path": str(arrays),
        "dtype": "float64",
        "num_rounds": 2,
        "client.batch_size": 4,
        "engine.mode": "looped",
    }
    own = {"client.local_steps": 3} if "client=epochs" not in overrides else {}
    if SECURE in overrides:  # put in its place, so that nothing is composed twice
        own["secure"] = deepcopy(section())
        overrides = tuple(override for override in overrides if override != SECURE)
    return run(
        run_dir,
        *NATURAL,
        "model=logistic",
        *overrides,
        settings=settings | own | {k.replace("__", "."): v for k, v in more.items()},
    )


class Wire(NamedTuple):
    """What the server and its clients said to each other, and who was made to vanish."""

    sent: list[Message]
    received: list[tuple[str, int, RecordDict]]
    """(stage, client, content)"""
    lost: dict[tuple[int, str], set[int]]
    """(round, stage) -> who does not answer; the plain run's only stage is masked."""


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Wire:
    watched, send = Wire([], [], {}), InProcessGrid.send_and_receive

    def watching(grid: InProcessGrid, messages: Iterable[Message], **options: Any) -> list[Message]:
        messages = list(messages)
        watched.sent.extend(messages)
        told = [stage_of(message) for message in messages]
        lost = [
            watched.lost.get((adapter.round_of(m), stage), set())
            for m, stage in zip(messages, told, strict=True)
        ]
        nodes = [message.metadata.dst_node_id - FIRST_NODE for message in messages]
        reached = [m for m, node, gone in zip(messages, nodes, lost, strict=True) if node not in gone]
        for message in messages:
            adapter.stamp(message, f"lost {id(message)}")
        replies = list(send(grid, reached, **options))
        for reply in replies:
            client = reply.metadata.src_node_id - FIRST_NODE
            assert reply.has_content(), reply.error.reason
            watched.received.append((told[0], client, reply.content))
        return replies

    monkeypatch.setattr(InProcessGrid, "send_and_receive", watching)
    return watched


def stage_of(message: Message) -> str:
    record = message.content.config_records.get(wire.SECURE_STAGE, ConfigRecord({"stage": "masked"}))
    return str(record["stage"])


# ---------------------------------------------------------------- the sum


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_what_it_was_within_quantisation(name: str, arrays: Path, tmp_path: Path) -> None:
    """With 30 bits over a range of 10 a step is 2e-8. A coordinate moves by a few steps in two rounds; D-hat, whose
    range of 100 is what mixing divides by, by ten times as much."""
    plain = small(tmp_path / "plain", arrays, *METHODS[name])
    more = {f"secure__range__{group}": 10.0 for group in ("parameters", "statistic", "momentum", "control")}
    secure = small(
        tmp_path / "secure", arrays, *METHODS[name], SECURE, secure__bits=30, secure__modulus_bits=64, **more
    )
    assert np.abs(plain.model).max() > 1e-3, "something was learnt"
    np.testing.assert_allclose(secure.model, plain.model, rtol=0, atol=5e-6 if "mixed" in name else 3e-7)
    for own, other in zip(secure.lines, plain.lines, strict=True):
        assert own["clients"] == other["clients"] and own["failures"] == []
        assert own["train_loss"] == pytest.approx(other["train_loss"], abs=1e-6)
        assert own["secure_clipped"] == 0


def test_the_sum_of_ten_with_three_dropouts_is_the_plain_sum(
    arrays: Path, tmp_path: Path, line: Wire
) -> None:
    """Two vanish after they have shared their secrets, and are in no sum; one after its masked vector, and is in it."""
    line.lost.update({(1, "masked"): {2, 5}})
    plain = small(tmp_path / "plain", arrays, "strategy=fedavg", num_rounds=1)
    line.lost[1, "unmask"] = {7}
    more = {"num_rounds": 1, "secure__bits": 16}
    secure = small(tmp_path / "secure", arrays, "strategy=fedavg", SECURE, **more)
    # A mean of numbers, each within a step of what it was; the range is 1.
    np.testing.assert_allclose(secure.model, plain.model, rtol=0, atol=1 / rounding.most(16))
    assert np.abs(plain.model).max() > 100 / rounding.most(16)
    assert [(f["client"], f["reason"]) for f in secure.lines[0]["failures"]] == [
        (2, "masked: no reply in time"),
        (5, "masked: no reply in time"),
        (7, "unmask: no reply in time"),
    ]
    assert secure.lines[0]["clients"] == list(range(CLIENTS))


def test_dropouts_before_secrets_are_shared_and_few_neighbours(
    arrays: Path, tmp_path: Path, line: Wire
) -> None:
    """Four neighbours each, of five holders with oneself; one vanishes at each stage, far enough from each other."""
    line.lost[1, "masked"] = {0, 3, 9}
    plain = small(tmp_path / "plain", arrays, "strategy=fedavg", num_rounds=1)
    line.lost.update({(1, "keys"): {0}, (1, "shares"): {3}, (1, "masked"): {9}})
    more = {"num_rounds": 1, "secure__neighbours": 4, "secure__threshold": 0.51}
    secure = small(tmp_path / "secure", arrays, "strategy=fedavg", SECURE, **more)
    np.testing.assert_allclose(secure.model, plain.model, rtol=0, atol=1 / rounding.most(16))
    reasons = [f["reason"].split(":")[0] for f in secure.lines[0]["failures"]]
    assert reasons == ["keys", "shares", "masked"]


def test_the_same_run_gives_the_same_bytes_whatever_the_masks(
    arrays: Path, tmp_path: Path, line: Wire
) -> None:
    first, second = (small(tmp_path / name, arrays, "strategy=savic", SECURE, num_rounds=1) for name in "ab")
    assert first.bytes == second.bytes
    vectors = [content[wire.ARRAYS]["flat"].numpy() for s, _, content in line.received
               if s == "masked" and wire.ARRAYS in content]  # fmt: skip
    assert len(vectors) == 2 * CLIENTS
    assert len({vector.tobytes() for vector in vectors}) == len(vectors), "other masks in each run"


@pytest.mark.parametrize("kind", ["central", "local"])
def test_with_privacy_the_noise_is_the_same_and_so_is_the_charge(
    kind: str, arrays: Path, tmp_path: Path
) -> None:
    """Seeded noise, so that both runs have the same; the rounding of 30 bits is far below it."""
    overrides = ("strategy=savic", f"privacy={kind}", "sampling=fixed", "client.step_size=1e-3")
    more = {"privacy__noise_multiplier": 1e-3}
    plain = small(tmp_path / "plain", arrays, *overrides, **more)
    more |= {"secure__range__parameters": 4.0, "secure__range__statistic": 4.0}
    more |= {"secure__bits": 30, "secure__modulus_bits": 64}
    secure = small(tmp_path / "secure", arrays, *overrides, SECURE, **more)
    np.testing.assert_allclose(secure.model, plain.model, rtol=0, atol=1e-5)
    assert [line["epsilon"] for line in secure.lines] == [line["epsilon"] for line in plain.lines]
    assert all(line["train_loss"] is None and "secure_clipped" not in line for line in secure.lines)


def test_with_central_privacy_no_vector_is_longer_than_its_bound_once_it_is_rounded(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few bits, so that rounding alone adds much: what is masked is still within the bound that noise is made for."""
    lengths = []
    original = rounding.quantised

    def watched(vector: torch.Tensor, largest: float, bits: int, stream: torch.Generator) -> Any:
        steps, clipped = original(vector, largest, bits, stream)
        if len(vector) > 1:
            lengths.append(float(rounding.restored(steps, largest, bits, torch.float64).norm()))
        return steps, clipped

    monkeypatch.setattr(rounding, "quantised", watched)
    overrides = ("strategy=fedavg", "privacy=central", "sampling=fixed", SECURE, "client.step_size=5")
    small(tmp_path / "run", arrays, *overrides, secure__bits=8, privacy__clip__parameters=0.5, num_rounds=1)
    assert len(lengths) == CLIENTS
    assert 0.2 < max(lengths) <= 0.5


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_resumed_run_ends_with_the_same_bytes_and_no_checkpoint_has_a_secret(
    place: str, arrays: Path, tmp_path: Path, line: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients keep control variates, which checkpoints have; client 2 keeps its secrets, as the server gave it up."""
    line.lost.update({(1, "masked"): {2}, (2, "masked"): {2}})
    whole, half = (
        small(
            tmp_path / name,
            arrays,
            "strategy=scaffold",
            SECURE,
            num_rounds=rounds,
            checkpoint_every=1,
            engine__client_state=place,
        )
        for name, rounds in (("whole", 2), ("half", 1))
    )
    monkeypatch.setattr("fedscale_local.reports.write", lambda run_dir: None)
    config = from_container(run_dirs.head(half.run_dir)[0])
    lifecycle.resume(half.run_dir, config.model_copy(update={"num_rounds": 2}))
    for name in ("rounds.jsonl", "model.safetensors"):
        assert (half.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes()
    kept = b"".join(p.read_bytes() for p in half.run_dir.glob("checkpoints/**/*") if p.is_file())
    assert b"own_control" in kept and b"masking" not in kept


# ---------------------------------------------------------------- what the server receives


def test_no_message_tells_of_a_single_client(
    arrays: Path, tmp_path: Path, line: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record of every reply of a run with dropouts is looked at: it is a public key, a sealed pair of shares, a
    share, or a vector of uniform bytes; and of each client the shares are all of one kind."""
    plain: list[np.ndarray] = []
    split: list[tuple[bytes, list[bytes]]] = []
    mask, share, fresh = protocol.masked, primitives.shares, protocol.fresh_secrets
    made: list[protocol.Secrets] = []

    def noting_masked(secrets: Any, client: int, keys: Any, residues: np.ndarray) -> np.ndarray:
        plain.append(residues)
        return mask(secrets, client, keys, residues)

    def noting_shares(secret: bytes, threshold: int, count: int) -> list[bytes]:
        split.append((secret, share(secret, threshold, count)))
        return split[-1][1]

    def noting_secrets() -> protocol.Secrets:
        made.append(fresh())
        return made[-1]

    monkeypatch.setattr(protocol, "masked", noting_masked)
    monkeypatch.setattr(primitives, "shares", noting_shares)
    monkeypatch.setattr(protocol, "fresh_secrets", noting_secrets)
    line.lost.update({(1, "masked"): {2, 5}, (1, "unmask"): {7}, (2, "shares"): {1}, (2, "masked"): {0}})
    finished = small(tmp_path / "run", arrays, "strategy=savic", SECURE)
    assert [f["client"] for f in finished.lines[0]["failures"]] == [2, 5, 7], "and the round had a sum"
    assert finished.lines[1]["test_loss"] is None and finished.lines[1]["train_loss"] is not None

    vectors: list[np.ndarray] = []
    revealed: set[bytes] = set()
    for stage, _client, content in line.received:
        assert not content.metric_records and not content.config_records, "nothing but noise"
        records = {key: record["flat"].numpy() for key, record in content.array_records.items()}
        assert all(list(record) == ["flat"] for record in content.array_records.values())
        if stage == "masked":
            assert set(records) <= {wire.ARRAYS, wire.STATISTIC, wire.SECURE}
            order = [key for key in (wire.ARRAYS, wire.STATISTIC, wire.SECURE) if key in records]
            vectors.append(np.concatenate([records[key].view(np.uint32) for key in order]))
        else:
            assert set(records) == {wire.SECURE} and records[wire.SECURE].dtype == np.uint8
        data = records[wire.SECURE].tobytes()
        if stage == "unmask":
            revealed |= {data[i : i + 16] for i in range(0, len(data), 16)}
        assert not any(seed in data for secrets in made for seed in secrets), f"a seed as it is, in {stage}"

    assert len(vectors) == len(plain) == CLIENTS + (CLIENTS - 2) + (CLIENTS - 2), (
        "the probe's and two rounds'"
    )
    # The chance that any of these falls below 1e-9 is less than 1e-7; what is masked is far below it.
    for vector, before in zip(vectors, plain, strict=True):
        assert len(vector) == len(before) > 1000
        assert uniformity(vector) > 1e-9 > uniformity(before)
        assert uniformity(vector - before) > 1e-9, "nor is the mask anything else"
        assert (vector == before).mean() < 0.01
    sums = {tuple(a[:50] + b[:50]) for a in vectors for b in vectors if a is not b and len(a) == len(b)}
    assert not sums & {tuple(a[:50] + b[:50]) for a in plain for b in plain if len(a) == len(b)}, (
        "nor of any two"
    )

    kinds = {secret: sum(part in revealed for part in parts) for secret, parts in split}
    for secrets in made:
        own, masking = kinds.get(secrets.own, 0), kinds.get(secrets.masking, 0)
        assert own == 0 or masking == 0, "both kinds of share of one client"
    gone = sum(kinds.get(secrets.masking, 0) > 0 for secrets in made)
    assert gone == 3, "clients 2 and 5 in the first round, 0 in the second"
    assert sum(kinds.get(secrets.own, 0) > 0 for secrets in made) == len(vectors)


def uniformity(vector: np.ndarray) -> float:
    """The probability of so uneven a count of byte values, if all were equally likely."""
    counts = np.bincount(np.frombuffer(vector.tobytes(), dtype=np.uint8), minlength=256)
    return float(stats.chisquare(counts).pvalue)


def test_a_failure_is_told_without_its_reason(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss or a norm in the reason would be of one client."""
    original = client_app.train

    def failing(experiment: Any, cohort: Any) -> list[Any]:
        done = original(experiment, cohort)
        return [
            ClientError("train", 4, 1, "the loss is 1234.5") if order.client == 4 else outcome
            for order, outcome in zip(cohort, done, strict=True)
        ]

    monkeypatch.setattr(client_app, "train", failing)
    finished = small(tmp_path / "run", arrays, "strategy=fedavg", SECURE, num_rounds=1)
    (failure,) = finished.lines[0]["failures"]
    assert failure["client"] == 4 and failure["reason"].startswith("masked: it failed; the reason stays")


# ---------------------------------------------------------------- too few


@pytest.mark.parametrize(
    ("stage", "gone"), [("keys", {0, 1, 2, 3, 4}), ("shares", {5, 6, 7, 8, 9}), ("masked", {0, 2, 4, 6, 8})]
)
def test_too_many_dropouts_unmask_nothing(
    stage: str, gone: set[int], arrays: Path, tmp_path: Path, line: Wire
) -> None:
    """Five of ten, where six are needed: the round is skipped, and the next one is as if it had never been."""
    line.lost[1, stage] = gone
    finished = small(tmp_path / "run", arrays, "strategy=fedavg", SECURE, num_rounds=1)
    assert not finished.model.any(), "the model stayed where it began"
    last = finished.lines[0]["failures"][-1]
    assert last["client"] is None
    assert last["reason"].startswith(f"5 of 10 clients are left in the stage {stage}, and 6 are needed")
    assert "nothing is unmasked" in last["reason"]
    asked = {stage_of(message) for message in line.sent}
    assert asked == set(STAGES[: STAGES.index(stage) + 1]), "no later stage asked anybody"


def test_too_few_in_the_last_stage_leave_the_sum_masked(arrays: Path, tmp_path: Path, line: Wire) -> None:
    line.lost[1, "masked"], line.lost[1, "unmask"] = {0, 1}, {2, 3, 4}
    with pytest.raises(
        FedscaleError, match=r"5 of 10 clients are left in the stage unmask.*nothing is unmasked"
    ):
        small(tmp_path / "run", arrays, "strategy=fedavg", SECURE, on_too_few="stop")


def test_too_few_neighbours_of_one_client_unmask_nothing(arrays: Path, tmp_path: Path, line: Wire) -> None:
    """Enough of all, but not of those beside each other: with two neighbours all three holders may be needed."""
    line.lost[1, "masked"] = {0}
    more = {"secure__neighbours": 2, "secure__threshold": 0.7, "num_rounds": 1}
    finished = small(tmp_path / "run", arrays, "strategy=fedavg", SECURE, **more)
    assert "2 of 3 neighbours of client" in finished.lines[0]["failures"][-1]["reason"]
    assert "unmask" not in {stage_of(message) for message in line.sent}


def test_a_client_that_sends_noise_spoils_no_model(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell who it was, but numbers that no sum of honest clients can have are seen."""
    original = protocol.masked

    def lying(secrets: Any, client: int, keys: Any, residues: np.ndarray) -> np.ndarray:
        return original(secrets, client, keys, residues + np.uint32(2**30) if client == 3 else residues)

    monkeypatch.setattr(protocol, "masked", lying)
    finished = small(tmp_path / "run", arrays, "strategy=fedavg", SECURE, num_rounds=1)
    assert "no sum of theirs can have" in finished.lines[0]["failures"][-1]["reason"]
    assert not finished.model.any()


# ---------------------------------------------------------------- a client says no


@pytest.fixture
def four(arrays: Path) -> Any:
    """Four clients and their contexts after the stage shares, and a function that asks one for a stage."""
    settings = {"data.path": str(arrays), "client.local_steps": 1}
    config = configured(*NATURAL, "model=logistic", "strategy=fedavg", SECURE, settings=settings)
    adapter.become_server()
    contexts = [
        adapter.new_context(FIRST_NODE + i, {wire.PARTITION: i}, {"config": to_json(config)})
        for i in range(4)
    ]

    def ask(client: int, stage: str, data: bytes | None = None, **told: Any) -> Message:
        records: dict[str, Any] = {
            wire.SECURE_STAGE: ConfigRecord({wire.ROUND: 1, "stage": stage, **told}),
        }
        if data is not None:
            records[wire.SECURE] = wire.vector_record(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        message = adapter.stamp(adapter.message_to(FIRST_NODE + client, RecordDict(records)), "1")
        return client_app.cohort([message], [contexts[client]])[0]

    keys = b"".join(told(ask(i, "keys")) for i in range(4))
    sealed = [told(ask(i, "shares", keys, holders=[0, 1, 2, 3])) for i in range(4)]
    return contexts, ask, keys, sealed


def told(reply: Message) -> bytes:
    assert reply.has_content(), reply.error.reason
    return reply.content[wire.SECURE]["flat"].numpy().tobytes()  # type: ignore[no-any-return,index,union-attr]


def said_masked(contexts: Any, client: int, sealed: list[bytes]) -> None:
    """As if this client had sent its masked vector."""
    state = contexts[client].state[wire.SECURE]
    size, others = protocol.SEALED, [i for i in range(4) if i != client]
    parts = []
    for owner in others:
        place = [i for i in range(4) if i != owner].index(client)
        parts.append(sealed[owner][32 + place * size : 32 + (place + 1) * size])
    state["stage"], state["from"], state["sealed"] = "masked", others, b"".join(parts)


def test_a_client_gives_each_share_once_and_one_kind_of_it(four: Any) -> None:
    contexts, ask, _, sealed = four
    said_masked(contexts, 0, sealed)
    for arrived, reason in (
        ([0, 1], "2 of 4 neighbours are there, 3 are needed"),
        ([1, 2, 3], "whose shares did not come"),
        ([0, 1, 2, 9], "whose shares did not come"),
    ):
        assert reason in ask(0, "unmask", arrived=arrived).error.reason
    assert len(told(ask(0, "unmask", arrived=[0, 1, 2]))) == 4 * 16
    assert "out of turn" in ask(0, "unmask", arrived=[0, 1, 2, 3]).error.reason
    assert wire.SECURE not in contexts[0].state, "its secrets are gone"


def test_a_client_shares_no_secrets_among_too_few_or_for_keys_that_are_not_its_own(four: Any) -> None:
    _, ask, keys, _ = four
    size = protocol.PUBLIC
    for held, mine in (([0], keys[:size]), ([0, 1, 2], keys[size : 4 * size]), ([0, 1, 1], keys[: 3 * size])):
        told(ask(0, "keys"))
        reply = ask(0, "shares", mine, holders=held)
        assert reply.has_error() and "its own keys came back changed" in reply.error.reason
    fresh = told(ask(0, "keys"))
    assert "1 of 1 neighbours" in ask(0, "shares", fresh, holders=[0]).error.reason


def test_a_vector_without_masks_is_never_sent(four: Any) -> None:
    """Neither to who asks as if nothing were secure, nor twice under the same masks."""
    contexts, _, _, _ = four
    model = np.zeros((CLASSES, FEATURES), dtype=np.float32)
    record = ArrayRecord()
    record["weight"], record["bias"] = Array(model), Array(model[:, 0].copy())
    plain = RecordDict({wire.ARRAYS: record, wire.CONFIG: ConfigRecord({wire.ROUND: 1})})
    message = adapter.stamp(adapter.message_to(FIRST_NODE, plain), "2")
    reply = client_app.cohort([message], [contexts[0]])[0]
    assert "secure=secagg sends none" in reply.error.reason
    asked = ConfigRecord({wire.ROUND: 1, "stage": "masked", "from": [1, 2, 3]})
    sealed = wire.vector_record(torch.zeros(3 * protocol.SEALED, dtype=torch.uint8))
    again = RecordDict({**plain, wire.SECURE_STAGE: asked, wire.SECURE: sealed})
    message = adapter.stamp(adapter.message_to(FIRST_NODE, again), "3")
    first, second = (client_app.cohort([message], [contexts[0]])[0] for _ in range(2))
    assert first.has_content() and "out of turn" in second.error.reason
    kept = contexts[0].state[wire.SECURE]
    assert "own" not in kept and "masking" not in kept


def test_no_checkpoint_fetches_the_secrets(four: Any, tmp_path: Path) -> None:
    contexts, *_ = four
    message = adapter.stamp(adapter.message_to(FIRST_NODE, RecordDict(), adapter.STATE), "4")
    contexts[0].state["memory"] = wire.vector_record(torch.ones(2))
    assert wire.SECURE in contexts[0].state
    assert list(client_app.tell_state(message, contexts[0]).content) == ["memory", wire.PARTITION]
    for states in (InMemory(), OnDisk(tmp_path)):
        states[FIRST_NODE] = contexts[0].state
        kept = InProcessGrid(client_app.app, 1, {}, states=states).settle_clients(1, is_due=True)
        assert set(states[FIRST_NODE]) == {"memory", wire.SECURE}
        assert list((kept.dumped or OnDisk(tmp_path, kept.filed))[FIRST_NODE]) == ["memory"]


# ---------------------------------------------------------------- what is refused

REFUSED: Mapping[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "median": (
        ("strategy=fedmedian",),
        {},
        "strategy.combine.rule=median: with secure=secagg the server knows",
    ),
    "flower": (
        ("strategy._target_=flwr.serverapp.strategy.FedAvg",),
        {},
        "secure=secagg: somebody else's strategy",
    ),
    "fednova, epochs": (
        ("strategy=fednova", "client=epochs", "client.local_epochs=1"),
        {},
        "cannot divide each client's work",
    ),
    "mean of squares": ((), {"scaling.combine": "mean_of_squares"}, "no mean of squares can be told"),
    "codec": ((), {"sending.parameters.up": "int8"}, "sending.parameters.up=int8: with secure=secagg masked"),
    "drift": ((), {"diagnostics": "drift"}, "diagnostics=drift: with secure=secagg nobody knows"),
    "wait": ((), {"on_too_few": "wait"}, "on_too_few=wait: with secure=secagg a client that is asked twice"),
    "poisson": ((), {"sampling": "poisson"}, "sampling=poisson: secure=secagg needs"),
    "two": ((), {"clients_per_round": 2}, "clients_per_round=2: with secure=secagg a sum of so few"),
    "odd": ((), {"secure.neighbours": 3}, "secure.neighbours=3: expected an even number, 2 or more, or null"),
    "half": (
        (),
        {"secure.threshold": 0.5},
        "secure.threshold=0.5: expected a number, more than 0.5, at most 1",
    ),
    "modulus": (
        (),
        {"secure.modulus_bits": 48},
        "secure.modulus_bits=48: expected a number of bits, 32 or 64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_with_value_reason_and_remedy(name: str) -> None:
    overrides, settings, expected = REFUSED[name]
    with pytest.raises(ConfigError) as refused:
        configured(*overrides, settings={"secure": deepcopy(section()), **settings})
    assert expected in str(refused.value) and "; " in str(refused.value)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            {"secure__bits": 30},
            "secure.modulus_bits=32: sums of numbers of secure.bits=30 with a total weight of 51",
        ),
        (
            {"privacy": "central", "secure__bits": 4},
            "secure.bits=4: rounding alone makes a vector of 1204 numbers",
        ),
        ({"clients_per_round": 2, "num_clients": None}, "a sum of so few"),
    ],
    ids=["modulus", "rounding", "two"],
)
def test_what_the_data_forbid_is_refused_before_the_first_round(
    more: dict[str, Any], expected: str, arrays: Path, tmp_path: Path
) -> None:
    groups = [f"privacy={more.pop('privacy')}", "sampling=fixed"] if "privacy" in more else []
    start = partial(small, tmp_path / "run", arrays, "strategy=fedavg", SECURE, *groups)
    with pytest.raises(ConfigError) as refused:
        start(**more)
    assert expected in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_bytes_of_every_stage_are_in_the_records(arrays: Path, tmp_path: Path) -> None:
    """Ten clients, each the neighbour of all others: 64 bytes of keys; 32 and 9 sealed pairs of 60; a vector of 1,204
    numbers and four beside, 4 bytes each; ten shares of 16."""
    finished = small(tmp_path / "run", arrays, "strategy=fedavg", SECURE, num_rounds=1)
    line = finished.lines[0]
    assert line["bytes_up_by"] == {
        "parameters": 10 * 4 * 1204,
        "secure": 10 * (64 + 32 + 9 * 60 + 4 * 4 + 10 * 16),
    }
    assert line["bytes_down_by"]["secure"] == 10 * (10 * 64 + 9 * 60)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["exit"] == "done"
