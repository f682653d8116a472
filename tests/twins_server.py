"""Slow twins of the methods that differ from FedAvg at the server alone; conventions: tests/twins_base.py.

The client side of all of these is K_i plain local steps. Sent: down x, up v (or v - x): 1 + 1. Client state: none.
"""

from __future__ import annotations

import numpy as np
from twin import Settings, d_hat, new_memory, refresh
from twins_base import Problem, Rounds, Steps, Vector, displacement


def fedavg(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
) -> list[Vector]:
    """FedAvg, also Local SGD (McMahan et al. 2017).

        client   v = x;  K_i times  v <- v - step_size * g_i(v)
        server   x <- x + Delta,  Delta = mean(v - x)        which is mean(v)

    Sent: 1 + 1. Client state: none. Server state: x.
    """
    x, seen = x0.copy(), []
    for clients in rounds:
        x = x + displacement(problem, x, clients, local_steps, step_size, weights)
        seen.append(x)
    return seen


def fedavgm(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    beta: float = 0.9,
    eta: float = 1.0,
) -> list[Vector]:
    """FedAvgM (Hsu, Qi and Brown 2019): heavy ball on the mean displacement.

        client   as FedAvg
        server   m <- beta * m + Delta;   x <- x + eta * m;   m_0 = 0

    Reading: no dampening (the new displacement enters with weight one), no Nesterov look-ahead.
    Sent: 1 + 1. Client state: none. Server state: x, m.
    """
    x, m, seen = x0.copy(), np.zeros_like(x0), []
    for clients in rounds:
        m = beta * m + displacement(problem, x, clients, local_steps, step_size, weights)
        x = x + eta * m
        seen.append(x)
    return seen


def _fedopt(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str,
    second_moment: str,
    eta: float,
    tau: float,
    beta1: float,
    beta2: float,
) -> list[Vector]:
    """Reddi et al. 2021, Algorithm 2, one line of it after the other."""
    x, m, v2, largest, seen = (
        x0.copy(),
        np.zeros_like(x0),
        np.full_like(x0, tau**2),
        np.full_like(x0, tau**2),
        [],
    )
    for clients in rounds:
        delta = displacement(problem, x, clients, local_steps, step_size, weights)
        m = beta1 * m + (1 - beta1) * delta
        if second_moment == "adagrad":
            v2 = v2 + delta**2
        elif second_moment == "yogi":
            v2 = v2 - (1 - beta2) * delta**2 * np.sign(v2 - delta**2)
        else:  # adam, amsgrad
            v2 = beta2 * v2 + (1 - beta2) * delta**2
        largest = np.maximum(largest, v2)
        x = x + eta * m / (np.sqrt(largest if second_moment == "amsgrad" else v2) + tau)
        seen.append(x)
    return seen


def fedadagrad(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    eta: float = 0.1,
    tau: float = 1e-3,
    beta1: float = 0.0,
) -> list[Vector]:
    """FedAdagrad (Reddi et al. 2021, Algorithm 2).

        client   as FedAvg
        server   m <- beta1 * m + (1 - beta1) * Delta;   v2 <- v2 + Delta^2
                 x <- x + eta * m / (sqrt(v2) + tau);     m_0 = 0, v2_0 = tau^2

    Reading: no bias correction; v2 takes Delta itself, not m; momentum is off by default, as in the paper's
    experiments; Delta is the mean with this project's weights (the paper's are equal).
    Sent: 1 + 1. Client state: none. Server state: x, m, v2.
    """
    return _fedopt(problem, x0, rounds, local_steps, step_size, weights, "adagrad", eta, tau, beta1, 0.0)


