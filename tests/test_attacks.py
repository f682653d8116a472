"""Hostile clients: each attack equals its formula, is the same in every mode and however it is asked, and is told.

Own arrays with unequal shards, multinomial logistic regression, full batches, float64: the slow twin needs no draws but
who is hostile, and the noise of `gaussian`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from hypothesis import given
from hypothesis import strategies as st
from twin import Softmax
from whole_runs import NATURAL, Run, configured, run, save_arrays

import clients.client_app
from clients.client_app import answer
from fedscale_local import attacks, cli, compose, experiment, lifecycle, run_dir, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local.config import to_json
from fedscale_local.config_attack import COLLUDING
from fedscale_local.data import shard
from fedscale_local.errors import ConfigError
from fedscale_local.randomness import generator
from fedscale_local.reports.facts import method_words

SIZES, FEATURES, CLASSES = (4, 9, 1, 6, 5, 7, 3), 3, 4
D = (FEATURES + 1) * CLASSES
STEPS, STEP_SIZE, ROUNDS, SHARE = 3, 0.2, 4, 0.4
HOSTILE = attacks.hostile(0, len(SIZES), SHARE)
ATTACKS: dict[str, dict[str, Any]] = {
    "sign_flip": {"strength": 1.5},
    "gaussian": {"strength": 3.0},
    "label_flip": {},
    "inner_product": {"strength": 0.7},
    "alie": {"z": None},
}


@pytest.fixture(scope="module")
def problem() -> Softmax:
    return Softmax.drawn(SIZES, FEATURES, CLASSES)


@pytest.fixture(scope="module")
def arrays(problem: Softmax, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_arrays(tmp_path_factory.mktemp("arrays") / "seven.npz", problem.features, problem.targets)


def settings_of(arrays: Path, name: str, share: float = SHARE) -> dict[str, Any]:
    """The section attack as a whole, which is quicker than having each composed."""
    attack = {"name": name} if name == "none" else {"name": name, "share": share} | ATTACKS[name]
    return {
        "attack": attack, "data.path": str(arrays), "dtype": "float64", "num_rounds": ROUNDS,
        "strategy.weighting": "uniform", "client.batch_size": "full", "client.local_steps": STEPS,
        "client.step_size": STEP_SIZE, "engine.mode": "looped",
    }  # fmt: skip


def small(
    place: Path, arrays: Path, name: str, strategy: str = "fedavg", share: float = SHARE, **more: Any
) -> Run:
    """A run under this attack; more: keys with `__` for the dots."""
    settings = settings_of(arrays, name, share) | {k.replace("__", "."): v for k, v in more.items()}
    return run(place, *NATURAL, f"strategy={strategy}", settings=settings)


def vector(finished: Run) -> np.ndarray:
    """Weight, then bias, as one vector (d,)."""
    named = finished.tensors
    return np.concatenate([named[name].ravel() for name in sorted(named, key=lambda n: -named[n].ndim)])


def twin(problem: Softmax, name: str) -> np.ndarray:
    """The model after the last round: local steps, then the lie, then the mean."""
    x, n, m = np.zeros(D), len(SIZES), len(HOSTILE)
    if name == "label_flip":
        targets = [
            [CLASSES - 1 - y for y in own] if i in HOSTILE else own for i, own in enumerate(problem.targets)
        ]
        problem = Softmax(problem.features, targets, CLASSES)
    for p in range(1, ROUNDS + 1):
        models = []
        for i, size in enumerate(SIZES):
            v = x.copy()
            for _ in range(STEPS):
                v = v - STEP_SIZE * problem.gradient(i, v, list(range(size)))
            models.append(v)
        honest = np.stack([v for i, v in enumerate(models) if i not in HOSTILE])
        for i in HOSTILE:
            learnt = models[i] - x
            if name == "sign_flip":
                models[i] = x - 1.5 * learnt
            elif name == "gaussian":
                stream = generator(0, "attack", p, i)
                noise = torch.randn(D, generator=stream, dtype=torch.float64).numpy()
                models[i] = x + 3.0 * np.linalg.norm(learnt) / np.sqrt(D) * noise
            elif name == "inner_product":
                models[i] = x - 0.7 * np.mean(honest - x, axis=0)
            elif name == "alie":
                supporters = n // 2 + 1 - m
                z = NormalDist().inv_cdf((n - m - supporters) / (n - m))
                models[i] = honest.mean(axis=0) + z * honest.std(axis=0)
        x = np.mean(models, axis=0)
    return x


@pytest.mark.parametrize("mode", ["looped", "stacked"])
@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_equals_its_formula(
    name: str, mode: str, problem: Softmax, arrays: Path, tmp_path: Path
) -> None:
    finished = small(tmp_path / "run", arrays, name, engine__mode=mode)
    assert not any(line["failures"] for line in finished.lines)
    expected = twin(problem, name)
    np.testing.assert_allclose(vector(finished), expected, rtol=0, atol=1e-12)
    assert np.abs(expected - twin(problem, "none")).max() > 0.01, (
        "an attack that changes nothing shows nothing"
    )


@pytest.mark.parametrize("name", ["gaussian", "label_flip", "alie"])
def test_neither_workers_nor_a_stop_change_a_byte(name: str, arrays: Path, tmp_path: Path) -> None:
    some: dict[str, Any] = {"clients_per_round": 5, "checkpoint_every": 1}
    whole = small(tmp_path / "whole", arrays, name, **some)
    assert small(tmp_path / "two", arrays, name, **some, engine__workers=2).bytes == whole.bytes
    part = small(tmp_path / "part", arrays, name, **some, num_rounds=2)
    shutil.copy(whole.run_dir / "config.yaml", part.run_dir / "config.yaml")
    lifecycle.resume(part.run_dir)
    assert Run(part.run_dir, [], {}).bytes == whole.bytes


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - set(COLLUDING)))
def test_a_client_alone_lies_as_it_does_among_others(
    name: str, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message at a time through Flower's ClientApp, which is all that Ray and SuperNodes do."""
    together = small(tmp_path / "together", arrays, name)
    monkeypatch.delattr(clients.client_app.app, "cohort")
    assert small(tmp_path / "alone", arrays, name).bytes == together.bytes


