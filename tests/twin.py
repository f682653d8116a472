"""The slow twin: the scaled local method in plain NumPy (float64), one client and one step after the other.

It is written from the description of the method, never from the code it is compared with, and it is meant to
be read beside that description. Every random draw (batches, Rademacher vectors, sampled labels, participants)
is handed in, so that the real code can be driven by the same draws.

    round 0   the probe: h_m at x_0 on one mini-batch; the server refreshes D once (t = 0)
    round p   client m: v = x, then local steps v <- v - step_size * b / D-hat, b the momentum buffer
              server:   x <- mean of v; D <- refresh(D, combine(h_m)); D-hat <- floor(D)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Labels = Sequence[float] | Vector

RULES = ("identity", "adagrad", "rmsprop", "adam", "oasis", "adahessian", "sophia")
ON_SQUARES = ("adagrad", "rmsprop", "adam", "adahessian")  # these remember D^2, the others D with its sign
SIGNED = ("hutchinson", "gauss_newton")  # statistics of second order: averaged with their sign


class Problem(Protocol):
    """What the method asks of a task; `v` is (d,), `batch` a list of example indices of this client."""

    @property
    def sizes(self) -> list[int]: ...  # examples per client
    def gradient(self, client: int, v: Vector, batch: list[int]) -> Vector: ...
    def hvp(self, client: int, v: Vector, batch: list[int], z: Vector) -> Vector: ...
    def sampled_gradient(self, client: int, v: Vector, batch: list[int], labels: Labels) -> Vector: ...


@dataclass(frozen=True)
class Settings:
    """One scaled local method; the names are those of the configuration."""

    rule: str = "adam"
    step_size: float = 0.1
    local_steps: tuple[int, ...] = (1,)  # one number per client
    num_rounds: int = 1
    beta: float = 0.9
    alpha: float = 1e-3
    floor: str = "max"
    upper_bound: float | None = None
    rho: float | None = None
    scope: str = "global"
    statistic: str = "gradient"
    combine: str = "square_of_mean"
    mixing: str = "mean"
    refresh_every: int = 1
    start: str = "statistic"
    local_refresh: str = "round"
    momentum: float = 0.0
    momentum_buffer: str = "reset"
    weight_decay: float = 0.0
    weighting: str = "examples"


@dataclass(frozen=True)
class Draws:
    """Every random draw of a run, by name. The probe's batch, z and labels are those of round 0, step 0."""

    participants: Callable[[int], list[int]]  # round -> clients
    batch: Callable[[int, int, int], list[int]]  # round, client, step -> example indices
    z: Callable[[int, int], Vector]  # round, step -> Rademacher vector, the same for all clients
    labels: Callable[[int, int, int], Labels]  # round, client, step -> labels for that batch


# ---------------------------------------------------------------------------------------------- D and D-hat


@dataclass
class Memory:
    """D of one holder (the server, or one client): `content` is D^2 or D; `clock` counts refreshes."""

    content: Vector
    clock: int = 0


def new_memory(s: Settings, d: int) -> Memory:
    """Before any refresh. Only adagrad ever sees this content: the other rules forget it at t = 0."""
    return Memory(np.ones(d) if s.start == "ones" else np.zeros(d))


def beta_at(s: Settings, t: int) -> float:
    if s.rule in ("adam", "adahessian"):
        return (s.beta - s.beta ** (t + 1)) / (1 - s.beta ** (t + 1))
    return 0.0 if t == 0 else s.beta


def refresh(s: Settings, memory: Memory, statistic: Vector) -> Memory:
    """D one refresh later."""
    beta = beta_at(s, memory.clock)
    if s.rule == "identity":
        content = memory.content
    elif s.rule == "adagrad":
        content = memory.content + statistic**2
    elif s.rule in ON_SQUARES:
        content = beta * memory.content + (1 - beta) * statistic**2
    else:
        content = beta * memory.content + (1 - beta) * statistic
    return Memory(content, memory.clock + 1)


def d_hat(s: Settings, memory: Memory) -> Vector:
    """D after floor and cap; all ones for the identity, and before the first refresh."""
    if s.rule == "identity" or memory.clock == 0:
        return np.ones_like(memory.content)
    size = np.sqrt(memory.content) if s.rule in ON_SQUARES else np.abs(memory.content)
    floored = size + s.alpha if s.floor == "add" else np.maximum(size, s.alpha)
    return floored if s.upper_bound is None else np.minimum(floored, s.upper_bound)


# ------------------------------------------------------------------------------------- what a client measures


def gradient(s: Settings, problem: Problem, client: int, v: Vector, batch: list[int]) -> Vector:
    """Of the local objective, (weight_decay/2) |v|^2 included."""
    return problem.gradient(client, v, batch) + s.weight_decay * v


