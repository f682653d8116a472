"""Slow twins whose clients step with Adam: Local Adam and AdamW, FedAda2, DiLoCo (conventions: tests/twins_base.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from twins_base import Problem, Rounds, Steps, Vector, mean, shares, steps_of


def adam_step(
    v: Vector,
    g: Vector,
    m: Vector,
    v2: Vector,
    t: float,
    step_size: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = True,
) -> tuple[Vector, Vector, Vector]:
    """One step of torch.optim.AdamW (decoupled) or torch.optim.Adam; `t` counts steps, this one included.

    AdamW  v <- v - step_size * weight_decay * v          Adam  g <- g + weight_decay * v
    m  <- beta1 * m  + (1 - beta1) * g
    v2 <- beta2 * v2 + (1 - beta2) * g^2
    v  <- v - step_size * (m / (1 - beta1^t)) / (sqrt(v2 / (1 - beta2^t)) + eps)
    """
    if decoupled:
        v = v - step_size * weight_decay * v
    else:
        g = g + weight_decay * v
    m = beta1 * m + (1 - beta1) * g
    v2 = beta2 * v2 + (1 - beta2) * g**2
    v = v - step_size * (m / (1 - beta1**t)) / (np.sqrt(v2 / (1 - beta2**t)) + eps)
    return v, m, v2


def _local_adam(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str,
    state: str,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    outer: Callable[[Vector, Vector], Vector],
) -> list[Vector]:
    """Local Adam(W); the server makes its new x of x and mean(v) by `outer`."""
    zero = np.zeros_like(x0)
    x, shared, seen = x0.copy(), (zero, zero, 0.0), []
    own: dict[int, tuple[Vector, Vector, float]] = {}
    for clients in rounds:
        ended, clocks = [], []
        for i in clients:
            fresh = (zero, zero, 0.0)
            m, v2, t = {"restart": fresh, "kept": own.get(i, fresh), "averaged": shared}[state]
            v = x.copy()
            for _ in range(steps_of(local_steps, i)):
                t = t + 1
                g = problem.gradient(i, v)
                v, m, v2 = adam_step(v, g, m, v2, t, step_size, beta1, beta2, eps, weight_decay, decoupled)
            own[i] = (m, v2, t)
            ended.append((v, m, v2))
            clocks.append(t)
        w = shares(problem, clients, weights)
        v, m, v2 = (mean(w, [e[k] for e in ended]) for k in range(3))
        x, shared = outer(x, v), (m, v2, sum(w_i * t for w_i, t in zip(w, clocks, strict=True)))
        seen.append(x)
    return seen


def local_adam(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    state: str = "restart",
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> list[Vector]:
    """Local Adam: clients step with torch.optim.Adam, bias correction included (`adam_step`).

        client   v = x;  K_i times  t <- t + 1;  one Adam step on v, m, v2 with g_i(v)
        server   x <- mean(v)

        state "restart"    m = v2 = 0, t = 0 at the start of each round
              "kept"       m, v2, t are the client's, from its last participation; t counts its own steps
              "averaged"   m, v2, t start at the server's; after the round m <- mean(m), v2 <- mean(v2)

    Reading: in "averaged" v2 itself (not its root) is averaged, and t with it, t <- mean(t): the number of steps that
    the mean has seen; it runs on in rounds that a client misses. Papers have equal K_i, where all readings are one.
    With unequal ones the mean of moments from zero weighs its gradients 1 - mean(beta^t) in all, for which 1 -
    beta^mean(t) stands: the same to first order in 1 - beta, where the largest t would take slow clients for fast ones.
    Weight decay is torch.optim.Adam's: weight_decay * v is part of the gradient.
    Sent: "restart", "kept" 1 + 1; "averaged" 3 + 3 (x, m, v2 both ways). Client state: none; "kept" m, v2, t.
    Server state: x; "averaged" also m, v2, t.
    """
    return _local_adam(
        problem,
        x0,
        rounds,
        local_steps,
        step_size,
        weights,
        state,
        beta1,
        beta2,
        eps,
        weight_decay,
        decoupled=False,
        outer=lambda x, v: v,
    )


def local_adamw(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    state: str = "restart",
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> list[Vector]:
    """Local AdamW: as local_adam with torch.optim.AdamW, whose weight decay shrinks v before the Adam step.

        v <- (1 - step_size * weight_decay) * v,  then the Adam step with g_i taken BEFORE the shrinking

    Reading, traffic and state: as local_adam.
    """
    return _local_adam(
        problem,
        x0,
        rounds,
        local_steps,
        step_size,
        weights,
        state,
        beta1,
        beta2,
        eps,
        weight_decay,
        decoupled=True,
        outer=lambda x, v: v,
    )


def fedada2(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eta: float = 0.1,
    tau: float = 1e-3,
    server_beta1: float = 0.9,
    server_beta2: float = 0.99,
) -> list[Vector]:
    """FedAda2 (arXiv 2410.18117): adaptive at both ends, no adaptive state is ever sent.

        client   as local_adam, state "restart":  m = v2 = 0, t = 0, then K_i Adam steps
        server   as fedadam on Delta = mean(v - x), with server_beta1, server_beta2, eta, tau

    Reading: the client is Adam with bias correction (a fresh state without it would take first steps
    of about (1 - beta1)/sqrt(1 - beta2) times step_size); the server is Reddi et al.'s FedAdam, without, v2_0 = tau^2.
    Sent: 1 + 1. Client state: none. Server state: x, m, v2 (the server's own).
    """
    m, v2 = np.zeros_like(x0), np.full_like(x0, tau**2)

    def server(x: Vector, v: Vector) -> Vector:
        nonlocal m, v2
        delta = v - x
        m = server_beta1 * m + (1 - server_beta1) * delta
        v2 = server_beta2 * v2 + (1 - server_beta2) * delta**2
        return x + eta * m / (np.sqrt(v2) + tau)

    return _local_adam(
        problem,
        x0,
        rounds,
        local_steps,
        step_size,
        weights,
        "restart",
        beta1,
        beta2,
        eps,
        0.0,
        decoupled=False,
        outer=server,
    )


def diloco(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    eta: float = 0.7,
    momentum: float = 0.9,
) -> list[Vector]:
    """DiLoCo (Douillard et al. 2023): inner AdamW, outer Nesterov momentum.

        client   as local_adamw, state "kept": v = x, but m, v2 and t run on from its last participation
        server   d = mean(x - v)                          the outer gradient
                 b <- momentum * b + d;   x <- x - eta * (d + momentum * b);   b_0 = 0

    Reading: the outer step is torch.optim.SGD(nesterov=True, dampening=0): b is the new buffer where it is used,
    and in the first round b = d. The inner t is the client's own count of steps. No step-size schedule.
    Sent: 1 + 1. Client state: m, v2, t. Server state: x, b.
    """
    b = np.zeros_like(x0)

    def server(x: Vector, v: Vector) -> Vector:
        nonlocal b
        d = x - v
        b = momentum * b + d
        return x - eta * (d + momentum * b)

    return _local_adam(
        problem,
        x0,
        rounds,
        local_steps,
        step_size,
        weights,
        "kept",
        beta1,
        beta2,
        eps,
        weight_decay,
        decoupled=True,
        outer=server,
    )