@pytest.mark.parametrize("client", [min(HOSTILE), max(HOSTILE), min(set(range(len(SIZES))) - set(HOSTILE))])
@pytest.mark.parametrize("name", ["label_flip", "sign_flip"])
def test_a_device_with_its_shard_alone_does_the_same(
    name: str, client: int, arrays: Path, tmp_path: Path
) -> None:
    settings = settings_of(arrays, name) | {"num_clients": len(SIZES)}
    config = configured(*NATURAL, "strategy=fedavg", settings=settings)
    whole = experiment.build(config)
    shard.write(tmp_path / "shard", whole.dataset, whole.partition, client, shard.origin(config))
    adapter.become_server()
    told = []
    for data_path in ({}, {wire.DATA_PATH: str(tmp_path / "shard")}):
        model = wire.to_record([(whole.task.layout, torch.ones(D, dtype=torch.float64) / 8)])
        content = wire.content({wire.ARRAYS: model}, ConfigRecord({wire.ROUND: 1}))
        message = adapter.stamp(adapter.message_to(2 + client, content), "1")
        node = {wire.PARTITION: client, **data_path}
        context = adapter.new_context(2 + client, node, {"config": to_json(config)})  # type: ignore[arg-type]
        reply: Message = answer(message, context)
        told.append(wire.from_record(reply.content.array_records["arrays"], whole.task.layout, torch.float64))
    assert torch.equal(told[0], told[1])


def test_who_is_hostile_is_told_and_what_they_hold_is_told_as_it_was_divided(
    arrays: Path, tmp_path: Path
) -> None:
    honest = small(tmp_path / "none", arrays, "none", clients_per_round=4)
    told = small(tmp_path / "flip", arrays, "label_flip", clients_per_round=4)
    manifests = [json.loads((r.run_dir / "manifest.json").read_text()) for r in (honest, told)]
    assert [m["hostile_clients"] for m in manifests] == [[], list(HOSTILE)]
    assert not any("hostile" in line for line in honest.lines)
    for line in told.lines:
        assert line["hostile"] == sorted(set(line["clients"]) & set(HOSTILE))
    assert "40% of the clients are hostile (label flip)." in method_words(run_dir.read(told.run_dir))
    assert "hostile" not in method_words(run_dir.read(honest.run_dir))
    partitions = [(r.run_dir / "partition.json").read_bytes() for r in (honest, told)]
    assert partitions[0] == partitions[1]


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"label_flip"}))
def test_what_is_sent_beside_the_model_is_true(name: str, arrays: Path, tmp_path: Path) -> None:
    """The statistic of round 1 is measured at x_0, so D after it is that of honest clients; the model is not."""
    told, honest = (
        small(tmp_path / n, arrays, n, "savic", num_rounds=1, client__step_size=0.01) for n in (name, "none")
    )
    for key in ("d_min", "d_max", "d_condition", "d_change"):
        assert told.lines[0][key] == honest.lines[0][key]
    assert np.abs(told.model - honest.model).max() > 1e-4


