"""Slow twins whose clients correct their gradients by remembered ones; conventions: tests/twins_base.py."""

from __future__ import annotations

import numpy as np
from twin import Settings, d_hat, new_memory, refresh
from twins_base import Problem, Rounds, Steps, Vector, mean, shares, steps_of


def scaffold(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    option: int = 2,
    eta: float = 1.0,
    momentum: float = 0.0,
    control_every: int = 1,
) -> list[Vector]:
    """SCAFFOLD, options I and II (Karimireddy et al. 2020, Algorithm 1).

        client   v = x;  K_i times  v <- v - step_size * (g_i(v) - c_i + c)
                 option 1   c_i' = g_i(x)                  full local batch at the x that was received
                 option 2   c_i' = c_i - c + (x - v) / (a_i * step_size)
                 a_i = K_i; with momentum what K_i gradients of size 1 would have moved v, over step_size
                 sends v - x and c_i' - c_i, then c_i <- c_i'
        server   x <- x + eta * mean(v - x)
                 c <- c + sum_i p_i (c_i' - c_i)           over the clients of the round
                 p_i = n_i / n over ALL N clients ("examples"), 1/N ("uniform")

    Reading: the paper has equal weights, and its (S/N) * mean keeps c = (1/N) sum_i c_i over all clients.
    p_i keeps the same for unequal weights, c = sum_i p_i c_i, and equals (S/N) * mean when weights are uniform
    or everybody takes part. (S/N) * mean with the weights w_i of the round does not: c then keeps a remainder
    after sum_i p_i c_i is gone, and the fixed point is no longer that of f. All c_i and c start at zero. x and
    c are both updated from what was sent; clients use the c of the round's start.
    control_every = k > 1, not the paper's: c and c_i change in rounds 1, k + 1, 2k + 1, ... alone.
    Sent: 2 + 2 (down x, c; up v - x, c_i' - c_i). Client state: c_i. Server state: x, c.
    """
    everyone = list(range(len(problem.num_examples)))
    p = shares(problem, everyone, weights)
    x, c, own, seen = x0.copy(), np.zeros_like(x0), {i: np.zeros_like(x0) for i in everyone}, []
    for number, clients in enumerate(rounds, start=1):
        changes_c = (number - 1) % control_every == 0
        moved, changes = [], []
        for i in clients:
            v, buffer = x.copy(), np.zeros_like(x)
            work = unit = 0.0
            for _ in range(steps_of(local_steps, i)):
                buffer = momentum * buffer + problem.gradient(i, v) - own[i] + c
                v = v - step_size * buffer
                unit = momentum * unit + 1.0
                work += unit
            new = problem.gradient(i, x) if option == 1 else own[i] - c + (x - v) / (work * step_size)
            moved.append(v - x)
            if changes_c:
                changes.append(new - own[i])
                own[i] = new
        x = x + eta * mean(shares(problem, clients, weights), moved)
        if changes_c:
            c = c + mean([p[i] for i in clients], changes)
        seen.append(x)
    return seen


def _mime(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str,
    correct: bool,
    base: str,
    beta1: float,
    beta2: float,
    alpha: float,
    floor: str,
    start: str,
    probe: list[int] | None,
) -> list[Vector]:
    rule = {"sgd": "identity", "rmsprop": "rmsprop", "adam": "adam"}[base]
    s = Settings(rule=rule, beta=beta2, alpha=alpha, floor=floor, start=start)
    x, m, memory, seen = x0.copy(), np.zeros_like(x0), new_memory(s, len(x0)), []

    def mean_gradient(clients: list[int]) -> Vector:
        return mean(shares(problem, clients, weights), [problem.gradient(i, x) for i in clients])

    if start == "statistic":
        memory = refresh(s, memory, mean_gradient(list(rounds[0]) if probe is None else probe))

    for clients in rounds:
        c, preconditioner, models = mean_gradient(list(clients)), d_hat(s, memory), []
        for i in clients:
            v, at_x = x.copy(), problem.gradient(i, x)
            for _ in range(steps_of(local_steps, i)):
                g = problem.gradient(i, v)
                if correct:
                    g = g - at_x + c
                v = v - step_size * ((1 - beta1) * g + beta1 * m) / preconditioner
            models.append(v)
        x = mean(shares(problem, clients, weights), models)
        m = (1 - beta1) * c + beta1 * m
        memory = refresh(s, memory, c)
        seen.append(x)
    return seen


