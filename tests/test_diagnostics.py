"""diagnostics=drift: closed forms on small tensors, and whole runs that record them, or stay as they were."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import tensor
from whole_runs import configured, run

from fedscale_local import diagnostics, experiment, reports
from fedscale_local.data.quadratic import quadratics
from fedscale_local.diagnostics import Quadratic
from fedscale_local.errors import ConfigError
from fedscale_local.vector import Layout

QUADRATIC = (
    "data=quadratic", "data.dimension=4", "data.examples=4", "num_clients=3", "client.batch_size=full",
    "dtype=float64", "engine.workers=1", "num_rounds=3",
)  # fmt: skip
ADAM = ("strategy=savic", "scaling=adam")
MIXED = (*ADAM, "scaling.scope=local", "strategy.mixing=preconditioned")
DRIFT = {"drift_mean", "drift_max", "cosine_mean", "cosine_min", "update_norm", "update_norm.weight"}
STEPS = {"step_min", "step_median", "step_max"}
SPREAD = {"spread_mean", "spread_max", "angle_mean", "angle_max"}
KNOWN = {"distance", "hessian_condition"}


def test_drift_of_two_clients_at_right_angles() -> None:
    """Moves (2, 0) and (0, 2): mean (1, 1), each is sqrt 2 from it, which is its length; 45 degrees to it."""
    x = tensor([5.0, 5.0])
    found = diagnostics.drift(x, [tensor([7.0, 5.0]), tensor([5.0, 7.0])], [0.5, 0.5])
    assert found["drift_mean"] == pytest.approx(1) and found["drift_max"] == pytest.approx(1)
    assert found["cosine_mean"] == pytest.approx(math.sqrt(0.5)) == found["cosine_min"]


def test_drift_is_weighted_as_the_models_are() -> None:
    """Moves 4 and 0 with weights 3/4 and 1/4: mean 3; drifts 1/3 and 1, so 3/4 * 1/3 + 1/4 * 1 = 1/2."""
    found = diagnostics.drift(tensor([0.0]), [tensor([4.0]), tensor([0.0])], [0.75, 0.25])
    assert found["drift_mean"] == pytest.approx(0.5) and found["drift_max"] == pytest.approx(1)
    assert math.isnan(found["cosine_mean"]), "a client that did not move has no direction"


def test_update_norm_by_tensor() -> None:
    layout = Layout.of([("weight", torch.zeros(1, 2)), ("bias", torch.zeros(1))])
    found = diagnostics.update_norms(tensor([1.0, 1.0, 1.0]), tensor([4.0, 5.0, 13.0]), layout)
    assert found == {"update_norm": 13.0, "update_norm.weight": 5.0, "update_norm.bias": 12.0}


def test_effective_steps() -> None:
    found = diagnostics.steps(tensor([0.5, 2.0, 1.0], dtype=torch.float64), 0.1)
    assert found == {"step_min": 0.05, "step_median": 0.1, "step_max": 0.2}


def test_preconditioners_that_differ_by_a_factor_have_a_spread_and_no_angle() -> None:
    """D of 1 and 3 times one vector: the server's is 2 times; |log| is log 2 and log 3/2, in every coordinate."""
    d = tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    found = diagnostics.spread([d, 3 * d], [0.5, 0.5])
    assert found["spread_max"] == pytest.approx(math.log(2))
    assert found["spread_mean"] == pytest.approx((math.log(2) + math.log(1.5)) / 2)
    assert found["angle_max"] == pytest.approx(0, abs=1e-12)


def test_angle_between_preconditioners() -> None:
    """(1, 0+) and (0+, 1): each is 45 degrees from their mean."""
    ends = [tensor([1.0, 1e-12], dtype=torch.float64), tensor([1e-12, 1.0], dtype=torch.float64)]
    assert diagnostics.spread(ends, [0.5, 0.5])["angle_mean"] == pytest.approx(math.pi / 4)