def test_an_attack_without_hostile_clients_is_none(arrays: Path, tmp_path: Path) -> None:
    honest = small(tmp_path / "none", arrays, "none")
    for name in ATTACKS:
        assert small(tmp_path / name, arrays, name, share=0.0).bytes == honest.bytes


@pytest.mark.parametrize("name", COLLUDING)
def test_those_who_collude_are_honest_where_nobody_else_is(name: str, arrays: Path, tmp_path: Path) -> None:
    honest = small(tmp_path / "none", arrays, "none")
    assert np.array_equal(small(tmp_path / "all", arrays, name, share=1.0).model, honest.model)


@pytest.mark.parametrize("strategy", ["scaffold", "local_adam_averaged", "mime"])
@pytest.mark.parametrize("name", ["sign_flip", "alie"])
def test_methods_with_state_and_codecs_run_under_each_attack(
    name: str, strategy: str, arrays: Path, tmp_path: Path
) -> None:
    coded = {"sending__parameters__up": "top_k", "sending__share": 0.5}
    finished = small(tmp_path / "run", arrays, name, strategy, **coded)
    assert not any(line["failures"] for line in finished.lines)
    assert np.isfinite(finished.model).all()


# ---------------------------------------------------------------- who, and how far


@given(seed=st.integers(0, 10**6), n=st.integers(1, 300), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_the_hostile_are_as_many_as_asked_and_stay_when_more_join(
    seed: int, n: int, shares: tuple[float, float]
) -> None:
    few, many = (attacks.hostile(seed, n, share) for share in sorted(shares))
    assert [len(few), len(many)] == [round(share * n) for share in sorted(shares)]
    assert set(few) <= set(many) <= set(range(n)) and list(many) == sorted(many)


def test_another_seed_has_other_hostile_clients() -> None:
    assert len({attacks.hostile(seed, 100, 0.3) for seed in range(20)}) == 20


@given(n=st.integers(2, 200), m=st.integers(1, 199))
def test_z_max_leaves_the_hostile_nearer_to_the_mean_than_their_supporters(n: int, m: int) -> None:
    m = min(m, n - 1)
    z, honest = attacks.z_max(n, m), n - m
    assert z >= 0
    needed = n // 2 + 1 - m
    if needed >= 1 and honest - needed >= honest / 2:
        assert NormalDist().cdf(z) * honest == pytest.approx(honest - needed, abs=1e-9)


# ---------------------------------------------------------------- refusals

REFUSED = [
    ("attack=alie engine=ray", "attack=alie: its clients need what the honest ones", "set engine=in_process"),
    ("attack=inner_product engine=superlink superlink.address=x:1", "attack=inner_product", "engine=in_process"),
    ("attack=sign_flip client._target_=foreign_app.app", "attack=sign_flip: client=custom does", "client=steps"),
    ("attack=sign_flip attack.share=1.5", "attack.share=1.5: expected a number", "0 or more, at most 1"),
    ("attack=sign_flip attack.strength=0", "attack.strength=0", "more than 0"),
    ("attack=label_flip attack.strength=2", "attack.strength=2", "sign_flip or gaussian or inner_product"),
    ("attack=flip", "attack=flip: expected one of alie", "set attack to one of them"),
    ("attack=label_flip data=quadratic", "attack=label_flip: data=quadratic has no class labels", "another attack"),
    ("attack=gaussian engine=superlink superlink.address=x:1 data=synthetic partition=natural num_clients=null",
     "num_clients=null: attack=gaussian draws", "set num_clients to their number"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "expectation", "remedy"), REFUSED)
def test_what_does_not_fit_is_refused(
    asked: str, expectation: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *asked.split(), f"run_dir={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err
    assert expectation in told and remedy in told and not (tmp_path / "run").exists()


def test_a_run_with_colluding_clients_is_not_carried_on_elsewhere(arrays: Path, tmp_path: Path) -> None:
    small(tmp_path / "run", arrays, "alie")
    with pytest.raises(ConfigError, match="attack=alie"):
        compose.again(run_dir.head(tmp_path / "run")[0], ["engine=ray"])