def fedadam(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    eta: float = 0.1,
    tau: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.99,
) -> list[Vector]:
    """FedAdam (Reddi et al. 2021, Algorithm 2).

        client   as FedAvg
        server   m <- beta1 * m + (1 - beta1) * Delta;   v2 <- beta2 * v2 + (1 - beta2) * Delta^2
                 x <- x + eta * m / (sqrt(v2) + tau);     m_0 = 0, v2_0 = tau^2

    Reading: as fedadagrad: no bias correction, v2 of Delta itself.
    Sent: 1 + 1. Client state: none. Server state: x, m, v2.
    """
    return _fedopt(problem, x0, rounds, local_steps, step_size, weights, "adam", eta, tau, beta1, beta2)


def fedyogi(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    eta: float = 0.1,
    tau: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.99,
) -> list[Vector]:
    """FedYogi (Reddi et al. 2021, Algorithm 2).

        client   as FedAvg
        server   m <- beta1 * m + (1 - beta1) * Delta
                 v2 <- v2 - (1 - beta2) * Delta^2 * sign(v2 - Delta^2)      sign(0) = 0, v2 on the right is the old one
                 x <- x + eta * m / (sqrt(v2) + tau);     m_0 = 0, v2_0 = tau^2

    Reading: as fedadagrad. v2 stays positive: where it falls, it falls by less than itself.
    Sent: 1 + 1. Client state: none. Server state: x, m, v2.
    """
    return _fedopt(problem, x0, rounds, local_steps, step_size, weights, "yogi", eta, tau, beta1, beta2)


def fedams(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    eta: float = 0.1,
    tau: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.99,
) -> list[Vector]:
    """FedAMS, the AMSGrad form of FedAdam (Wang, Lin and Chen 2022).

        client   as FedAvg
        server   m <- beta1 * m + (1 - beta1) * Delta;   v2 <- beta2 * v2 + (1 - beta2) * Delta^2
                 v2_max <- max(v2_max, v2)                elementwise
                 x <- x + eta * m / (sqrt(v2_max) + tau);  m_0 = 0, v2_0 = v2_max_0 = tau^2

    Reading: the recurrence of v2 runs on v2, not on the maximum. tau is added to the root and v2 starts at
    tau^2, exactly as in fedadam, so that the maximum is the only difference. (The paper's other form puts
    epsilon into the maximum, max(v2_max, v2, eps), and divides by the bare root.)
    Sent: 1 + 1. Client state: none. Server state: x, m, v2, v2_max.
    """
    return _fedopt(problem, x0, rounds, local_steps, step_size, weights, "amsgrad", eta, tau, beta1, beta2)


def scaled_server(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    rule: str = "adam",
    eta: float = 0.1,
    beta: float = 0.99,
    alpha: float = 1e-3,
    floor: str = "max",
    upper_bound: float | None = None,
    rho: float | None = None,
    start: str = "statistic",
) -> list[Vector]:
    """Scaling at the server: a memory rule of methods.md, section 2, with the mean displacement as its statistic.

        client   as FedAvg
        server   D <- refresh(D, H = Delta)              the rule's own refresh and beta_t
                 x <- x + eta * clip(Delta / D-hat, rho), D-hat = floor(D), cap at upper_bound

    Reading: D is refreshed first, so Delta is divided by a D-hat that has seen it. t = 0 is the first round:
    with start "statistic" rmsprop, adam and oasis have beta_0 = 0 there and D = |Delta|; no probe is needed.
    start "ones" matters to adagrad alone (D^2 starts at 1). oasis remembers Delta with its sign. Rule
    "identity" is FedAvg with the server step eta.
    Sent: 1 + 1. Client state: none. Server state: x, D, the clock t of refreshes.
    """
    s = Settings(rule=rule, beta=beta, alpha=alpha, floor=floor, upper_bound=upper_bound, start=start)
    x, memory, seen = x0.copy(), new_memory(s, len(x0)), []
    for clients in rounds:
        delta = displacement(problem, x, clients, local_steps, step_size, weights)
        memory = refresh(s, memory, delta)
        step = delta / d_hat(s, memory)
        x = x + eta * (step if rho is None else np.clip(step, -rho, rho))
        seen.append(x)
    return seen
