"""A whole run equals the NumPy twin to 1e-10: every place where D can live, every way in which it can change.

Own arrays with unequal shards, multinomial logistic regression, full batches, float64, all clients: no randomness.
The twin is written from the description of the method; configuration, messages, engine and files lie in between.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from twin import Draws, Settings, Softmax, scaled_local
from whole_runs import NATURAL, run, save_arrays

from fedscale_local.curvature import rademacher
from fedscale_local.randomness import generator

SIZES, FEATURES, CLASSES = (4, 9, 1, 6), 3, 4
D = (FEATURES + 1) * CLASSES

FLOORS, COMBINES = ("max", "add"), ("square_of_mean", "mean_of_squares")
WEIGHTINGS, STEPS = ("examples", "uniform"), (1, 5)
DISPLACEMENT = {"statistic": "displacement"}
LOCAL: dict[str, Any] = {"scope": "local"}
MIXED = LOCAL | {"mixing": "preconditioned"}
MOMENTA = [{"momentum": 0.7, "momentum_buffer": buffer} for buffer in ("reset", "kept", "averaged")]

VARIANTS: list[dict[str, Any]] = [
    *({"refresh_every": k, **where} for k in (2, 3) for where in ({}, LOCAL, MIXED, DISPLACEMENT)),
    LOCAL,
    MIXED,
    DISPLACEMENT,
    LOCAL | {"local_refresh": "step"},
    MIXED | {"local_refresh": "step"},
    LOCAL | {"start": "ones"},
    MIXED | {"start": "ones"},
    {"start": "ones"},
    *MOMENTA,
    *(LOCAL | momentum for momentum in MOMENTA),
    *(MIXED | momentum for momentum in MOMENTA),
    *(DISPLACEMENT | momentum for momentum in MOMENTA),
    {"upper_bound": 0.2},
    {"rho": 0.5},
    {"weight_decay": 0.1},
    MIXED | {"weight_decay": 0.1, "weighting": "uniform"},
]
SECOND_ORDER: list[dict[str, Any]] = [
    {"rule": "oasis"},
    {"rule": "oasis", "weight_decay": 0.1, "combine": "mean_of_squares"},
    {"rule": "oasis"} | LOCAL | {"local_refresh": "step"},
    {"rule": "adahessian"},
    {"rule": "adahessian"} | MIXED,
    {"rule": "sophia", "rho": 0.3, "statistic": "hutchinson"},
]
"""Rules with Rademacher probes, which the run draws and the twin is told."""

PLACES = {
    "momentum": "client",
    "momentum_buffer": "client",
    "weight_decay": "client",
    "step_size": "client",
    "weighting": "strategy",
    "mixing": "strategy",
}
"""The group of the configuration in which a setting of the twin stands; the others are in scaling."""


@pytest.fixture(scope="module")
def problem() -> Softmax:
    return Softmax.drawn(SIZES, FEATURES, CLASSES)


@pytest.fixture(scope="module")
def arrays(problem: Softmax, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_arrays(tmp_path_factory.mktemp("arrays") / "four.npz", problem.features, problem.targets)


def draws(participants: Callable[[int], list[int]] = lambda p: list(range(len(SIZES)))) -> Draws:
    """Nothing is drawn but the Rademacher vectors, one for each time that something is measured in a round."""
    streams: dict[int, Any] = {}
    drawn: dict[tuple[int, int], np.ndarray] = {}

    def z(round: int, step: int) -> np.ndarray:
        stream = streams.setdefault(round, generator(0, "probe", round))
        for k in range(step + 1):
            if (round, k) not in drawn:
                drawn[round, k] = rademacher(stream, D, torch.float64).numpy()
        return drawn[round, step]

    return Draws(participants, lambda p, m, k: list(range(SIZES[m])), z, lambda p, m, k: [])


def compare(
    problem: Softmax,
    arrays: Path,
    run_dir: Path,
    mode: str,
    steps: int,
    settings: dict[str, Any],
    clients_per_round: int | None = None,
) -> None:
    """One run beside one twin; the twin is told who took part."""
    settings = {"rule": "adam", "beta": 0.9, "alpha": 0.05, "step_size": 0.1} | settings
    keys = {f"{PLACES.get(name, 'scaling')}.{name}": value for name, value in settings.items()}
    own = {
        "data.path": str(arrays),
        "dtype": "float64",
        "num_rounds": 10,
        "clients_per_round": clients_per_round,
        "client.batch_size": "full",
        "client.local_steps": steps,
        "engine.mode": mode,
    }
    strategy = ("strategy=fedavg",) if settings["rule"] == "identity" else ()
    choices = (*NATURAL, *strategy, f"scaling={settings['rule']}")
    # adahessian's mean over convolution kernels changes nothing here; sophia's statistic is set above.
    finished = run(run_dir, *choices, settings=own | keys)
    named = finished.tensors
    found = np.concatenate([named[name].ravel() for name in sorted(named, key=lambda n: -named[n].ndim)])
    told = {"statistic": "hutchinson"} if settings["rule"] in ("oasis", "adahessian") else {}
    twin = Settings(local_steps=(steps,) * len(SIZES), num_rounds=10, **(told | settings))

    def participants(round: int) -> list[int]:
        if round > 0:
            return finished.lines[round - 1]["clients"]
        order = torch.randperm(len(SIZES), generator=generator(0, "sampling", 0))
        return sorted(order[:clients_per_round].tolist())

    expected = scaled_local(problem, twin, draws(participants), np.zeros(D)).x[-1]
    assert np.abs(expected).max() > 0.1, "a run that goes nowhere compares nothing"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10, err_msg=f"{mode} {twin}")


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("rule", ["identity", "adagrad", "rmsprop", "adam"])
def test_rules_floors_combines_and_weightings(
    rule: str, steps: int, problem: Softmax, arrays: Path, tmp_path: Path
) -> None:
    floors_and_combines = [("max", "square_of_mean")] if rule == "identity" else product(FLOORS, COMBINES)
    for (floor, combine), weighting in product(floors_and_combines, WEIGHTINGS):
        settings = {"rule": rule, "floor": floor, "combine": combine, "weighting": weighting}
        compare(problem, arrays, tmp_path / f"{floor}-{combine}-{weighting}", "looped", steps, settings)


@pytest.mark.parametrize("mode", ["looped", "stacked"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_where_d_lives_and_when_it_changes(
    variant: dict[str, Any], mode: str, problem: Softmax, arrays: Path, tmp_path: Path
) -> None:
    compare(problem, arrays, tmp_path / "run", mode, 5, variant)


@pytest.mark.parametrize("mode", ["looped", "stacked"])
@pytest.mark.parametrize("variant", SECOND_ORDER, ids=lambda v: "-".join(map(str, v.values())))
def test_hutchinson_statistics(
    variant: dict[str, Any], mode: str, problem: Softmax, arrays: Path, tmp_path: Path
) -> None:
    compare(problem, arrays, tmp_path / "run", mode, 5, variant)


@pytest.mark.parametrize("mode", ["looped", "stacked"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_with_two_of_four_clients_a_round(
    variant: dict[str, Any], mode: str, problem: Softmax, arrays: Path, tmp_path: Path
) -> None:
    """Newcomers and those who come back have what they need: kept, sent again, or measured at their first round."""
    compare(problem, arrays, tmp_path / "run", mode, 3, variant, clients_per_round=2)