def test_condition_of_a_hessian_that_is_not_diagonal() -> None:
    """[[2, 1], [1, 2]]: eigenvalues 3 and 1. Scaled by D = (1, 4): [[2, 1/2], [1/2, 1/2]], trace 5/2, det 3/4."""
    quadratic = Quadratic(tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64), torch.zeros(2))
    assert quadratic.condition(torch.ones(2, dtype=torch.float64)) == pytest.approx(3)
    root = math.sqrt(2.5**2 - 4 * 0.75)
    expected = (2.5 + root) / (2.5 - root)
    assert quadratic.condition(tensor([1.0, 4.0], dtype=torch.float64)) == pytest.approx(expected)


def test_the_mean_objective_is_that_of_the_generated_clients() -> None:
    found = experiment.build(configured(*QUADRATIC)).quadratic
    A, _, minimiser = quadratics(0, 3, 4)
    assert found is not None
    torch.testing.assert_close(found.hessian, torch.from_numpy(A.mean(0)))
    torch.testing.assert_close(found.minimiser, torch.from_numpy(minimiser))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (("strategy=fedavg",), DRIFT | STEPS | KNOWN),
        (("strategy=local_adam",), DRIFT | {"distance"}),
        (ADAM, DRIFT | STEPS | KNOWN),
        ((*ADAM, "scaling.scope=local"), DRIFT | {"distance"}),
        (MIXED, DRIFT | STEPS | SPREAD | KNOWN),
        (("strategy=local_adam_averaged",), DRIFT | STEPS | SPREAD | KNOWN),
        (("strategy=fedlada",), DRIFT | STEPS | SPREAD | KNOWN),
        (("strategy=fedpac",), DRIFT | STEPS | SPREAD | KNOWN),
        (("strategy=fedadamw",), DRIFT | STEPS | SPREAD | KNOWN),
        (("strategy=fafed",), DRIFT | STEPS | SPREAD | KNOWN),
        (("strategy=fedmuon",), DRIFT | {"distance"}),
    ],
    ids=lambda v: "-".join(o.split("=")[-1] for o in v) if isinstance(v, tuple) else "",
)
def test_a_run_records_them_on_request_and_is_the_same_without(
    method: tuple[str, ...], expected: set[str], tmp_path: Path
) -> None:
    silent = run(tmp_path / "silent", *QUADRATIC, *method)
    told = run(tmp_path / "told", *QUADRATIC, *method, settings={"diagnostics": "drift"})
    again = run(tmp_path / "again", *QUADRATIC, *method, settings={"diagnostics": "drift"})
    assert told.bytes == again.bytes
    stripped = [{key: value for key, value in line.items() if key not in expected} for line in told.lines]
    text = "".join(json.dumps(line) + "\n" for line in stripped).encode()
    assert (text, told.bytes[1]) == silent.bytes, (
        "nothing but those fields is new: no traffic, no other model"
    )
    assert all(expected <= set(line) for line in told.lines)
    x = torch.from_numpy(told.model)
    minimiser = torch.from_numpy(quadratics(0, 3, 4).minimiser)
    distance = float((x - minimiser).norm() / minimiser.norm())
    assert told.lines[-1]["distance"] == pytest.approx(distance, rel=1e-12)


def test_the_steps_are_those_of_the_d_hat_that_the_round_used(tmp_path: Path) -> None:
    """Not of the one that its end refreshed: round p's steps are step_size over round p - 1's d_max and d_min."""
    lines = run(tmp_path / "run", *QUADRATIC, *ADAM, settings={"diagnostics": "drift"}).lines
    step_size = configured(*QUADRATIC, *ADAM).client.step_size
    for before, after in pairwise(lines):
        assert after["step_min"] == pytest.approx(step_size / before["d_max"], rel=1e-12)
        assert after["step_max"] == pytest.approx(step_size / before["d_min"], rel=1e-12)


EPSILON, STEP_SIZE = 1e-3, 0.1
ONE_STEP: dict[str, Any] = {
    "diagnostics": "drift", "client.local_steps": 1, "client.step_size": STEP_SIZE, "strategy.local.epsilon": EPSILON,
}  # fmt: skip


