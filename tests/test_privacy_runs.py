"""Privacy in whole runs: what is charged, what is added, and that every method composes with it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
import torch
from dp_accounting import pld, rdp
from flwr.app import Message
from gauntlet import STRATEGIES
from torch import Tensor
from whole_runs import NATURAL, Run, run, save_arrays

from fedscale_local import experiment, lifecycle, privacy, rounds, wire
from fedscale_local import run_dir as run_dirs
from fedscale_local.config import from_container
from fedscale_local.engines.in_process import InProcessGrid
from fedscale_local.errors import RunDirError
from fedscale_local.reports import facts

SIZES, FEATURES, CLASSES = (4, 9, 1, 6, 5, 7), 3, 4
ROBUST = {"fedmedian", "trimmed_mean", "krum", "multikrum", "bulyan", "geometric_median", "norm_clipping"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, dict(line.settings)) for name, line in STRATEGIES.items() if name not in ROBUST
} | {
    "savic": ("savic", {}),
    "savic by displacement": ("savic", {"scaling.statistic": "displacement"}),
    "savic, own D": ("savic", {"scaling.scope": "local"}),
    "savic, own D, mixed": ("savic", {"scaling.scope": "local", "strategy.mixing": "preconditioned"}),
    "savic, momentum": ("savic", {"client.momentum": 0.5, "client.momentum_buffer": "averaged"}),
}
WIDE = {f"privacy.clip.{name}": 1e9 for name in ("parameters", "statistic", "preconditioner", "momentum")}
WIDE |= {f"privacy.clip.{name}": 1e9 for name in ("control", "first", "second")}
NO_PRIVACY = WIDE | {"privacy.noise_multiplier": 0.0}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return six(tmp_path_factory.mktemp("arrays") / "six.npz")


def six(path: Path, scale: float = 1.0) -> Path:
    """Six clients' examples; those of client 1 multiplied by `scale`."""
    rng = np.random.default_rng(11)
    x = [rng.normal(size=(n, FEATURES)) * (scale if i == 1 else 1.0) for i, n in enumerate(SIZES)]
    return save_arrays(path, x, [rng.integers(0, CLASSES, n).tolist() for n in SIZES])


def small(run_dir: Path, arrays: Path, *overrides: str, **more: Any) -> Run:
    """A run over six clients; more: keys with `__` for the dots."""
    settings = {
        "data.path": str(arrays),
        "dtype": "float64",
        "num_rounds": 4,
        "clients_per_round": 3,
        "strategy.weighting": "uniform",
        "client.batch_size": "full",
        "client.local_steps": 3,
        "client.step_size": 0.05,
        "engine.mode": "looped",
    }
    return run(
        run_dir,
        *NATURAL,
        *overrides,
        settings=settings | {k.replace("__", "."): v for k, v in more.items()},
    )


def dotted(settings: dict[str, Any]) -> dict[str, Any]:
    return {key.replace(".", "__"): value for key, value in settings.items()}


# ---------------------------------------------------------------- epsilon


POISSON = dp.PoissonSampledDpEvent(0.5, dp.GaussianDpEvent(2.0))
REPLACE = dp.NeighboringRelation.REPLACE_ONE