def measure(s: Settings, problem: Problem, draws: Draws, at: tuple[int, int, int], v: Vector) -> Vector:
    """The statistic h_m at v with the draws of (round, client, step)."""
    round, client, step = at
    batch = draws.batch(round, client, step)
    if s.statistic == "gradient":
        return gradient(s, problem, client, v, batch)
    if s.statistic == "hutchinson":
        z = draws.z(round, step)
        return z * (problem.hvp(client, v, batch, z) + s.weight_decay * z)
    if s.statistic == "gauss_newton":
        sampled = problem.sampled_gradient(client, v, batch, draws.labels(round, client, step))
        return len(batch) * sampled**2 + s.weight_decay
    raise ValueError(s.statistic)


def combine(s: Settings, weights: list[float], statistics: list[Vector]) -> Vector:
    """One statistic out of the clients'."""
    if s.combine == "mean_of_squares":
        return np.sqrt(mean(weights, [h**2 for h in statistics]))
    averaged = mean(weights, statistics)
    return averaged if s.statistic in SIGNED else np.abs(averaged)


def mean(weights: list[float], vectors: list[Vector]) -> Vector:
    total = np.zeros_like(vectors[0])
    for w, vector in zip(weights, vectors, strict=True):
        total = total + w * vector
    return total


def weights_of(s: Settings, problem: Problem, clients: list[int]) -> list[float]:
    """w_m among those who take part: the share of examples, or equal shares."""
    if s.weighting == "uniform":
        return [1 / len(clients) for _ in clients]
    total = sum(problem.sizes[m] for m in clients)
    return [problem.sizes[m] / total for m in clients]


# ------------------------------------------------------------------------------------------------- the method


@dataclass
class History:
    """x after each round, starting with x_0; for each round, the D-hat that its first client used last."""

    x: list[Vector]
    d_hat: list[Vector]


def scaled_local(problem: Problem, s: Settings, draws: Draws, x0: Vector) -> History:
    """Run the method; FedAvg (Local SGD) is the rule "identity"."""
    d = len(x0)
    x = x0.copy()
    is_global = s.scope == "global"
    ones_first = s.start == "ones" or s.statistic == "displacement"
    by_step = s.scope == "local" and s.local_refresh == "step"
    server = new_memory(s, d)
    own: dict[int, Memory] = {}  # local scope: D_m of the clients seen so far
    buffers: dict[int, Vector] = {}  # momentum kept by the clients
    shared_buffer = np.zeros(d)  # momentum averaged by the server
    history = History([x.copy()], [])

    if is_global and not ones_first:
        clients = draws.participants(0)
        probed = [measure(s, problem, draws, (0, m, 0), x) for m in clients]
        server = refresh(s, server, combine(s, weights_of(s, problem, clients), probed))

    for p in range(1, s.num_rounds + 1):
        clients = draws.participants(p)
        weights = weights_of(s, problem, clients)
        refreshes = p % s.refresh_every == 0
        models, statistics, ended, used = [], [], [], []

        for m in clients:
            if m not in own:
                own[m] = new_memory(s, d)
                if not is_global and not ones_first and not by_step:
                    own[m] = refresh(s, own[m], measure(s, problem, draws, (0, m, 0), x))
            preconditioner = d_hat(s, server if is_global else own[m])

            if s.momentum_buffer == "kept":
                b = buffers.get(m, np.zeros(d))
            elif s.momentum_buffer == "averaged":
                b = shared_buffer
            else:
                b = np.zeros(d)

            v = x.copy()
            for step in range(s.local_steps[m]):
                if by_step:
                    own[m] = refresh(s, own[m], measure(s, problem, draws, (p, m, step), v))
                    preconditioner = d_hat(s, own[m])
                b = s.momentum * b + gradient(s, problem, m, v, draws.batch(p, m, step))
                direction = b / preconditioner
                if s.rho is not None:
                    direction = np.clip(direction, -s.rho, s.rho)
                v = v - s.step_size * direction

            if refreshes and s.statistic != "displacement" and not by_step:
                h = measure(s, problem, draws, (p, m, 0), x)
                if is_global:
                    statistics.append(h)
                else:
                    own[m] = refresh(s, own[m], h)
            buffers[m] = b
            models.append(v)
            ended.append(b)
            used.append(preconditioner)

        before = x
        if s.mixing == "preconditioned":
            weighted = [used_m * v for used_m, v in zip(used, models, strict=True)]
            x = mean(weights, weighted) / mean(weights, used)
        else:
            x = mean(weights, models)
        shared_buffer = mean(weights, ended)

        if is_global and refreshes:
            if s.statistic == "displacement":
                n = sum(w * s.local_steps[m] for w, m in zip(weights, clients, strict=True))
                server = refresh(s, server, used[0] * (before - x) / (n * s.step_size))
            else:
                server = refresh(s, server, combine(s, weights, statistics))
        history.x.append(x.copy())
        history.d_hat.append(used[0])
    return history


