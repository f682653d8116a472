"""The first rounds of the slow twins by hand: server steps, momentum, proximal terms, control variates.

Two bowls f_i(x) = 1/2 |x - c_i|^2 with c_0 = (0, 0), c_1 = (4, 0) and 1 and 3 examples: w = (1/4, 3/4), their
mean is a bowl around (3, 0). x_0 = (7, -8), step size 1/2. With r_i = x - c_i the gradient:

    at x_0   r_0 = (7, -8), r_1 = (3, -8), mean r = (4, -8)
    1 plain step from x moves by -r_i/2, 2 plain steps move by -3/4 r_i

"0 and 1, then 1" says that both take part in round 1 and client 1 alone in round 2.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
from twins import TWINS
from twins_base import Bowls, Steps, Vector
from twins_sgd import accumulated

TWO = Bowls(a=[[1, 1], [1, 1]], c=[[0, 0], [4, 0]], num_examples=[1, 3])
X0 = np.array([7.0, -8.0])
BOTH, THEN_ONE = [[0, 1], [0, 1]], [[0, 1], [1]]


def run(name: str, rounds: list[list[int]], local_steps: Steps = 1, **hyper: Any) -> list[Vector]:
    return TWINS[name](TWO, X0, rounds, local_steps, 0.5, "examples", **hyper)


def agree(found: list[Vector], *by_hand: tuple[float, float]) -> None:
    """A first round starts at zeros, where much that is wrong cannot be seen."""
    assert len(by_hand) > 1, "work out two rounds at least"
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------- the server


def test_fedavg() -> None:
    # Delta = -(4, -8)/2 = (-2, 4), x = (5, -4);  then client 1 alone: r_1 = (1, -4)
    agree(run("fedavg", THEN_ONE), (5, -4), (4.5, -2))


def test_fedavg_with_equal_weights() -> None:
    # mean r = (5, -8), x_1 = (4.5, -4); r_0 = (4.5, -4), r_1 = (0.5, -4), mean (2.5, -4)
    found = TWINS["fedavg"](TWO, X0, BOTH, 1, 0.5, "uniform")
    agree(found, (4.5, -4), (3.25, -2))


def test_fedavgm() -> None:
    # m = (-2, 4), x_1 = (5, -4);  Delta = -(2, -4)/2 = (-1, 2), m = (-1, 2) + (-1, 2) = (-2, 4)
    agree(run("fedavgm", BOTH, beta=0.5, eta=1.0), (5, -4), (3, 0))


def test_fedadagrad() -> None:
    # v2 = 4 + (4, 16) = (8, 20), tau = 2;  then with x_1 = (a, b): Delta = (-(a - 3)/2, -b/2)
    a, b = 7 - 8 / (sqrt(8) + 2), -8 + 16 / (sqrt(20) + 2)
    x2 = (a - 2 * (a - 3) / (sqrt(8 + (a - 3) ** 2 / 4) + 2), b - 2 * b / (sqrt(20 + b**2 / 4) + 2))
    agree(run("fedadagrad", BOTH, eta=4.0, tau=2.0), (a, b), x2)


ADAPTIVE = {"eta": 8.0, "tau": 2.0, "beta1": 0.5, "beta2": 0.5}


def test_fedadam() -> None:
    # m = (-1, 2), v2 = 1/2 4 + 1/2 (4, 16) = (4, 10), x_1 = (7 - 8/4, -8 + 16/(sqrt 10 + 2)) = (5, b)
    # Delta = (-1, -b/2), m = (-1, 1 - b/4), v2 = (2 + 1/2, 5 + b^2/8)
    b = -8 + 16 / (sqrt(10) + 2)
    x2 = (5 - 8 / (sqrt(2.5) + 2), b + 8 * (1 - b / 4) / (sqrt(5 + b**2 / 8) + 2))
    agree(run("fedadam", BOTH, **ADAPTIVE), (5, b), x2)


def test_fedyogi() -> None:
    # v2: 4 - 4 has sign 0, so 4;  4 - 16 < 0, so 4 + 8 = 12.  x_1 = (5, b) with b near -5
    # Delta^2 = (1, b^2/4), both below v2: v2 = (4 - 1/2, 12 - b^2/8)
    b = -8 + 16 / (sqrt(12) + 2)
    x2 = (5 - 8 / (sqrt(3.5) + 2), b + 8 * (1 - b / 4) / (sqrt(12 - b**2 / 8) + 2))
    agree(run("fedyogi", BOTH, **ADAPTIVE), (5, b), x2)


def test_fedams() -> None:
    # As fedadam, but v2 fell in round 2, so the (4, 10) of round 1 stays
    b = -8 + 16 / (sqrt(10) + 2)
    agree(run("fedams", BOTH, **ADAPTIVE), (5, b), (5 - 8 / 4, b + 8 * (1 - b / 4) / (sqrt(10) + 2)))


@pytest.mark.parametrize(
    ("rule", "d2"),
    [
        # Round 1: D = |Delta| = (2, 4) under each rule, x_1 = (7 - 2, -8 + 2). Round 2: Delta = (-1, 3).
        ("adagrad", (sqrt(4 + 1), sqrt(16 + 9))),
        ("rmsprop", (sqrt(2.5), sqrt(12.5))),
        ("adam", (sqrt(4 / 3 + 2 / 3), sqrt(16 / 3 + 2 / 3 * 9))),  # beta_1 = (1/2 - 1/4)/(1 - 1/4) = 1/3
        ("oasis", (1.5, 3.5)),  # 1/2 (-2, 4) + 1/2 (-1, 3), signs dropped in the floor
    ],
)
def test_scaled_server(rule: str, d2: tuple[float, float]) -> None:
    found = run("scaled_server", BOTH, rule=rule, eta=2.0, beta=0.5)
    agree(found, (5, -6), (5 - 2 / d2[0], -6 + 6 / d2[1]))


# ------------------------------------------------------------------------- momentum, proximal terms, FedNova


@pytest.mark.parametrize(
    ("buffer", "x2"),
    [
        # Two steps with momentum 1/2: b = r, v = x - r/2; b = r/2 + r/2 = r, v = x - r: to the minimum of f_i.
        # Round 2, client 1 at (3, 0), r = (-1, 0).
        ("reset", (4, 0)),
        # b = 1/2 (3, -8) + (-1, 0) = (0.5, -4), moved (-0.25, 2);  b = (0.25, -2) + (-1.25, 2) = (-1, 0)
        ("kept", (3.25, 2)),
        # b = 1/2 (4, -8) + (-1, 0) = (1, -4), moved (-0.5, 2);  b = (0.5, -2) + (-1.5, 2) = (-1, 0)
        ("averaged", (3, 2)),
    ],
)
def test_local_momentum(buffer: str, x2: tuple[float, float]) -> None:
    agree(run("local_momentum", THEN_ONE, 2, momentum=0.5, buffer=buffer), (3, 0), x2)


def test_fedprox() -> None:
    # mu = 1: after one step v - x = -r/2, the gradient there r/2 and the pull back -r/2 cancel: v stays
    agree(run("fedprox", BOTH, 2, mu=1.0), (5, -4), (4, -2))


def test_fednova() -> None:
    # 1 and 2 steps: moved (-3.5, 4) and (-2.25, 6); n = 1/4 + 3/4 * 2 = 7/4
    # x_1 = x_0 + 7/4 (1/4 (-3.5, 4) + 3/8 (-2.25, 6)) = x_0 + 7/4 (-1.71875, 3.25)
    # client 1 alone is not changed: 3/4 of the way to c_1
    x1 = (7 - 3.0078125, -8 + 5.6875)
    agree(run("fednova", THEN_ONE, (1, 2)), x1, (4 + (x1[0] - 4) / 4, x1[1] / 4))


def test_fednova_with_momentum() -> None:
    # momentum 1/2: client 1 moves -r_1 in two steps, coefficients 1 + 1/2 and 1, so n_1 = 5/2; n = 1/4 + 15/8
    # x_1 = x_0 + 17/8 (1/4 (-3.5, 4) + 3/10 (-3, 8)) = x_0 + 17/8 (-1.775, 3.4)
    x1 = (7 - 3.771875, -8 + 7.225)
    agree(run("fednova", THEN_ONE, (1, 2), momentum=0.5), x1, (4, 0))


def test_fednova_with_proximal_term() -> None:
    # mu = 1: client 1 moves -r_1/2, coefficients 1/2 and 1, so n_1 = 3/2; n = 1/4 + 9/8
    # x_1 = x_0 + 11/8 (1/4 (-3.5, 4) + 1/2 (-1.5, 4)) = x_0 + 11/8 (-1.625, 3)
    x1 = (7 - 2.234375, -8 + 4.125)
    agree(run("fednova", THEN_ONE, (1, 2), mu=1.0), x1, (4 + (x1[0] - 4) / 2, x1[1] / 2))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_fednova_coefficients_are_those_of_the_paper(k: int) -> None:
    rho, pull = 0.9, 0.1 * 0.5
    assert accumulated(k, 0.1, 0, 0) == k
    np.testing.assert_allclose(accumulated(k, 0.1, rho, 0), (k - rho * (1 - rho**k) / (1 - rho)) / (1 - rho))
    np.testing.assert_allclose(accumulated(k, 0.1, 0, 0.5), (1 - (1 - pull) ** k) / pull)


# ------------------------------------------------------------------------------------------ control variates


def test_scaffold() -> None:
    # Two steps with correction e = c - c_i move by -3/4 (r_i + e).
    # Round 1: e = 0, x_1 = x_0 - 3/4 (4, -8) = (4, -2);  c_i = (x - v)/(2 * 1/2) = 3/4 r_i, c = (3, -6)
    # Round 2, client 1: r_1 = (0, -2), e = (3, -6) - (2.25, -6) = (0.75, 0), moves -3/4 (0.75, -2) = (-0.5625, 1.5)
    #   c_1' = -e + (0.5625, -1.5) = (-0.1875, -1.5), c = (3, -6) + 3/4 (-2.4375, 4.5) = (1.171875, -2.625)
    # Round 3, client 0: r_0 = (3.4375, -0.5), e = c - (5.25, -6), moves -3/4 (-0.640625, 2.875)
    agree(run("scaffold", [[0, 1], [1], [0]], 2), (4, -2), (3.4375, -0.5), (3.91796875, -2.65625))


def test_scaffold_option_one() -> None:
    # c_i = r_i at x_0, c = (4, -8); round 2, client 1: e = (1, 0), moves -3/4 (1, -2)
    agree(run("scaffold", THEN_ONE, 2, option=1), (4, -2), (3.25, -0.5))


def test_scaffold_server_step() -> None:
    # c_i = 3/4 r_i; round 2, client 1: r_1 = (-3, 4), e = (0.75, 0), moves -3/4 (-2.25, 4), and twice as far
    agree(run("scaffold", THEN_ONE, 2, eta=2.0), (1, 4), (4.375, -2))


def test_mimelite_with_momentum() -> None:
    # Round 1: m = 0, moves -1/2 (1/2 r): x_1 = x_0 - (4, -8)/4 = (6, -6);  m = 1/2 (4, -8)
    # Round 2, client 1: r_1 = (2, -6), moves -1/4 ((2, -6) + (2, -4)) = (-1, 2.5)
    agree(run("mimelite", THEN_ONE, beta1=0.5), (6, -6), (5, -3.5))


def test_mimelite_with_adam() -> None:
    # Probe: D = (4, 8). Round 1 moves -1/2 (1/2 (4, -8))/D = (-1/4, 1/4); m = (2, -4), G = (4, -8) again: D stays
    # Round 2: G = (3.75, -7.75), moves -1/4 (5.75, -11.75)/(4, 8)
    found = run("mimelite", BOTH, base="adam", beta1=0.5, beta2=0.5)
    agree(found, (6.75, -7.75), (6.75 - 5.75 / 16, -7.75 + 11.75 / 32))


def test_mime() -> None:
    # Equal curvature: the corrected gradient is (v - x) + G at each client.
    # Round 1: moved -G/4, then -G/4 - 1/4 (3/4 G) = -7/16 G = (-1.75, 3.5);  m = (2, -4)
    # Round 2: G = (2.25, -4.5), moved u = -1/4 (G + m) = (-1.0625, 2.125), then 7/4 u
    agree(run("mime", BOTH, 2, beta1=0.5), (5.25, -4.5), (5.25 - 1.859375, -4.5 + 3.71875))


def test_feddyn() -> None:
    # alpha = 1. Round 1: moved -r_i/2, l_i = r_i/2, h = (2, -4), x_1 = x_0 - (2, -4) - (2, -4) = (3, 0)
    # Round 2, client 1: moved -1/2 ((-1, 0) - (1.5, -4)) = (1.25, -2), h = (2, -4) - 3/4 (1.25, -2)
    agree(run("feddyn", THEN_ONE, alpha=1.0), (3, 0), (3 + 1.25 - 1.0625, -2 + 2.5))


# ------------------------------------------------------------------------------------------- scaled local steps


def test_scaled_local() -> None:
    # Probe: D-hat = (4, 8), and the statistic of round 1, which is at x_0 too, changes nothing
    # Then H = (3.5, 7.5), beta_2 = (1/2 - 1/8)/(1 - 1/8) = 3/7: D^2 = 3/7 (16, 64) + 4/7 H^2
    x1, x2, h = (6.5, -7.5), (6.0625, -7.03125), (3.5, 7.5)
    d = [sqrt((3 * before + 4 * new**2) / 7) for before, new in zip((16, 64), h, strict=True)]
    x3 = (x2[0] - (x2[0] - 3) / 2 / d[0], x2[1] - x2[1] / 2 / d[1])
    agree(run("scaled_local", [*BOTH, [0, 1]], rule="adam", beta=0.5), x1, x2, x3)


def test_scaled_local_by_curvature() -> None:
    # the curvature is 1: as without
    agree(run("scaled_local", BOTH, rule="oasis", statistic="hutchinson"), (5, -4), (4, -2))


@pytest.mark.parametrize("mixing", ["mean", "preconditioned"])
def test_scaled_local_with_a_d_of_each_clients_own(mixing: str) -> None:
    # D_0 = |r_0| = (7, 8), D_1 = |r_1| = (3, 8), and in round 1, at x_0 too, the same: both move -1/2 (1, -1)
    # Round 2: r_0 = (6.5, -7.5), r_1 = (2.5, -7.5); mixed, -1/2 (3.5, -7.5) over the mean D (4, 8)
    a, b = 6.5 - 6.5 / 14, 6.5 - 2.5 / 6
    x2 = {"mean": a / 4 + 3 * b / 4, "preconditioned": 6.0625}[mixing]
    agree(run("scaled_local", BOTH, scope="local", beta=0.5, mixing=mixing), (6.5, -7.5), (x2, -7.03125))


def test_every_twin_is_tried(request: pytest.FixtureRequest) -> None:
    """A twin that lost its hand-worked test would stand unchecked."""
    written = "".join(page.read_text() for page in request.path.parent.glob("test_twins_*by_hand.py"))
    assert [name for name in TWINS if f'"{name}"' not in written] == []