def mimelite(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    base: str = "sgd",
    beta1: float = 0.9,
    beta2: float = 0.99,
    alpha: float = 1e-3,
    floor: str = "max",
    start: str = "statistic",
    probe: list[int] | None = None,
) -> list[Vector]:
    """MimeLite (Karimireddy et al. 2021, "Mime: mimicking centralized stochastic algorithms"), bases below.

        round 0  D <- refresh(0, G_0), G_0 the mean gradient at x_0 (start "statistic"; not for base "sgd")
        client   v = x;  K_i times  v <- v - step_size * ((1 - beta1) * g_i(v) + beta1 * m) / D-hat
                 m and D-hat are the server's, frozen; also sends g_i(x), full local batch
        server   G = mean(g_i(x)), at the x of the round's start
                 x <- mean(v);   m <- (1 - beta1) * G + beta1 * m;   D <- refresh(D, G);   D-hat = floor(D)

    base "sgd": momentum alone, D-hat = 1.   "rmsprop": D^2 <- beta2 D^2 + (1 - beta2) G^2, beta1 must be 0.
    "adam": both, D^2 with the bias-corrected beta_t of methods.md, section 2.  m_0 = 0.
    Reading: the paper starts its statistics at zero, which makes the first step g / epsilon; here D is the
    scaled method's: the same memory rules, floors (the paper's is "add") and clock, the same probe, so that
    rmsprop IS the scaled local method, global scope, full-batch statistic. start "ones": no round 0, D-hat = 1
    in round 1, and the first refresh has beta_0 = 0. m has no bias correction and is not touched by the probe.
    `probe`: the clients asked in round 0, by default those of round 1. There is no server step size.
    Sent: 2 + 2 with "sgd" (down x, m; up v, g) and "rmsprop" (down x, D-hat); "adam" sends x, m, D-hat: 2 + 3
    (up + down). Client state: none. Server state: x, m (not rmsprop), D and its clock t (not sgd).
    """
    beta1 = 0.0 if base == "rmsprop" else beta1
    return _mime(
        problem,
        x0,
        rounds,
        local_steps,
        step_size,
        weights,
        False,
        base,
        beta1,
        beta2,
        alpha,
        floor,
        start,
        probe,
    )


def mime(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    base: str = "sgd",
    beta1: float = 0.9,
    beta2: float = 0.99,
    alpha: float = 1e-3,
    floor: str = "max",
    start: str = "statistic",
    probe: list[int] | None = None,
) -> list[Vector]:
    """Mime (Karimireddy et al. 2021): MimeLite with the gradient corrected as in SVRG.

        as mimelite, but the client's gradient g_i(v) is   g_i(v) - g_i(x) + c,
        c = mean(g_i(x)) over the clients of THIS round, at this round's x; the server's G is this same c

    Reading: c belongs to the round it is used in, so the round has two exchanges: x down, g_i(x) up; then m or
    D-hat and c down, v up. g_i(v) and g_i(x) are on the same mini-batch; c is from full local batches.
    Sent: 2 + 3 up + down (down x, m or D-hat, c; up g, v); base "adam" 2 + 4. Client state: none.
    Server state: as mimelite.
    """
    beta1 = 0.0 if base == "rmsprop" else beta1
    return _mime(
        problem,
        x0,
        rounds,
        local_steps,
        step_size,
        weights,
        True,
        base,
        beta1,
        beta2,
        alpha,
        floor,
        start,
        probe,
    )


def feddyn(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    alpha: float = 0.1,
) -> list[Vector]:
    """FedDyn (Acar et al. 2021): the local loss is f_i(v) - l_i' v + (alpha/2) |v - x|^2.

        client   v = x;  K_i times  v <- v - step_size * (g_i(v) - l_i + alpha * (v - x))
                 l_i <- l_i - alpha * (v - x)             at the minimum of the local loss this is grad f_i(v)
        server   h <- h - alpha * sum_i p_i (v - x)       over the clients of the round, p_i over ALL, as in scaffold
                 x <- mean(v) - h / alpha                 h is the new one

    Reading: K_i gradient steps stand for the local minimum. h = sum_i p_i l_i over all clients always (in the
    paper p_i = 1/N). l_i and h start at zero. alpha > 0.
    Sent: 1 + 1 (down x, up v). Client state: l_i. Server state: x, h.
    """
    everyone = list(range(len(problem.num_examples)))
    p = shares(problem, everyone, weights)
    x, h, own, seen = x0.copy(), np.zeros_like(x0), {i: np.zeros_like(x0) for i in everyone}, []
    for clients in rounds:
        models = []
        for i in clients:
            v = x.copy()
            for _ in range(steps_of(local_steps, i)):
                v = v - step_size * (problem.gradient(i, v) - own[i] + alpha * (v - x))
            own[i] = own[i] - alpha * (v - x)
            models.append(v)
        h = h - alpha * mean([p[i] for i in clients], [v - x for v in models])
        x = mean(shares(problem, clients, weights), models) - h / alpha
        seen.append(x)
    return seen