# ----------------------------------------------------------------------------------------------- the problems


@dataclass(frozen=True)
class Quadratics:
    """f(v; i) = 1/2 (v - c_i)' A_i (v - c_i): per client, `curvature` (n, d, d), `centre` (n, d)."""

    curvature: list[Vector]
    centre: list[Vector]

    @property
    def sizes(self) -> list[int]:
        return [len(c) for c in self.centre]

    def gradient(self, client: int, v: Vector, batch: list[int]) -> Vector:
        pulls = [self.curvature[client][i] @ (v - self.centre[client][i]) for i in batch]
        return np.mean(pulls, axis=0)

    def loss(self, client: int, v: Vector, batch: list[int]) -> float:
        apart = [v - self.centre[client][i] for i in batch]
        bowls = [u @ self.curvature[client][i] @ u / 2 for i, u in zip(batch, apart, strict=True)]
        return float(np.mean(bowls))

    def hvp(self, client: int, v: Vector, batch: list[int], z: Vector) -> Vector:
        return np.mean([self.curvature[client][i] @ z for i in batch], axis=0)

    def sampled_gradient(self, client: int, v: Vector, batch: list[int], labels: Labels) -> Vector:
        raise NotImplementedError("a quadratic has no labels")


@dataclass(frozen=True)
class LeastSquares:
    """f(v; i) = 1/2 (a_i' v - y_i)^2: per client, `a` (n, d), `y` (n,). A label is a float."""

    a: list[Vector]
    y: list[Vector]

    @property
    def sizes(self) -> list[int]:
        return [len(y) for y in self.y]

    def sampled_gradient(self, client: int, v: Vector, batch: list[int], labels: Labels) -> Vector:
        a = self.a[client][batch]
        return a.T @ (a @ v - np.asarray(labels)) / len(batch)

    def gradient(self, client: int, v: Vector, batch: list[int]) -> Vector:
        return self.sampled_gradient(client, v, batch, self.y[client][batch])

    def loss(self, client: int, v: Vector, batch: list[int]) -> float:
        return float(np.mean((self.a[client][batch] @ v - self.y[client][batch]) ** 2) / 2)

    def hvp(self, client: int, v: Vector, batch: list[int], z: Vector) -> Vector:
        a = self.a[client][batch]
        return a.T @ (a @ z) / len(batch)


@dataclass(frozen=True)
class Softmax:
    """Mean cross entropy of logits x W' + c; v is W (classes, features) row by row, then c (classes,)."""

    features: list[Vector]  # per client (n, features)
    targets: list[list[int]]  # per client, n labels
    num_classes: int

    @classmethod
    def drawn(cls, sizes: Sequence[int], num_features: int, num_classes: int) -> Softmax:
        """Clients with so many examples each: normal features, uniform labels."""
        rng = np.random.default_rng(11)
        features = [rng.normal(size=(n, num_features)) for n in sizes]
        return cls(features, [rng.integers(0, num_classes, n).tolist() for n in sizes], num_classes)

    @property
    def sizes(self) -> list[int]:
        return [len(t) for t in self.targets]

    def logits(self, v: Vector, x: Vector) -> Vector:
        w = v[: -self.num_classes].reshape(self.num_classes, -1)
        return x @ w.T + v[-self.num_classes :]

    def probabilities(self, v: Vector, x: Vector) -> Vector:
        logits = self.logits(v, x)
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def pull_back(self, x: Vector, of_logits: Vector) -> Vector:
        """Mean over the examples of (derivative by the logits) times (derivative of the logits by v)."""
        return np.concatenate([(of_logits.T @ x).ravel(), of_logits.sum(axis=0)]) / len(x)

    def sampled_gradient(self, client: int, v: Vector, batch: list[int], labels: Labels) -> Vector:
        x = self.features[client][batch]
        return self.pull_back(x, self.probabilities(v, x) - np.eye(self.num_classes)[np.asarray(labels)])

    def gradient(self, client: int, v: Vector, batch: list[int]) -> Vector:
        return self.sampled_gradient(client, v, batch, [self.targets[client][i] for i in batch])

    def loss(self, client: int, v: Vector, batch: list[int]) -> float:
        p = self.probabilities(v, self.features[client][batch])
        of_targets = [row[self.targets[client][i]] for row, i in zip(p, batch, strict=True)]
        return -float(np.mean(np.log(of_targets)))

    def hvp(self, client: int, v: Vector, batch: list[int], z: Vector) -> Vector:
        x = self.features[client][batch]
        p, dz = self.probabilities(v, x), self.logits(z, x)
        return self.pull_back(x, p * (dz - (p * dz).sum(axis=1, keepdims=True)))
