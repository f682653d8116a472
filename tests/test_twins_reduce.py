"""The slow twins reduce to each other, to torch's optimizers, and rest where they should.

Four clients with unequal shards, three or four of them in a round, so that late comers and absent clients occur.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from twin import Draws, Quadratics, Settings, Softmax, scaled_local
from twins import TWINS
from twins_base import Bowls, FullBatch, Problem, Rounds, Steps, Vector, mean, shares

rng = np.random.default_rng(1)
NUM_EXAMPLES = (2, 5, 3, 7)
SOFTMAX = FullBatch(
    Softmax(
        [rng.normal(size=(n, 2)) for n in NUM_EXAMPLES], [[i % 3 for i in range(n)] for n in NUM_EXAMPLES], 3
    )
)
EQUAL = FullBatch(
    Softmax([SOFTMAX.problem.features[1]] * 4, [SOFTMAX.problem.targets[1]] * 4, 3)
)  # same data
X0 = rng.normal(size=9)
ROUNDS = ([0, 2, 3], [0, 1, 2], [1, 2, 3], [0, 1, 2, 3], [0, 3, 1], [1, 3])
ALL = ([0, 1, 2, 3],) * 6


def run(
    name: str, *, problem: Problem = SOFTMAX, rounds: Rounds = ROUNDS, local_steps: Steps = 3, **hyper: Any
) -> list[Vector]:
    return TWINS[name](
        problem, hyper.pop("x0", X0), rounds, local_steps, hyper.pop("step_size", 0.3), **hyper
    )


def same(a: list[Vector], b: list[Vector], atol: float = 1e-12) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


ADAM = {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3}


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("fedavgm", {"beta": 0.0, "eta": 1.0}),
        ("scaled_server", {"rule": "identity", "eta": 1.0}),
        ("fedprox", {"mu": 0.0}),
        ("fednova", {}),
        ("local_momentum", {"momentum": 0.0}),
        ("mimelite", {"beta1": 0.0}),
        ("norm_clipping", {"max_norm": 1e9}),
        ("local_muon", {"momentum": 0.0, "shapes": [(9,)]}),
    ],
)
def test_reduces_to_fedavg(name: str, hyper: dict[str, Any], weights: str) -> None:
    same(run(name, weights=weights, **hyper), run("fedavg", weights=weights))


@pytest.mark.parametrize(("name", "hyper"), [("trimmed_mean", {"trim": 0.0}), ("bulyan", {"num_hostile": 0})])
def test_reduces_to_the_equal_mean(name: str, hyper: dict[str, Any]) -> None:
    rounds = [clients for clients in ROUNDS if len(clients) > 2]
    same(run(name, rounds=rounds, **hyper), run("fedavg", rounds=rounds, weights="uniform"))


@pytest.mark.parametrize("name", ["scaffold", "mime", "median", "krum", "trimmed_mean", "geometric_median"])
def test_equal_clients_all_present_make_it_fedavg(name: str) -> None:
    hyper = {"beta1": 0.0} if name == "mime" else {}
    same(run(name, problem=EQUAL, rounds=ALL, **hyper), run("fedavg", problem=EQUAL, rounds=ALL))


@pytest.mark.parametrize("hyper", [{"momentum": 0.8}, {"mu": 0.5}])
def test_fednova_with_equal_steps_is_the_mean_of_that_optimizer(hyper: dict[str, float]) -> None:
    same(run("fednova", **hyper), run("local_momentum" if "momentum" in hyper else "fedprox", **hyper))


@pytest.mark.parametrize("start", ["statistic", "ones"])
@pytest.mark.parametrize("base", ["rmsprop", "adam"])
def test_mimelite_is_the_scaled_local_method(base: str, start: str) -> None:
    # global scope, full-batch gradient statistic, square of the mean; adam without momentum is the adam rule
    draws = Draws(
        participants=lambda p: list(ROUNDS[max(p, 1) - 1]),
        batch=lambda p, m, k: list(range(NUM_EXAMPLES[m])),
        z=lambda p, k: np.ones(9),
        labels=lambda p, m, k: [],
    )
    settings = Settings(
        rule=base, step_size=0.03, local_steps=(3,) * 4, num_rounds=6, beta=0.9, alpha=0.01, start=start
    )
    found = run("mimelite", step_size=0.03, base=base, beta1=0.0, beta2=0.9, alpha=0.01, start=start)
    same(found, scaled_local(SOFTMAX.problem, settings, draws, X0).x[1:])


def test_mime_with_one_client_is_mimelite() -> None:
    for base in ("sgd", "rmsprop", "adam"):
        same(*(run(name, rounds=[[1]] * 4, base=base, beta1=0.6) for name in ("mime", "mimelite")))


def test_fedada2_with_a_plain_client_is_fedadam_of_sign_steps() -> None:
    # a fresh Adam's first step is sign(g); the server then sees Delta = -step_size * mean(sign(g))
    problem = Bowls([[1, 2]] * 2, [[0, 0], [0, 0]], [1, 3])
    x0, server = np.array([50.0, -50.0]), {"eta": 0.3, "tau": 0.1}
    found = run(
        "fedada2", problem=problem, rounds=[[0, 1]] * 3, local_steps=2, x0=x0, beta1=0.0, beta2=0.0, **server
    )
    m, v2, delta = np.zeros(2), 0.01, 0.6 * np.array([-1.0, 1.0])
    for x in found:
        m, v2 = 0.9 * m + 0.1 * delta, 0.99 * v2 + 0.01 * delta**2
        x0 = x0 + 0.3 * m / (np.sqrt(v2) + 0.1)
        np.testing.assert_allclose(x, x0, rtol=1e-7)


def test_diloco_without_an_outer_optimizer_is_local_adamw() -> None:
    same(run("diloco", eta=1.0, momentum=0.0, **ADAM), run("local_adamw", state="kept", **ADAM))


@pytest.mark.parametrize("local_steps", [2, (2, 1, 3, 5)])
def test_des_loc_with_all_periods_one_is_local_adam_averaged(local_steps: Steps) -> None:
    found = run("des_loc", local_steps=local_steps, m_every=1, v_every=1, **ADAM)
    same(found, run("local_adam", local_steps=local_steps, state="averaged", **ADAM))


def test_feddyn_with_one_step_is_optimistic_gradient_descent() -> None:
    # Of all clients, alpha = 1/step_size: l_i becomes g_i, h the mean G, and x <- x - step_size (2 G - the G before)
    found, x, before = run("feddyn", rounds=ALL, local_steps=1, step_size=0.1, alpha=10.0), X0, np.zeros(9)
    for expected in found:
        now = mean(shares(SOFTMAX, ALL[0], "examples"), [SOFTMAX.gradient(i, x) for i in ALL[0]])
        x, before = x - 0.1 * (2 * now - before), now
        np.testing.assert_allclose(expected, x, rtol=0, atol=1e-12)


def test_fedlada_fedpac_and_fedadamw_meet_without_their_terms() -> None:
    found = run("fedlada", a=0.0, **ADAM)
    same(found, run("fedpac", b=0.0, **ADAM))
    same(found, run("fedadamw", a=0.0, weight_decay=0.0, blocks=(1,) * 9, **ADAM))
    same(found[:1], run("local_adam", **ADAM)[:1])


def test_fafed_without_memory_is_gradient_descent_over_the_probe() -> None:
    # a = 1, beta = 1, one client: m is the gradient at v, v2 stays g(x_0)^2
    g0 = SOFTMAX.gradient(1, X0)
    found, v = run("fafed", rounds=[[1]] * 3, a=1.0, beta=1.0, eps=0.1), X0
    for x in found:
        for _ in range(3):
            v = v - 0.3 * SOFTMAX.gradient(1, v) / (np.abs(g0) + 0.1)
        np.testing.assert_allclose(x, v, atol=1e-12)


def test_fedmuon_with_one_client_is_local_muon() -> None:
    # its control variate and the server's are then the same
    only = FullBatch(Softmax(SOFTMAX.problem.features[:1], SOFTMAX.problem.targets[:1], 3))
    shapes = [(3, 2), (3,)]
    muon = run("local_muon", problem=only, rounds=[[0]] * 4, shapes=shapes, nesterov=False, buffer="kept")
    same(run("fedmuon", problem=only, rounds=[[0]] * 4, shapes=shapes), muon)


# -------------------------------------------------------------------------------------------- torch's optimizers


@pytest.mark.parametrize(
    ("name", "hyper", "optimizer", "atol"),
    [
        ("local_adam", {"state": "kept", "weight_decay": 0.1}, "Adam", 1e-12),
        ("local_adam", {"state": "averaged"}, "Adam", 1e-12),
        ("local_adamw", {"state": "kept", "weight_decay": 0.1}, "AdamW", 1e-12),
        ("local_momentum", {"momentum": 0.9, "buffer": "kept"}, "SGD", 1e-12),
        # torch's Newton-Schulz works in bfloat16, so only about two digits of a step agree
        ("local_muon", {"buffer": "kept", "shapes": [(3, 3)], "weight_decay": 0.1}, "Muon", 0.02),
    ],
)
def test_one_client_is_torch(name: str, hyper: dict[str, Any], optimizer: str, atol: float) -> None:
    x = torch.nn.Parameter(torch.from_numpy(X0.reshape(3, 3).copy()))
    passed = {k: v for k, v in hyper.items() if k in ("momentum", "weight_decay")}
    torch_optimizer = getattr(torch.optim, optimizer)([x], lr=0.1, **passed)
    expected = []
    for _ in range(3):
        for _ in range(2):
            x.grad = torch.from_numpy(SOFTMAX.gradient(1, x.detach().numpy().ravel()).reshape(3, 3))
            torch_optimizer.step()
        expected.append(x.detach().numpy().ravel().copy())
    same(run(name, rounds=[[1]] * 3, local_steps=2, step_size=0.1, **hyper), expected, atol)


def test_fedavg_with_one_step_is_torchs_sgd_on_all_examples() -> None:
    """One local step of all clients, weighted by their examples, is one step of gradient descent on one machine."""
    softmax = SOFTMAX.problem
    features = torch.from_numpy(np.concatenate(softmax.features))
    targets = torch.from_numpy(np.concatenate(softmax.targets))
    model = torch.nn.Linear(2, 3, dtype=torch.float64)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(X0.copy()), model.parameters())
    optimizer, expected = torch.optim.SGD(model.parameters(), lr=0.3), []
    for _ in ALL:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(features), targets).backward()
        optimizer.step()
        expected.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy())
    same(run("fedavg", rounds=ALL, local_steps=1), expected)


def test_the_outer_step_of_diloco_is_torch_sgd_with_nesterov() -> None:
    # one inner step with betas 0 is a sign step, so the outer gradient is step_size * sign(g)
    x = torch.nn.Parameter(torch.from_numpy(X0.copy()))
    outer, expected = torch.optim.SGD([x], lr=0.7, momentum=0.9, nesterov=True), []
    for _ in range(4):
        g = SOFTMAX.gradient(1, x.detach().numpy())
        x.grad = torch.from_numpy(0.1 * np.sign(g))
        outer.step()
        expected.append(x.detach().numpy().copy())
    inner = {"beta1": 0.0, "beta2": 0.0, "eps": 0.0, "weight_decay": 0.0}
    same(run("diloco", rounds=[[1]] * 4, local_steps=1, step_size=0.1, **inner), expected)


# ------------------------------------------------------------------------------------------------ where they rest

BOWLS = Bowls([[1, 4], [3, 1], [2, 2]], [[0, 1], [4, -1], [2, 5]], [1, 5, 2])


def minimum(weights: str) -> Vector:
    """Of f = sum_i p_i f_i over all three clients, coordinate by coordinate: sum p a c / sum p a."""
    p, a, c = shares(BOWLS, [0, 1, 2], weights), np.array(BOWLS.a, float), np.array(BOWLS.c, float)
    return mean(p, list(a * c)) / mean(p, list(a))


PAIRS = ([0, 1], [1, 2], [0, 2]) * 300


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize(
    ("name", "hyper"),
    [("scaffold", {}), ("scaffold", {"option": 1}), ("feddyn", {"alpha": 1.0}), ("fedmuon", {})],
)
def test_control_variates_rest_at_the_minimum_with_two_of_three_in_a_round(
    name: str, hyper: dict[str, Any], weights: str
) -> None:
    x = run(name, problem=BOWLS, rounds=PAIRS, x0=np.zeros(2), step_size=0.05, weights=weights, **hyper)[-1]
    np.testing.assert_allclose(x, minimum(weights), atol=1e-6)


def rest(name: str, **hyper: Any) -> Vector:
    rounds = ([0, 1, 2],) * 3000
    return run(name, problem=BOWLS, rounds=rounds, x0=np.zeros(2), **hyper)[-1]


def test_mime_rests_at_the_minimum_and_fedavg_does_not() -> None:
    np.testing.assert_allclose(rest("mime", step_size=0.1), minimum("examples"), atol=1e-6)
    assert np.max(np.abs(rest("fedavg", step_size=0.1) - minimum("examples"))) > 0.05


def test_unequal_steps_move_fedavg_to_another_problem_and_fednova_back() -> None:
    # As the step size falls FedAvg solves sum_i w_i K_i grad f_i = 0, FedNova sum_i w_i grad f_i = 0
    steps = (1, 2, 6)
    tilted = Bowls(BOWLS.a, BOWLS.c, [n * k for n, k in zip(BOWLS.num_examples, steps, strict=True)])
    a, c, p = np.array(BOWLS.a, float), np.array(BOWLS.c, float), shares(tilted, [0, 1, 2], "examples")
    elsewhere = mean(p, list(a * c)) / mean(p, list(a))
    assert np.max(np.abs(elsewhere - minimum("examples"))) > 0.3
    small: dict[str, Any] = {"step_size": 1e-3, "local_steps": steps}
    np.testing.assert_allclose(rest("fedavg", **small), elsewhere, atol=0.03)
    np.testing.assert_allclose(rest("fednova", **small), minimum("examples"), atol=0.03)


@pytest.mark.parametrize(("mixing", "x"), [("mean", 2.0), ("preconditioned", 3.0)])
def test_local_scaling_of_two_bowls_rests_where_its_mixing_says(mixing: str, x: float) -> None:
    # a = (1, 3), c = (0, 4), D_i = a_i, half of the way to c_i: (c_1 + c_2)/2 = 2 against (0 + 12)/4 = 3
    two = Quadratics(
        [np.full((1, 1, 1), 1.0), np.full((1, 1, 1), 3.0)], [np.zeros((1, 1)), np.full((1, 1), 4.0)]
    )
    draws = Draws(lambda p: [0, 1], lambda p, m, k: [0], lambda p, k: np.ones(1), lambda p, m, k: [])
    settings = Settings(
        rule="oasis",
        statistic="hutchinson",
        scope="local",
        mixing=mixing,
        step_size=0.5,
        local_steps=(1, 1),
        num_rounds=60,
    )
    np.testing.assert_allclose(scaled_local(two, settings, draws, np.array([10.0])).x[-1], x, atol=1e-12)
