"""The first rounds of the slow twins by hand: clients that step with Adam or Muon.

The two bowls of tests/test_twins_by_hand.py: gradients r_i = x - c_i, at x_0 = (7, -8) r_0 = (7, -8) and
r_1 = (3, -8) with weights 1/4 and 3/4; step size 1/2. Both betas are 1/2 and eps is 0, so a fresh Adam's first
step is 1/2 sign(r), and in the first round the clients' v2 = r^2/2 has the mean 1/2 (1/4 49 + 3/4 9, 64) = (9.5, 32).
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
from test_twins_by_hand import BOTH, THEN_ONE, TWO, X0, agree
from twins import TWINS
from twins_base import Steps, Vector
from twins_muon import newton_schulz

HALF = {"beta1": 0.5, "beta2": 0.5, "eps": 0.0}


def run(name: str, rounds: list[list[int]], local_steps: Steps = 1, **hyper: Any) -> list[Vector]:
    return TWINS[name](TWO, X0, rounds, local_steps, 0.5, "examples", **hyper)


# ------------------------------------------------------------------------------------------------------- Adam

# Round 2, client 1 at (6.5, -7.5), r = (2.5, -7.5), t = 2, divisors 1 - 1/4 = 3/4, v2-hat from its own v2:
OWN_V2 = ((9 / 4 + 6.25 / 2) / 0.75, (64 / 4 + 56.25 / 2) / 0.75)


@pytest.mark.parametrize(
    ("state", "x2"),
    [
        ("restart", (6, -7)),
        # m-hat = (3/4 + 2.5/2, -8/4 - 7.5/2)/(3/4)
        ("kept", (6.5 - (2 / 0.75) / 2 / sqrt(OWN_V2[0]), -7.5 + (5.75 / 0.75) / 2 / sqrt(OWN_V2[1]))),
        # m-hat = 1/2 (1/2 (4, -8) + (2.5, -7.5))/(3/4), v2-hat = 1/2 ((9.5, 32) + (6.25, 56.25))/(3/4)
        ("averaged", (6.5 - 3 / 2 / sqrt(7.875 / 0.75), -7.5 + (5.75 / 0.75) / 2 / sqrt(44.125 / 0.75))),
    ],
)
def test_local_adam(state: str, x2: tuple[float, float]) -> None:
    agree(run("local_adam", THEN_ONE, state=state, **HALF), (6.5, -7.5), x2)


def test_local_adamw_shrinks_before_the_step() -> None:
    # x_1 = 3/4 (7, -8) - 1/2 (1, -1);  x_2 = 3/4 (4.75, -5.5) - 1/2 (1, -1)
    agree(run("local_adamw", BOTH, weight_decay=0.5, **HALF), (4.75, -5.5), (3.0625, -3.625))


def test_adam_weight_decay_is_part_of_the_gradient() -> None:
    # the step of a fresh Adam is sign(r + x/2) = sign(r): as without
    agree(run("local_adam", BOTH, weight_decay=0.5, **HALF), (6.5, -7.5), (6, -7))


def test_fedada2() -> None:
    # Delta = (-1/2, 1/2) twice; tau = 1/2: v2 = 1/4 stays; m = (-1/4, 1/4), then (-3/8, 3/8); divisor 1/2 + 1/2
    found = run("fedada2", BOTH, eta=4.0, tau=0.5, server_beta1=0.5, server_beta2=0.5, **HALF)
    agree(found, (6, -7), (4.5, -5.5))


def test_diloco() -> None:
    # d = (1/2, -1/2) = b, x_1 = x_0 - 1/2 (d + b/2) = (6.625, -7.625)
    # client 1, r = (2.625, -7.625), t = 2: m-hat = (3/4 + 2.625/2)/(3/4) = 2.75 and -(2 + 7.625/2)/(3/4) = -7.75
    v2 = (9 / 4 + 2.625**2 / 2) / 0.75, (64 / 4 + 7.625**2 / 2) / 0.75
    d = np.array([2.75 / 2 / sqrt(v2[0]), -7.75 / 2 / sqrt(v2[1])])
    x2 = np.array([6.625, -7.625]) - (d + (np.array([0.25, -0.25]) + d) / 2) / 2
    found = run("diloco", THEN_ONE, eta=0.5, momentum=0.5, weight_decay=0.0, **HALF)
    agree(found, (6.625, -7.625), (x2[0], x2[1]))


def test_des_loc() -> None:
    # All are averaged after round 1, whatever their periods: round 2 is local_adam's, "averaged"
    x2 = (6.5 - 3 / 2 / sqrt(7.875 / 0.75), -7.5 + (5.75 / 0.75) / 2 / sqrt(44.125 / 0.75))
    agree(run("des_loc", THEN_ONE, m_every=1, v_every=2, **HALF), (6.5, -7.5), x2)


def test_des_loc_between_averages_of_x() -> None:
    # betas 0: steps of 1/2 sign(r). The server's x changes in rounds 1 and 3, there by two steps
    found = run("des_loc", [*BOTH, BOTH[0]], x_every=2, m_every=1, v_every=1, beta1=0.0, beta2=0.0, eps=0.0)
    agree(found, (6.5, -7.5), (6.5, -7.5), (5.5, -6.5))


def test_fafed() -> None:
    # Round 0: m = (4, -8), v2 = (19, 64). Round 1: u = x_0 - 1/2 m/sqrt(v2) = (7 - q, -7.5) at both clients
    #   m: the part 1/2 (m - r_i) averages to 0: m = (4 - q, -7.5)
    #   v2 = 1/2 (19, 64) + 1/2 (1/4 (7 - q)^2 + 3/4 (3 - q)^2, 7.5^2)
    # Round 2, client 1: to x_2; m_1 = r_1(x_2) + 1/2 (m - r_1(x_1)), where m - r_1(x_1) = (1, 0)
    q = 2 / sqrt(19)
    v2 = 9.5 + (7 - q) ** 2 / 8 + 3 * (3 - q) ** 2 / 8, 32 + 7.5**2 / 2
    x2 = (7 - q - (4 - q) / 2 / sqrt(v2[0]), -7.5 + 7.5 / 2 / sqrt(v2[1]))
    r = (x2[0] - 4, x2[1])
    x3 = (
        x2[0] - (r[0] + 0.5) / 2 / sqrt(v2[0] / 2 + r[0] ** 2 / 2),
        x2[1] - r[1] / 2 / sqrt(v2[1] / 2 + r[1] ** 2 / 2),
    )
    agree(run("fafed", [[0, 1], [1], [1]], a=0.5, beta=0.5, eps=0.0), (7 - q, -7.5), x2, x3)


def test_fedlada_and_fedpac() -> None:
    # a = 1/2. Round 1: G = 0, moved -1/4 (1, -1);  v2 = (9.5, 32), G = (1/4, -1/4)/(1/2)
    # Round 2, client 1: r = (2.75, -7.75), m-hat = r, v2-hat = 1/2 ((9.5, 32) + r^2)/(3/4)
    p = (2.75 / sqrt((4.75 + 2.75**2 / 2) / 0.75), 7.75 / sqrt((16 + 7.75**2 / 2) / 0.75))
    x2 = (6.75 - (p[0] + 0.5) / 4, -7.75 + (p[1] + 0.5) / 4)
    agree(run("fedlada", THEN_ONE, a=0.5, **HALF), (6.75, -7.75), x2)
    agree(run("fedpac", THEN_ONE, b=0.5, **HALF), (6.75, -7.75), x2)


@pytest.mark.parametrize(
    ("blocks", "v2"),
    [
        ((1, 1), (9.5, 32)),
        ((), (20.75, 20.75)),  # one block: the mean of 9.5 and 32
    ],
)
def test_fedadamw(blocks: tuple[int, ...], v2: tuple[float, float]) -> None:
    # Round 1: x_1 = 3/4 x_0 - 1/2 (1, -1) = (4.75, -5.5);  G = (2.25, -2.5)/(1/2) = (4.5, -5)
    # Round 2, client 1: r = (0.75, -5.5), x_2 = 3/4 x_1 - 1/2 (P + G/2)
    p = (0.75 / sqrt((v2[0] + 0.75**2) / 1.5), 5.5 / sqrt((v2[1] + 5.5**2) / 1.5))
    x2 = (0.75 * 4.75 - (p[0] + 2.25) / 2, -0.75 * 5.5 + (p[1] + 2.5) / 2)
    found = run("fedadamw", THEN_ONE, a=0.5, weight_decay=0.5, blocks=blocks, **HALF)
    agree(found, (4.75, -5.5), x2)


# ------------------------------------------------------------------------------------------------------- Muon


@pytest.mark.parametrize(("shape", "factor"), [((1, 2), 1.0), ((2, 1), sqrt(2))])
def test_local_muon(shape: tuple[int, int], factor: float) -> None:
    # Client 1 from (7, -4): r = (3, -4), |r| = 5. One iteration maps the singular value 1 to
    # 3.4445 - 4.7750 + 2.0315 = 0.701: a step of 0.3505 along (0.6, -0.8), the same line again in round 2
    x0, step = np.array([7.0, -4.0]), 0.3505 * factor
    found = TWINS["local_muon"](TWO, x0, [[1], [1]], 1, 0.5, shapes=[shape], num_iterations=1)
    agree(found, (7 - 0.6 * step, -4 + 0.8 * step), (7 - 1.2 * step, -4 + 1.6 * step))


def test_local_muon_on_a_vector_is_momentum() -> None:
    # b = r/2, u = b/2 + r/2 = 3/4 r: x_1 = x_0 - 3/8 (4, -8);  kept, client 1: r = (1.5, -5),
    # b = 1/4 (3, -8) + 1/2 r = (1.5, -4.5), u = 1/2 b + 1/2 r = (1.5, -4.75)
    found = run("local_muon", THEN_ONE, momentum=0.5, buffer="kept")
    agree(found, (5.5, -5), (4.75, -5 + 2.375))


def test_fedmuon_on_a_vector() -> None:
    # Round 1: M_i = r_i/2, x_1 = x_0 - 1/4 (4, -8) = (6, -6), C = (2, -4)
    # Round 2, client 1: M = 1/2 (1.5, -4) + 1/2 (2, -6) = (1.75, -5), M - (1.5, -4) + C = (2.25, -5)
    agree(run("fedmuon", THEN_ONE, momentum=0.5), (6, -6), (4.875, -3.5))


def test_fedmuon_corrects_before_it_orthogonalises() -> None:
    # As above with one row and one iteration, x_0 = (7, 0): r_0/|r_0| = r_1/|r_1| = (1, 0), x_1 = (7 - 0.3505, 0)
    # Round 2, client 1: any positive number is sent to 0.701
    found = TWINS["fedmuon"](TWO, np.array([7.0, 0.0]), THEN_ONE, 1, 0.5, shapes=[(1, 2)], num_iterations=1)
    agree(found, (6.6495, 0), (6.299, 0))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_newton_schulz_is_a_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    u = np.random.default_rng(0).normal(size=shape)
    left, s, right = np.linalg.svd(u, full_matrices=False)
    s = s / np.sqrt(np.sum(s**2))
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    np.testing.assert_allclose(newton_schulz(u), left * s @ right, atol=1e-12)
    assert s.min() > 0.5 and s.max() < 1.3
