"""Other people's strategies and ClientApps run unmodified, named by their import paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import foreign_app
import numpy as np
import pytest
from whole_runs import NATURAL, Run, configured, run, save_arrays

from fedscale_local import experiment
from fedscale_local.errors import ConfigError

FLOWER = "flwr.serverapp.strategy."
SIZES = (4, 9, 3, 6, 8)
SETTINGS = {
    "num_rounds": 4,
    "dtype": "float64",
    "client.batch_size": "full",
    "client.local_steps": 3,
    "client.step_size": 0.1,
}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(11)
    x = [rng.normal(size=(n, 3)) for n in SIZES]
    y = [rng.integers(0, 4, n) for n in SIZES]
    test = {"x_test": rng.normal(size=(20, 3)), "y_test": rng.integers(0, 4, 20)}
    return save_arrays(tmp_path_factory.mktemp("arrays") / "five.npz", x, y, **test)


def small(run_dir: Path, arrays: Path, strategy: dict[str, Any] | None, *overrides: str, **more: Any) -> Run:
    """A run with this section as its strategy; None: ours."""
    settings = SETTINGS | {"data.path": str(arrays)} | more
    if strategy is None:
        return run(run_dir, *NATURAL, "strategy=fedavg", *overrides, settings=settings)
    section = {"name": "flower"} | strategy
    return run(run_dir, *NATURAL, "strategy=flower", *overrides, settings=settings | {"strategy": section})


STRATEGIES: dict[str, dict[str, Any]] = {
    "FedAvg": {"_target_": FLOWER + "FedAvg"},
    "FedAvg, part": {"_target_": FLOWER + "FedAvg", "fraction_train": 0.5},
    "FedProx": {"_target_": FLOWER + "FedProx", "proximal_mu": 0.1},
    "FedAvgM": {"_target_": FLOWER + "FedAvgM", "server_learning_rate": 0.9, "server_momentum": 0.5},
    "FedAdam": {"_target_": FLOWER + "FedAdam", "eta": 0.05},
    "FedYogi": {"_target_": FLOWER + "FedYogi", "eta": 0.05},
    "FedAdagrad": {"_target_": FLOWER + "FedAdagrad", "eta": 0.05},
    "FedMedian": {"_target_": FLOWER + "FedMedian"},
    "FedTrimmedAvg": {"_target_": FLOWER + "FedTrimmedAvg", "beta": 0.2},
    "Krum": {"_target_": FLOWER + "Krum", "num_malicious_nodes": 1},
    "MultiKrum": {"_target_": FLOWER + "MultiKrum", "num_malicious_nodes": 1, "num_nodes_to_select": 2},
    "server-side DP": {
        "_target_": FLOWER + "DifferentialPrivacyServerSideFixedClipping",
        "strategy": {"_target_": FLOWER + "FedAvg"},
        "noise_multiplier": 0.1,
        "clipping_norm": 0.5,
        "num_sampled_clients": 5,
    },
    "adaptive DP": {
        "_target_": FLOWER + "DifferentialPrivacyServerSideAdaptiveClipping",
        "strategy": {"_target_": FLOWER + "FedAvg"},
        "noise_multiplier": 0.1,
        "num_sampled_clients": 5,
    },
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_flowers_strategies_run_and_the_seed_decides(
    name: str, dtype: str, arrays: Path, tmp_path: Path
) -> None:
    runs = [
        small(tmp_path / str(i), arrays, STRATEGIES[name], dtype=dtype, seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    for finished in runs:
        assert [line["failures"] for line in finished.lines] == [[]] * 4
        assert all(len(line["clients"]) == (2 if "part" in name else 5) for line in finished.lines)
        assert str(finished.model.dtype) == dtype
        losses = [line["test_loss"] for line in finished.lines]
        assert np.isfinite(losses).all() and len(set(losses)) > 1
    assert runs[0].bytes == runs[1].bytes
    if "DP" in name or "part" in name:
        assert runs[0].lines != runs[2].lines, "its draws belong to the seed"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_flowers_fedavg_is_ours(dtype: str, arrays: Path, tmp_path: Path) -> None:
    """The same sum in another order of operations: Flower's (sum n v) / n, ours sum (n/N) v."""
    theirs = small(tmp_path / "theirs", arrays, STRATEGIES["FedAvg"], dtype=dtype)
    ours = small(tmp_path / "ours", arrays, None, dtype=dtype)
    np.testing.assert_allclose(
        theirs.model, ours.model, rtol=0, atol=FEDAVG[dtype] * np.abs(ours.model).max()
    )
    for line, other in zip(theirs.lines, ours.lines, strict=True):
        assert (line["clients"], line["bytes_up"], line["bytes_down"]) == (
            other["clients"], other["bytes_up"], other["bytes_down"],
        )  # fmt: skip
        for key in ("train_loss", "test_loss"):
            assert line[key] == pytest.approx(other[key], rel=FEDAVG[dtype])


FEDAVG = {"float32": 1e-6, "float64": 1e-14}
"""Found: 7e-8 and 1e-16 of the largest parameter."""


