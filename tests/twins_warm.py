"""Slow twins whose clients start from the server's optimizer state: DES-LOC, FAFED, FedLADA, FedAdamW, FedPAC.

Conventions: tests/twins_base.py. Three of them step along the mean displacement of the last round too:

    G = -Delta_last / (K * step_size),  K = sum_i w_i K_i,  Delta_last and w_i of the last round, G = 0 in round 1

the mean direction of the last round's steps, in the units of what multiplies step_size ("gradient units").
A client that holds the last two models can rederive G; otherwise it is sent down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from twins_base import Problem, Rounds, Steps, Vector, mean, shares, steps_of

Move = Callable[[Vector, Vector, Vector], Vector]  # v, the Adam direction, G -> the new v


def _warm(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str,
    beta1: float,
    beta2: float,
    eps: float,
    move: Move,
    send: Callable[[Vector], Vector] = lambda v2: v2,
) -> list[Vector]:
    """m is fresh each round with clock k; v2 comes from the server, with the common clock t."""
    x, v2, t, global_step, seen = x0.copy(), np.zeros_like(x0), 0.0, np.zeros_like(x0), []
    for clients in rounds:
        num_steps = [steps_of(local_steps, i) for i in clients]
        models, squares = [], []
        for i, num in zip(clients, num_steps, strict=True):
            v, m_i, v2_i = x.copy(), np.zeros_like(x0), v2
            for k in range(1, num + 1):
                g = problem.gradient(i, v)
                m_i = beta1 * m_i + (1 - beta1) * g
                v2_i = beta2 * v2_i + (1 - beta2) * g**2
                adam = (m_i / (1 - beta1**k)) / (np.sqrt(v2_i / (1 - beta2 ** (t + k))) + eps)
                v = move(v, adam, global_step)
            models.append(v)
            squares.append(send(v2_i))
        w = shares(problem, clients, weights)
        new = mean(w, models)
        mean_steps = sum(w_i * k for w_i, k in zip(w, num_steps, strict=True))
        global_step = (x - new) / (mean_steps * step_size)
        x, v2, t = new, mean(w, squares), t + mean_steps
        seen.append(x)
    return seen


def fedlada(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    a: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> list[Vector]:
    """FedLADA (Sun et al. 2023, arXiv 2308.00522): local Adam amended by the last mean displacement.

        client   v = x, m = 0, v2 = the server's;  for k = 1..K_i, with g = g_i(v)
                     m <- beta1 * m + (1 - beta1) * g;   v2 <- beta2 * v2 + (1 - beta2) * g^2
                     P = (m / (1 - beta1^k)) / (sqrt(v2 / (1 - beta2^(t+k))) + eps)
                     v <- v - step_size * ((1 - a) * P + a * G)
        server   x <- mean(v);   v2 <- mean(v2);   t <- t + mean(K_i);   v2_0 = 0, t_0 = 0
                 G of the file's head

    Reading: bias corrections as torch.optim.Adam's, m's with the step within the round (m is fresh), v2's with the
    common clock, which is averaged as v2 is (why: local_adam of tests/twins_adam.py). In round 1 G = 0, so the step
    is (1 - a) P. No maximum over v2 (AMSGrad) is taken. mean(v2) is of v2, not of its root, over the clients of the
    round.
    Sent: 2 + 3 up + down (up v, v2; down x, v2, G); 2 + 2 where G is rederived. Client state: none.
    Server state: x, v2, G, t.
    """

    def move(v: Vector, adam: Vector, global_step: Vector) -> Vector:
        return v - step_size * ((1 - a) * adam + a * global_step)

    return _warm(problem, x0, rounds, local_steps, step_size, weights, beta1, beta2, eps, move)


def fedpac(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    b: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> list[Vector]:
    """FedPAC with an Adam-like preconditioner (Liu et al., arXiv 2602.19271): alignment and correction.

        client   as fedlada up to P, the preconditioned gradient P(g);  v <- v - step_size * ((1 - b) * P + b * G)
        server   x <- mean(v);   v2 <- mean(v2)   (the state of P, warm start of the next round);   G, t as fedlada

    Reading: the state Theta of this P is v2 alone; m is part of P but fresh each round (2 + 3 leaves no room
    for it). With this P the recurrence is fedlada's, a = b; the paper's own P (SOAP, Sophia, Muon) differ.
    Sent: 2 + 3 up + down (up v, v2; down x, v2, G); 2 + 2 where G is rederived. Client state: none.
    Server state: x, v2, G, t.
    """

    def move(v: Vector, adam: Vector, global_step: Vector) -> Vector:
        return v - step_size * ((1 - b) * adam + b * global_step)

    return _warm(problem, x0, rounds, local_steps, step_size, weights, beta1, beta2, eps, move)


def fedadamw(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    a: float = 0.5,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    blocks: Sequence[int] = (),
) -> list[Vector]:
    """FedAdamW (Liu et al., arXiv 2510.27486): local AdamW from block-wise means of v2, plus the last displacement.

        client   v = x, m = 0, v2 = the server's number of its block in each coordinate;  P as in fedlada
                     v <- (1 - step_size * weight_decay) * v - step_size * (P + a * G)
                 sends v and the mean of v2 over each block
        server   x <- mean(v);   the number of each block <- mean of the clients';   t as fedlada;   v2_0 = 0

    `blocks`: sizes of consecutive blocks of x, sum d; by default one block.
    Reading: G is added, not mixed in (the weight of P stays one), and G contains what decay and the former G moved.
    The decay shrinks v (the paper prints the other sign); g_i is taken before it. Clocks as fedlada. Where the
    parameters have names, a block is one named tensor.
    Sent: 1 + 2 up + down (up v; down x, G), the block means not counted; 1 + 1 where G is rederived.
    Client state: none. Server state: x, one number per block, G, t.
    """
    edges = np.cumsum(blocks or [len(x0)])[:-1]

    def move(v: Vector, adam: Vector, global_step: Vector) -> Vector:
        return (1 - step_size * weight_decay) * v - step_size * (adam + a * global_step)

    def block_means(v2: Vector) -> Vector:
        return np.concatenate([np.full_like(block, block.mean()) for block in np.split(v2, edges)])

    return _warm(problem, x0, rounds, local_steps, step_size, weights, beta1, beta2, eps, move, block_means)


def fafed(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    a: float = 0.1,
    beta: float = 0.99,
    eps: float = 1e-3,
    probe: Sequence[int] | None = None,
) -> list[Vector]:
    """FAFED (Wu et al. 2023, "Faster adaptive federated learning"): STORM steps over a frozen denominator.

        round 0  m = mean(g_i(x_0)),  v2 = mean(g_i(x_0)^2)  over the clients of `probe`, by default those of round 1
        client   v = x, m, v2 the server's, D-hat = sqrt(v2) + eps of the server's v2, frozen in the round
                 K_i times  u = v - step_size * m / D-hat
                            m <- g_i(u) + (1 - a) * (m - g_i(v))       both gradients on the same mini-batch
                            v2 <- beta * v2 + (1 - beta) * g_i(u)^2
                            v <- u
        server   x <- mean(v);   m <- mean(m);   v2 <- mean(v2)

    Reading: the step with the synchronised m comes first, then its estimate is renewed at the new point, so the
    last m of a round belongs to the last v. a, beta and step_size are constant (the paper's a and step size
    decay). v2 is not bias-corrected: it starts at a statistic. m is the mini-batch estimate in the first round
    too (the paper starts with a larger batch).
    Sent: 3 + 3 (x, m, v2 both ways). Client state: none. Server state: x, m, v2.
    """

    def mean_at_x(power: int) -> Vector:
        asked = list(rounds[0] if probe is None else probe)
        return mean(shares(problem, asked, weights), [problem.gradient(i, x0) ** power for i in asked])

    x, m, v2, seen = x0.copy(), mean_at_x(1), mean_at_x(2), []
    for clients in rounds:
        ended = []
        for i in clients:
            v, m_i, v2_i = x, m, v2
            for _ in range(steps_of(local_steps, i)):
                u = v - step_size * m_i / (np.sqrt(v2) + eps)
                g = problem.gradient(i, u)
                m_i = g + (1 - a) * (m_i - problem.gradient(i, v))
                v2_i = beta * v2_i + (1 - beta) * g**2
                v = u
            ended.append((v, m_i, v2_i))
        w = shares(problem, clients, weights)
        x, m, v2 = (mean(w, [e[k] for e in ended]) for k in range(3))
        seen.append(x)
    return seen


def des_loc(
    problem: Problem,
    x0: Vector,
    rounds: Rounds,
    local_steps: Steps,
    step_size: float,
    weights: str = "examples",
    x_every: int = 1,
    m_every: int = 3,
    v_every: int = 6,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> list[Vector]:
    """DES-LOC (Iacob et al., arXiv 2505.22549): Local Adam whose x, m and v2 are averaged with periods of their own.

        client   holds x_i, m_i, v2_i; each is replaced by the server's when that was averaged after, or at the end
                 of, the client's last participation (at the first participation: always)
                 K_i Adam steps, each moment corrected by the steps that it has seen
        server   after round p = 1, 2, ...:  if p - 1 is a multiple of x_every  x  <- mean(x_i)
                                             if p - 1 is a multiple of m_every  m  <- mean(m_i), and its count
                                             if p - 1 is a multiple of v_every  v2 <- mean(v2_i), and its count
                 m_0 = v2_0 = 0

    Reading: periods count rounds from the first, so that a client that comes later starts from averages and not from
    zeros beside a clock that has run: with those its first steps are m / sqrt(almost nothing).
    Means are over the clients of round p. With bias correction, so that periods
    1, 1, 1 are local_adam "averaged". The returned x is the server's: unchanged in a round without average.
    Sent: (1/x_every + 1/m_every + 1/v_every) each way if everybody takes part: 1.5 + 1.5 by default.
    Client state: x_i, m_i, v2_i (x_i only if x_every > 1), the round of its last participation.
    Server state: x, m, v2, the round of the last average of each, t.
    """
    periods = (x_every, m_every, v_every)
    server = [x0.copy(), np.zeros_like(x0), np.zeros_like(x0)]
    seen_by, averaged_in = [0.0, 0.0, 0.0], [0, 0, 0]  # steps that each has seen; round of its last average
    own: dict[
        int, tuple[int, list[Vector], list[float]]
    ] = {}  # round of the last participation, state, counts
    seen = []
    for p, clients in enumerate(rounds, start=1):
        ended, counts = [], []
        for i in clients:
            last, mine, mine_seen = own.get(i, (0, server, seen_by))
            is_servers = [averaged_in[j] >= last for j in range(3)]
            v, m, v2 = (server[j] if is_servers[j] else mine[j] for j in range(3))
            t = [seen_by[j] if is_servers[j] else mine_seen[j] for j in range(3)]
            for _ in range(steps_of(local_steps, i)):
                g, t = problem.gradient(i, v), [count + 1 for count in t]
                m = beta1 * m + (1 - beta1) * g
                v2 = beta2 * v2 + (1 - beta2) * g**2
                v = v - step_size * (m / (1 - beta1 ** t[1])) / (np.sqrt(v2 / (1 - beta2 ** t[2])) + eps)
            own[i] = (p, [v, m, v2], t)
            ended.append([v, m, v2])
            counts.append(t)
        w = shares(problem, clients, weights)
        for j, period in enumerate(periods):
            if (p - 1) % period == 0:
                server[j], averaged_in[j] = mean(w, [e[j] for e in ended]), p
                seen_by[j] = sum(w_i * t[j] for w_i, t in zip(w, counts, strict=True))
        seen.append(server[0])
    return seen
