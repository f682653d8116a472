"""The first two steps of the twin by hand: one client, one local step, x_0 = (1, -1), step size 0.1.

The two examples have f(v; 0) = v_1^2 + 2 v_2^2, gradient (2 v_1, 4 v_2), and f(v; 1) = 2 v_1^2 + v_2^2,
gradient (4 v_1, 2 v_2). The probe draws example 0, round 1 example 1, round 2 example 0. So for
gradient statistics

    probe    H = |(2, -4)| = (2, 4)
    round 1  g = (4, -2)                 at x_0, also the statistic that D of round 2 learns: H = (4, 2)
    round 2  g = (2 x_1, 4 x_2)          at x
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
from twin import Draws, Quadratics, Settings, Softmax, Vector, scaled_local

TWO = Quadratics([np.array([np.diag([2.0, 4.0]), np.diag([4.0, 2.0])])], [np.zeros((2, 2))])
X0 = np.array([1.0, -1.0])


def draws(*z: tuple[float, float]) -> Draws:
    return Draws(
        participants=lambda round: [0],
        batch=lambda round, client, step: [(0, 1, 0)[round]],
        z=lambda round, step: np.array(z[round]),
        labels=lambda round, client, step: [],
    )


def first_two(problem: Quadratics, draws: Draws, **settings: Any) -> list[Vector]:
    fixed = Settings(num_rounds=2, step_size=0.1, beta=0.5, alpha=0.1)
    return scaled_local(problem, replace(fixed, **settings), draws, X0).x[1:]


def agree(found: list[Vector], *by_hand: tuple[float, float]) -> None:
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-15)


def test_identity() -> None:
    # x_1 = (1, -1) - 0.1 (4, -2) = (0.6, -0.8);  g = (1.2, -3.2);  x_2 = (0.48, -0.48)
    agree(first_two(TWO, draws(), rule="identity"), (0.6, -0.8), (0.48, -0.48))


def test_adam() -> None:
    # t = 0: beta_0 = 0, D^2 = (4, 16), D-hat = (2, 4);  x_1 = (1 - 0.1 * 4/2, -1 + 0.1 * 2/4) = (0.8, -0.95)
    # t = 1: beta_1 = (1/2 - 1/4) / (1 - 1/4) = 1/3
    #        D^2 = 1/3 (4, 16) + 2/3 (16, 4) = (12, 8);  g = (1.6, -3.8)
    x2 = (0.8 - 0.16 / sqrt(12), -0.95 + 0.38 / sqrt(8))
    agree(first_two(TWO, draws(), rule="adam"), (0.8, -0.95), x2)


def test_adam_is_bias_corrected() -> None:
    # Adam's v-hat after the statistics (2, 4), (4, 2): v = 1/2 (1/2 (4, 16)) + 1/2 (16, 4) = (9, 6),
    # divided by 1 - 1/4: (12, 8), the D^2 above.
    np.testing.assert_allclose(np.array([9.0, 6.0]) / (1 - 0.5**2), (12, 8))


def test_rmsprop() -> None:
    # As adam, but beta_1 = 1/2: D^2 = 1/2 (4, 16) + 1/2 (16, 4) = (10, 10)
    x2 = (0.8 - 0.16 / sqrt(10), -0.95 + 0.38 / sqrt(10))
    agree(first_two(TWO, draws(), rule="rmsprop"), (0.8, -0.95), x2)


def test_adagrad() -> None:
    # D^2 = 0 + (4, 16), then + (16, 4) = (20, 20)
    x2 = (0.8 - 0.16 / sqrt(20), -0.95 + 0.38 / sqrt(20))
    agree(first_two(TWO, draws(), rule="adagrad"), (0.8, -0.95), x2)


def test_adagrad_started_at_ones() -> None:
    # No probe. D-hat = 1: x_1 = (0.6, -0.8). D^2 = 1 + (16, 4) = (17, 5);  g = (1.2, -3.2)
    x2 = (0.6 - 0.12 / sqrt(17), -0.8 + 0.32 / sqrt(5))
    agree(first_two(TWO, draws(), rule="adagrad", start="ones"), (0.6, -0.8), x2)


def test_oasis_keeps_the_sign() -> None:
    # Hutchinson with A_0 = diag(2, 4), A_1 = [1 3; 3 -2];  z = (1, 1) in the probe, (1, -1) in round 1
    # probe: z * A_0 z = (2, 4);  round 1: A_1 z = (1 - 3, 3 + 2) = (-2, 5), z * that = (-2, -5)
    # x_1: g = A_1 x_0 = (-2, 5);  (1 + 0.1 * 2/2, -1 - 0.1 * 5/4) = (1.1, -1.125)
    # D = 1/2 (2, 4) + 1/2 (-2, -5) = (0, -0.5);  D-hat = max(0.1, |D|) = (0.1, 0.5)
    # x_2: g = (2.2, -4.5);  (1.1 - 0.1 * 2.2/0.1, -1.125 + 0.1 * 4.5/0.5) = (-1.1, -0.225)
    indefinite = Quadratics([np.array([[[2.0, 0], [0, 4]], [[1, 3], [3, -2]]])], [np.zeros((2, 2))])
    found = first_two(indefinite, draws((1, 1), (1, -1), (1, 1)), rule="oasis", statistic="hutchinson")
    agree(found, (1.1, -1.125), (-1.1, -0.225))


def test_floor_and_cap() -> None:
    # add: D-hat = (2, 4) + 1, capped at 4: (3, 4);  x_1 = (1 - 0.4/3, -1 + 0.2/4)
    found = first_two(TWO, draws(), rule="adam", floor="add", alpha=1.0, upper_bound=4.0)
    agree(found[:1], (1 - 0.4 / 3, -0.95))
    # max: alpha = 3 lifts 2 alone: (3, 4)
    agree(first_two(TWO, draws(), rule="adam", alpha=3.0)[:1], (1 - 0.4 / 3, -0.95))


def test_displacement_is_the_mean_gradient() -> None:
    # No probe, D-hat = 1: x_1 = (0.6, -0.8). H = (x_0 - x_1)/0.1 = (4, -2), the gradient.  D-hat = (4, 2)
    # x_2: g = (1.2, -3.2);  (0.6 - 0.12/4, -0.8 + 0.32/2) = (0.57, -0.64)
    found = first_two(TWO, draws(), rule="rmsprop", statistic="displacement")
    agree(found, (0.6, -0.8), (0.57, -0.64))


def test_momentum_is_kept_or_reset() -> None:
    # identity, momentum 1/2. b_1 = (4, -2), x_1 = (0.6, -0.8); reset: b_2 = g = (1.2, -3.2), as without;
    # kept and averaged: b_2 = (2, -1) + (1.2, -3.2) = (3.2, -4.2), x_2 = (0.28, -0.38)
    settings: dict[str, Any] = {"rule": "identity", "momentum": 0.5}
    agree(first_two(TWO, draws(), **settings), (0.6, -0.8), (0.48, -0.48))
    for kind in ("kept", "averaged"):
        agree(first_two(TWO, draws(), **settings, momentum_buffer=kind), (0.6, -0.8), (0.28, -0.38))


def test_sophia_steps_are_clipped() -> None:
    # D-hat = (2, 4): the step directions 4/2 = 2 and -2/4 = -0.5 become 1 and -0.5 with rho = 1
    agree(first_two(TWO, draws(), rule="sophia", rho=1.0)[:1], (0.9, -0.95))


def test_preconditioned_mixing_of_two_clients() -> None:
    # f_m(v) = a_m/2 |v - c_m|^2 with a = (1, 3), c = (0, 4): one step of size 1 with D_m = a_m goes to c_m;
    # the plain mean is 2, the preconditioned one (1 * 0 + 3 * 4)/(1 + 3) = 3, the minimum of the sum.
    curvature = [np.full((1, 1, 1), 1.0), np.full((1, 1, 1), 3.0)]
    problem = Quadratics(curvature, [np.zeros((1, 1)), np.full((1, 1), 4.0)])
    both = Draws(lambda p: [0, 1], lambda p, m, k: [0], lambda p, k: np.ones(1), lambda p, m, k: [])
    local = Settings(rule="oasis", statistic="hutchinson", scope="local", step_size=1.0, local_steps=(1, 1))
    assert scaled_local(problem, local, both, np.ones(1)).x[1] == 2
    mixed = replace(local, mixing="preconditioned")
    assert scaled_local(problem, mixed, both, np.ones(1)).x[1] == 3


def test_clock_starts_with_ones_before_any_refresh() -> None:
    history = scaled_local(TWO, Settings(start="ones", num_rounds=2), draws(), X0)
    np.testing.assert_array_equal(history.d_hat[0], [1, 1])
    np.testing.assert_array_equal(history.d_hat[1], [4, 2])


@pytest.mark.parametrize("seed", range(3))
def test_softmax_derivatives_agree_with_differences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = Softmax([rng.normal(size=(5, 3))], [[0, 1, 3, 2, 3]], num_classes=4)
    v, z, batch, h = rng.normal(size=16), rng.choice([-1.0, 1.0], size=16), [0, 2, 3, 4], 1e-5

    slopes = [
        (problem.loss(0, v + h * e, batch) - problem.loss(0, v - h * e, batch)) / (2 * h) for e in np.eye(16)
    ]
    np.testing.assert_allclose(problem.gradient(0, v, batch), slopes, atol=1e-8)
    along_z = (problem.gradient(0, v + h * z, batch) - problem.gradient(0, v - h * z, batch)) / (2 * h)
    np.testing.assert_allclose(problem.hvp(0, v, batch, z), along_z, atol=1e-8)