@pytest.mark.parametrize(
    ("accountant", "event", "more"),
    [
        (rdp.RdpAccountant(), POISSON, {}),
        (
            rdp.RdpAccountant(neighboring_relation=REPLACE),
            dp.SampledWithoutReplacementDpEvent(6, 3, dp.GaussianDpEvent(1.0)),
            {"sampling": "fixed"},
        ),
        (rdp.RdpAccountant(), dp.GaussianDpEvent(2.0), {"clients_per_round": None}),
        pytest.param(pld.PLDAccountant(), POISSON, {"privacy__accountant": "pld"}, marks=pytest.mark.slow),
    ],
    ids=["poisson", "fixed", "all", "poisson, pld"],
)
@pytest.mark.parametrize(("strategy", "probes"), [("fedavg", 0), ("savic", 1)])
def test_each_rounds_epsilon_is_what_an_accountant_of_ones_own_says(
    accountant: Any,
    event: Any,
    more: dict[str, Any],
    strategy: str,
    probes: int,
    arrays: Path,
    tmp_path: Path,
) -> None:
    """The probe of the scaled method is a release like any other."""
    overrides = (f"strategy={strategy}", "privacy=central")
    finished = small(tmp_path / "run", arrays, *overrides, privacy__noise_multiplier=2.0, **more)
    accountant = type(accountant)(neighboring_relation=accountant.neighboring_relation)
    for _ in range(probes):
        accountant.compose(event)
    for line in finished.lines:
        accountant.compose(event)
        assert line["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)
        assert line["train_loss"] is None, "it was never made private"


def test_local_privacy_charges_who_was_asked_most(arrays: Path, tmp_path: Path) -> None:
    """Each message by itself, between any two data sets of a client: the bound counts twice."""
    overrides = ("strategy=savic", "privacy=local")
    finished = small(tmp_path / "run", arrays, *overrides, privacy__noise_multiplier=8.0, num_rounds=6)
    asked = np.zeros(6, dtype=int)
    asked[first_sample(3)] += 1
    for line in finished.lines:
        asked[line["clients"]] += 1
        accountant = rdp.RdpAccountant()
        accountant.compose(dp.GaussianDpEvent(4.0), int(asked.max()))
        assert line["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)


def first_sample(count: int) -> list[int]:
    """Round 0's, which no record tells."""
    from fedscale_local.randomness import generator

    return torch.randperm(6, generator=generator(0, "sampling", 0))[:count].tolist()


@pytest.mark.parametrize(("kind", "multiplier"), [("central", 1.0), ("local", 2.0)])
def test_the_noise_is_made_for_the_target(kind: str, multiplier: float, arrays: Path, tmp_path: Path) -> None:
    """Everybody in each round, so that nobody is charged less than was planned for: 5 of Gaussian noise."""
    overrides = ("strategy=savic", f"privacy={kind}")
    more = {"privacy__target_epsilon": 3.0, "clients_per_round": None}
    finished = small(tmp_path / "run", arrays, *overrides, **more)
    told = json.loads((finished.run_dir / "manifest.json").read_text())["privacy"]
    accountant = rdp.RdpAccountant()
    accountant.compose(dp.GaussianDpEvent(told["noise_multiplier"] / multiplier), 5)
    assert finished.lines[-1]["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)
    assert 3.0 - 1e-3 < finished.lines[-1]["epsilon"] <= 3.0
    assert told["kind"] == kind and told["noise_source"] == "seed"
    with pytest.raises(RunDirError, match="num_rounds was 4, is 6"):
        config = from_container(run_dirs.head(finished.run_dir)[0])
        lifecycle.resume(finished.run_dir, config.model_copy(update={"num_rounds": 6}))


def test_a_mismatch_of_sampler_and_accountant_is_told(
    arrays: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"sampling": "fixed", "privacy__accountant": "pld", "privacy__delta": 0.2, "num_rounds": 1}
    finished = small(tmp_path / "run", arrays, "strategy=fedavg", "privacy=central", **more)
    warnings = json.loads((finished.run_dir / "manifest.json").read_text())["privacy"]["warnings"]
    assert "sampling=fixed does not match privacy.accountant=pld" in warnings[0]
    assert "privacy.delta=0.2" in warnings[1]
    assert all(warning in caplog.text for warning in warnings)
    assert set(warnings) <= set(facts.notes(run_dirs.read(finished.run_dir)))


# ---------------------------------------------------------------- what is added


@pytest.mark.parametrize("name", METHODS)
def test_no_noise_and_wide_bounds_leave_every_method_what_it_was(
    name: str, arrays: Path, tmp_path: Path
) -> None:
    """But for rounding: what is averaged is v - x, and x is added afterwards."""
    strategy, settings = METHODS[name]
    plain = small(tmp_path / "plain", arrays, f"strategy={strategy}", **dotted(settings))
    for kind in ("central", "local"):
        more = dotted(settings | NO_PRIVACY) | {"sampling": "fixed"}
        guarded = small(tmp_path / kind, arrays, f"strategy={strategy}", f"privacy={kind}", **more)
        np.testing.assert_allclose(guarded.model, plain.model, rtol=0, atol=1e-12)
        assert [line["clients"] for line in guarded.lines] == [line["clients"] for line in plain.lines]
        assert not any(line["failures"] for line in guarded.lines)
        assert [line["epsilon"] for line in guarded.lines] == [None] * 4, "infinite"


@pytest.mark.parametrize("name", METHODS)
def test_one_client_moves_all_of_a_rounds_vectors_by_one_bound(
    name: str, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every release of the first rounds, seen with client 1 and without, in units of its own noise: over all vectors of
    a round, both exchanges of Mime's included, that is 1 / z at most, and just that where all are clipped."""
    strategy, settings = METHODS[name]
    tiny = {key: 1e-6 for key in WIDE if not key.endswith("preconditioner")}
    seen: list[tuple[Tensor, float]] = []
    outputs: list[Tensor] = []
    original = privacy.private_mean

    def watched(
        vectors: Iterable[Tensor], nothing: Tensor, bound: Any, expected: int, std: float, stream: Any
    ) -> Any:
        kept = list(vectors)
        if len(seen) < len(outputs):  # what comes after depends on it, so both see the same
            seen.append((original(kept, nothing, bound, expected, 0.0, None), std / expected))
            return outputs[len(seen) - 1].clone()
        seen.append((original(kept, nothing, bound, expected, 0.0, None), std / expected))
        outputs.append(original(kept, nothing, bound, expected, std, stream).clone())
        return outputs[-1].clone()

    monkeypatch.setattr(privacy, "private_mean", watched)
    first: list[list[tuple[Tensor, float]]] = []
    drop = InProcessGrid.send_and_receive
    for without in (False, True):

        def send(
            self: InProcessGrid, messages: Iterable[Message], without: bool = without, **o: Any
        ) -> list[Message]:
            asked = [
                m
                for m in messages
                if not (without and m.metadata.dst_node_id == list(self.get_node_ids())[1])
            ]
            return list(drop(self, asked, **o))

        monkeypatch.setattr(InProcessGrid, "send_and_receive", send)
        seen.clear()
        more = dotted(settings | tiny) | {"privacy__noise_multiplier": 2.0, "clients_per_round": None}
        more |= {"min_replies": 1, "num_rounds": 1}
        small(tmp_path / f"run-{without}", arrays, f"strategy={strategy}", "privacy=central", **more)
        first.append(list(seen))
    moved = [float(((one - other) / std).norm()) ** 2 for (one, std), (other, _) in zip(*first, strict=True)]
    probes = 1 if experiment_has_probe(tmp_path / "run-True") else 0
    num_probe = probes * (2 if name == "fafed" else 1)
    for part in (moved[:num_probe], moved[num_probe:]):
        assert math.sqrt(sum(part)) <= 1 / 2.0 * (1 + 1e-9)
    if name != "mime" and "mixed" not in name:  # whose second vectors are not long enough to be clipped
        assert math.sqrt(sum(moved[num_probe:])) == pytest.approx(1 / 2.0, rel=1e-6)


def experiment_has_probe(run_dir: Path) -> bool:
    return experiment.build(from_container(run_dirs.head(run_dir)[0])).has_probe


@pytest.mark.parametrize(
    ("overrides", "num_vectors"),
    [
        (("strategy=fedavg",), 1),
        (("strategy=savic",), 2),
        (("strategy=scaffold",), 2),
        (("strategy=mime",), 2),
    ],
    ids=lambda value: str(value),
)
def test_the_models_noise_has_the_variance_that_is_charged(
    overrides: tuple[str, ...], num_vectors: int, tmp_path: Path
) -> None:
    """Clients whose inputs are zero move no weight of a linear model: what moves it is noise, z sqrt(G) C / E."""
    path = save_arrays(tmp_path / "zeros.npz", [np.zeros((2, 2000))] * 4, [[0, 1]] * 4)
    more = {"privacy__noise_multiplier": 1.5, "privacy__clip__parameters": 0.2, "clients_per_round": 2}
    finished = small(tmp_path / "run", path, *overrides, "privacy=central", num_rounds=1, **more)
    weight = max(finished.tensors.values(), key=np.size)
    assert weight.size == 4000
    expected = 1.5 * math.sqrt(num_vectors) * 0.2 / 2
    assert (weight**2).mean() / expected**2 == pytest.approx(1, abs=6 * math.sqrt(2 / 4000))


def test_local_noise_is_each_clients_own(tmp_path: Path) -> None:
    path = save_arrays(tmp_path / "zeros.npz", [np.zeros((2, 2000))] * 4, [[0, 1]] * 4)
    more = {"privacy__noise_multiplier": 1.5, "privacy__clip__parameters": 0.2, "clients_per_round": None}
    finished = small(tmp_path / "run", path, "strategy=fedavg", "privacy=local", num_rounds=1, **more)
    weight = max(finished.tensors.values(), key=np.size)
    expected = 1.5 * 0.2 / math.sqrt(4)
    assert (weight**2).mean() / expected**2 == pytest.approx(1, abs=6 * math.sqrt(2 / 4000))


def test_a_local_message_tells_nothing_else(
    arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client 1 with data a thousand times as large: its messages differ within two bounds of the model, and in nothing
    else."""
    seen: dict[str, dict[int, Message]] = {}
    original = InProcessGrid.send_and_receive

    def watched(self: InProcessGrid, messages: Iterable[Message], **o: Any) -> list[Message]:
        replies = list(original(self, messages, **o))
        if replies:
            seen.setdefault(current, {int(r.content["metrics"]["client"]): r for r in replies})  # type: ignore[index,call-overload,arg-type]
        return replies

    monkeypatch.setattr(InProcessGrid, "send_and_receive", watched)
    for current, path in (("usual", arrays), ("large", six(tmp_path / "large.npz", 1000.0))):
        more = {"clients_per_round": None, "num_rounds": 1, "privacy__clip__parameters": 0.01}
        small(tmp_path / current, path, "strategy=fedavg", "privacy=local", **more)
    one, other = seen["usual"][1], seen["large"][1]
    assert dict(one.content["metrics"]) == dict(other.content["metrics"])
    assert one.content["metrics"]["num-examples"] == 1  # type: ignore[index,call-overload]
    pairs = [
        (record[key].numpy() - other.content[name][key].numpy())
        for name, record in one.content.array_records.items()
        for key in record
    ]  # type: ignore[index,call-overload]
    moved = math.sqrt(sum(float((pair**2).sum()) for pair in pairs))
    assert 0 < moved <= 0.02 * (1 + 1e-9)


# ---------------------------------------------------------------- rounds, order, resume


@pytest.mark.parametrize(
    "overrides", [("strategy=fedavg",), ("strategy=savic",), ("strategy=mime",)], ids=str
)
def test_a_round_that_nobody_is_in_is_noise_alone(
    overrides: tuple[str, ...], arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or, without privacy, no change. Whether somebody was there is not to be seen, and was paid for."""
    models: dict[int, Tensor] = {}
    original = rounds._evaluation

    def watched(built: Any, round: int, arrays: Any) -> Any:
        models[round] = wire.from_model_record(arrays, built.task)[0].clone()
        return original(built, round, arrays)

    monkeypatch.setattr(rounds, "_evaluation", watched)
    more = {"clients_per_round": 1, "num_rounds": 12, "sampling": "poisson"}
    for privately in (True, False):
        more_overrides = ("privacy=central",) if privately else ()
        finished = small(tmp_path / f"run-{privately}", arrays, *overrides, *more_overrides, **more)
        empty = [line["round"] for line in finished.lines if not line["clients"]]
        assert 1 < len(empty) < 12
        if privately:
            spent = [line["epsilon"] for line in finished.lines]
            assert spent == sorted(set(spent)), "each round is charged"
        for round in (round for round in empty if round > 1):
            moved = models[round] != models[round - 1]
            assert bool(moved.all()) if privately else not bool(moved.any())


@pytest.mark.parametrize("kind", ["central", "local"])
@pytest.mark.parametrize("strategy", ["savic", "local_adam_averaged", "mime"])
def test_a_run_carried_on_has_lost_as_much_privacy(
    kind: str, strategy: str, arrays: Path, tmp_path: Path
) -> None:
    overrides = (f"strategy={strategy}", f"privacy={kind}")
    whole = small(tmp_path / "whole", arrays, *overrides, checkpoint_every=1)
    for stop in (1, 3):
        part = small(tmp_path / f"part-{stop}", arrays, *overrides, checkpoint_every=1, num_rounds=stop)
        shutil.copy(whole.run_dir / "config.yaml", part.run_dir / "config.yaml")
        lifecycle.resume(part.run_dir)
        for file in ("rounds.jsonl", "model.safetensors"):
            assert (part.run_dir / file).read_bytes() == (whole.run_dir / file).read_bytes()


@pytest.mark.parametrize("kind", ["central", "local"])
def test_the_order_of_replies_changes_nothing(
    kind: str, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("strategy=savic", f"privacy={kind}")
    first = small(tmp_path / "1", arrays, *overrides)
    send = InProcessGrid.send_and_receive
    monkeypatch.setattr(
        InProcessGrid, "send_and_receive", lambda self, m, **o: list(send(self, list(m)[::-1], **o))
    )
    assert small(tmp_path / "2", arrays, *overrides).bytes == first.bytes


def test_stacked_clients_are_noised_as_looped_ones(arrays: Path, tmp_path: Path) -> None:
    overrides = ("strategy=savic", "privacy=local")
    looped = small(tmp_path / "looped", arrays, *overrides)
    stacked = small(tmp_path / "stacked", arrays, *overrides, engine__mode="stacked")
    np.testing.assert_allclose(stacked.model, looped.model, rtol=0, atol=1e-12 * np.abs(looped.model).max())


@pytest.mark.parametrize("kind", ["central", "local"])
def test_the_systems_noise_is_another_in_each_run(kind: str, arrays: Path, tmp_path: Path) -> None:
    overrides = ("strategy=fedavg", f"privacy={kind}")
    first, second = (
        small(
            tmp_path / name,
            arrays,
            *overrides,
            num_rounds=1,
            privacy__noise_source="system",
            sampling="fixed",
        )
        for name in "ab"
    )
    assert (first.model != second.model).all()
    assert first.lines[0]["epsilon"] == second.lines[0]["epsilon"]
    assert json.loads((first.run_dir / "manifest.json").read_text())["privacy"]["noise_source"] == "system"


def test_messages_in_codecs_are_clipped_after_decoding(arrays: Path, tmp_path: Path) -> None:
    more = {
        "sending__statistic__up": "int8",
        "sending__parameters__up": "int8",
        "model__name": "mlp",
        "model__hidden": [20],
    }
    more |= {"privacy__noise_multiplier": 0.0, "privacy__clip__parameters": 1e-3, "num_rounds": 1}
    for kind in ("central", "local"):
        finished = small(
            tmp_path / kind, arrays, "strategy=fedavg", f"privacy={kind}", clients_per_round=None, **more
        )
        assert not finished.lines[0]["failures"]
        task = experiment.build(from_container(run_dirs.head(finished.run_dir)[0])).task
        start = task.named(task.initial_params, task.initial_buffers)
        moved = math.sqrt(
            sum(float(((start[n].numpy() - t) ** 2).sum()) for n, t in finished.tensors.items())
        )
        assert 1e-5 < moved <= 1e-3 * (1.01 if kind == "local" else 1 + 1e-9)