def gradients(x: torch.Tensor) -> torch.Tensor:
    """Of the three clients at x, (3, 4)."""
    A, c, _ = map(torch.from_numpy, quadratics(0, 3, 4))
    return torch.einsum("mij,mj->mi", A, x - c)


def agrees(line: dict[str, Any], own: torch.Tensor, used: torch.Tensor) -> None:
    """A round's record tells of these denominators of the clients (3, d), and of this one of its steps (d,)."""
    expected = diagnostics.spread(list(own), [1 / 3] * 3) | diagnostics.steps(used, STEP_SIZE)
    assert {key: line[key] for key in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert line["spread_max"] > 0.1, "clients that agree compare nothing"


@pytest.mark.parametrize("strategy", ["local_adam_averaged", "des_loc", "fedlada", "fedpac"])
def test_after_one_adam_step_the_denominators_are_the_sizes_of_the_gradients(
    strategy: str, tmp_path: Path
) -> None:
    """s = (1 - beta2) g^2, and debiased g^2: clients divide by |g_m| + epsilon."""
    lines = run(tmp_path / "run", *QUADRATIC, f"strategy={strategy}", settings=ONE_STEP).lines
    own = gradients(torch.zeros(4, dtype=torch.float64)).abs() + EPSILON
    agrees(lines[0], own, own.mean(0))
    # DES-LOC's second moments come again in round 7.
    assert all((set(line) >= SPREAD | STEPS) == (strategy != "des_loc") for line in lines[1:])


def test_fedadamws_denominators_are_the_root_mean_squares_of_the_tensors(tmp_path: Path) -> None:
    """A number for each tensor travels, the mean of its g^2: all coordinates are alike, and there is no angle."""
    (line, *_) = run(tmp_path / "run", *QUADRATIC, "strategy=fedadamw", settings=ONE_STEP).lines
    own = gradients(torch.zeros(4, dtype=torch.float64)).square().mean(1, keepdim=True).sqrt() + EPSILON
    agrees(line, own.expand(3, 4), own.mean(0).expand(4))
    assert line["angle_max"] == pytest.approx(0, abs=1e-7) and line["step_min"] == line["step_max"]


def test_fafeds_steps_are_those_of_the_servers_denominator_and_clients_end_with_others(
    tmp_path: Path,
) -> None:
    """s = mean_m g_m(x_0)^2 divides the round's one step to u, and s_m = beta s + (1 - beta) g_m(u)^2 is left."""
    more = {"strategy.local.beta": 0.5}
    (line, *_) = run(tmp_path / "run", *QUADRATIC, "strategy=fafed", settings=ONE_STEP | more).lines
    first = gradients(torch.zeros(4, dtype=torch.float64))
    s = first.square().mean(0)
    used = s.sqrt() + EPSILON
    u = -STEP_SIZE * first.mean(0) / used
    agrees(line, (0.5 * s + 0.5 * gradients(u).square()).sqrt() + EPSILON, used)


def test_the_report_draws_them_and_only_then(tmp_path: Path) -> None:
    for name, changes in (("silent", {}), ("told", {"diagnostics": "drift"})):
        done = run(tmp_path / name, *QUADRATIC, *MIXED, settings=changes)
        page = reports.write(done.run_dir).read_text(encoding="utf-8")
        assert ("<h2>Drift</h2>" in page) == (name == "told")
    assert page.count('id="drift-') > 0
    for caption in ("Client drift", "Cosine", "Angle", "Condition of", "Distance to", "Effective", "Norm of"):
        assert f"<figcaption>{caption}" in page


def test_a_strategy_of_flower_cannot_be_asked() -> None:
    with pytest.raises(ConfigError, match="diagnostics=drift"):
        configured(
            "strategy._target_=flwr.serverapp.strategy.FedAvg", "scaling=identity",
            settings={"diagnostics": "drift"},
        )  # fmt: skip