def test_an_argument_that_does_not_fit_is_refused_before_work(arrays: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategy\._target_=flwr\.serverapp\.strategy\.FedAvg"):
        small(tmp_path / "run", arrays, {"_target_": FLOWER + "FedAvg", "fraction": 0.5})
    assert not (tmp_path / "run").exists()


def foreign(arrays: Path, app: str, **more: Any) -> dict[str, Any]:
    """The section client of a run with an app of foreign_app.py."""
    keys = {"client._target_": f"foreign_app.{app}", "client.file": str(arrays), "client.learning-rate": 0.1}
    return keys | {"client.name": "custom"} | more


def test_a_client_app_of_somebody_else_does_what_ours_does(arrays: Path, tmp_path: Path) -> None:
    theirs = small(tmp_path / "theirs", arrays, STRATEGIES["FedAvg"], **foreign(arrays, "app"))
    ours = small(tmp_path / "ours", arrays, None)
    np.testing.assert_allclose(theirs.model, ours.model, rtol=0, atol=1e-13)
    assert [line["bytes_up"] for line in theirs.lines] == [line["bytes_up"] for line in ours.lines]


def test_by_the_command_line(arrays: Path) -> None:
    config = configured(
        *NATURAL, "client._target_=foreign_app.app", "client.learning-rate=0.1", f"data.path={arrays}"
    )
    assert config.strategy.name == "flower"
    assert config.client.run_config["learning-rate"] == 0.1  # type: ignore[union-attr]
    assert experiment.client_app(config) is foreign_app.app


@pytest.mark.parametrize(
    ("app", "says"), [("nobody", "has no nobody"), ("not_an_app", "expected a Flower ClientApp")]
)
def test_what_is_no_client_app_is_refused_before_work(
    app: str, says: str, arrays: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        small(tmp_path / "run", arrays, STRATEGIES["FedAvg"], **foreign(arrays, app))
    assert not (tmp_path / "run").exists()


def test_a_mod_clips(arrays: Path, tmp_path: Path) -> None:
    """Each client's displacement is at most clipping_norm long, and so is the mean's; the wrapper adds no noise."""
    wrapper = {
        "_target_": FLOWER + "DifferentialPrivacyClientSideFixedClipping",
        "strategy": {"_target_": FLOWER + "FedAvg"},
        "noise_multiplier": 0.0,
        "clipping_norm": 0.01,
        "num_sampled_clients": 5,
    }
    finished = small(tmp_path / "1", arrays, wrapper, num_rounds=1, **foreign(arrays, "clipped"))
    free = small(tmp_path / "2", arrays, STRATEGIES["FedAvg"], num_rounds=1, **foreign(arrays, "app"))
    assert np.linalg.norm(free.model) > 0.05
    assert 0.002 < np.linalg.norm(finished.model) <= 0.01 + 1e-12
    assert finished.lines[0]["failures"] == []


def test_a_mod_that_misses_what_it_needs_is_a_failure_of_the_client(arrays: Path, tmp_path: Path) -> None:
    finished = small(tmp_path / "1", arrays, STRATEGIES["FedAvg"], num_rounds=1, **foreign(arrays, "clipped"))
    assert [f["client"] for f in finished.lines[0]["failures"]] == [0, 1, 2, 3, 4]
    assert all("clipping_norm" in f["reason"] for f in finished.lines[0]["failures"])


@pytest.mark.parametrize("app", ["noisy", "measured", "dropping_out"])
def test_mods_and_apps_that_draw_are_seeded(app: str, arrays: Path, tmp_path: Path) -> None:
    runs = [
        small(tmp_path / str(i), arrays, STRATEGIES["FedAvg"], seed=seed, **foreign(arrays, app))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert runs[0].lines[0]["failures"] == []
    assert runs[0].bytes == runs[1].bytes
    assert (runs[0].bytes == runs[2].bytes) == (app == "measured")


def test_each_client_keeps_its_own_state_and_only_of_calls_that_succeeded(
    arrays: Path, tmp_path: Path
) -> None:
    foreign_app.attempts.clear()
    finished = small(tmp_path / "1", arrays, STRATEGIES["FedAvg"], num_rounds=5, **foreign(arrays, "counted"))
    failures = [[f["client"] for f in line["failures"]] for line in finished.lines]
    assert failures == [[], [1], [1], [], []]
    assert finished.lines[1]["failures"][0]["reason"] == "RuntimeError: out of memory"
    seen = {m: [count for client, count in foreign_app.attempts if client == m] for m in range(5)}
    assert seen == {0: [1, 2, 3, 4, 5], 1: [1, 2, 2, 2, 3]} | {m: [1, 2, 3, 4, 5] for m in (2, 3, 4)}
    assert finished.lines[4]["calls"] == pytest.approx(np.average([5, 3, 5, 5, 5], weights=SIZES))


def test_a_client_cannot_spoil_what_others_were_sent(arrays: Path, tmp_path: Path) -> None:
    finished = small(tmp_path / "1", arrays, STRATEGIES["FedAvg"], **foreign(arrays, "careless"))
    for line in finished.lines:
        reason = "TypeError: the ClientApp returned NoneType, expected a Message"
        assert line["failures"] == [{"client": 0, "reason": reason}]
        assert np.isfinite(line["test_loss"])


def test_replies_that_flowers_strategies_would_stumble_over(arrays: Path, tmp_path: Path) -> None:
    finished = small(tmp_path / "1", arrays, STRATEGIES["FedAvg"], **foreign(arrays, "confused"))
    for line in finished.lines:
        assert [f["client"] for f in line["failures"]] == [0, 1, 2]
        others, other, shape = (f["reason"] for f in line["failures"])
        assert others == other == "its records have other keys or lengths than those of most clients"
        assert shape.startswith("arrays: array 'weight' is float64 (3, 4), expected float64 (4, 3)")
        assert np.isfinite(line["test_loss"])


def test_lists_have_to_be_of_one_length_and_may_hold_what_is_not_finite(arrays: Path, tmp_path: Path) -> None:
    finished = small(tmp_path / "1", arrays, STRATEGIES["FedAvg"], **foreign(arrays, "telling"))
    for line in finished.lines:
        assert line["failures"] == [
            {"client": 0, "reason": "its records have other keys or lengths than those of most clients"},
            {"client": 1, "reason": f"num-examples=1000000000: expected {sum(SIZES)} at most"},
        ]
        assert line["history"] == [pytest.approx(1.0), None]
