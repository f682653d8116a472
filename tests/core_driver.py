"""The core driven by the twin's draws: a round loop around its pure functions, looped or stacked.

Least squares only, with derivatives in closed form: what is under test is the method, not autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from twin import Draws, LeastSquares, Settings, Vector

from fedscale_local.client_step import LocalResult, Measure, probe, scaled_local_steps
from fedscale_local.curvature import MEASURED, SIGNED, Batch, Oracle
from fedscale_local.scaling import Memory, Scaling
from fedscale_local.server_step import client_weights, combine, displacement, mix, weighted_sum


@dataclass(frozen=True)
class Probed(Batch):
    """A mini-batch x (..., B, d), y (..., B), sampled labels as its noise (..., B), and the probe z (d,)."""

    z: Tensor | None = None


@dataclass(frozen=True)
class LeastSquaresOracle(Oracle):
    """Derivatives of half the mean squared error, for one client or a stack."""

    weight_decay: float

    def start(self, x: Tensor) -> Tensor:
        return x.clone()

    def finish(self, v: Tensor) -> Tensor:
        return v

    def _slope(self, v: Tensor, batch: Batch, targets: Tensor | float) -> Tensor:
        residual = (batch.x @ v.unsqueeze(-1)).squeeze(-1) - targets
        return (residual.unsqueeze(-2) @ batch.x).squeeze(-2) / batch.x.shape[-2]

    def gradient(self, v: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = torch.zeros(v.shape[:-1], dtype=v.dtype)  # not compared
        return loss, self._slope(v, batch, batch.y) + self.weight_decay * v

    def hessian_vector(self, v: Tensor, batch: Batch, z: Tensor) -> Tensor:
        return self._slope(z.expand_as(v), batch, 0.0) + self.weight_decay * z

    def gauss_newton(self, v: Tensor, batch: Batch) -> Tensor:
        labels = batch.noise
        assert labels is not None
        return batch.x.shape[-2] * self._slope(v, batch, labels) ** 2 + self.weight_decay


@dataclass
class Client:
    """What a client keeps between its rounds."""

    memory: Any = None
    momentum: Tensor | None = None


class Feed(NamedTuple):
    """The twin's mini-batches as tensors, each made once."""

    one: Callable[[int, int, int], Probed]  # round, client, step
    stack: Callable[[int, tuple[int, ...], int], Probed]  # round, clients, step


def feed(problem: LeastSquares, draws: Draws) -> Feed:
    """What run_core reads; shared by the runs on one problem."""

    @cache
    def one(round: int, client: int, step: int) -> Probed:
        picked = draws.batch(round, client, step)
        a, y = problem.a[client][picked], problem.y[client][picked]
        labels = np.asarray(draws.labels(round, client, step), dtype=np.float64)
        x, targets, noise, z = (torch.from_numpy(part) for part in (a, y, labels, draws.z(round, step)))
        return Probed(x, targets, noise=noise, z=z)

    @cache
    def stack(round: int, clients: tuple[int, ...], step: int) -> Probed:
        single = [one(round, m, step) for m in clients]
        x, y, noise = (torch.stack([getattr(b, part) for b in single]) for part in ("x", "y", "noise"))
        return Probed(x, y, noise=noise, rows=slice(0, len(clients)), z=single[0].z)

    return Feed(one, stack)


def run_core(
    sizes: list[int], s: Settings, present: Callable[[int], list[int]], x0: Vector, feed: Feed, stacked: bool
) -> list[Vector]:
    """x after each round, x_0 first; compare with twin.scaled_local(...).x.

    sizes: examples per client.  present: round -> the clients that take part.
    """
    scaling = Scaling(s.rule, s.beta, s.alpha, s.floor, s.upper_bound, s.rho)
    oracle: Any = LeastSquaresOracle(s.weight_decay)
    is_global = s.scope == "global" or scaling.is_identity
    by_step = not is_global and s.local_refresh == "step"
    from_server = s.statistic == "displacement"
    probes = s.start == "statistic" and not (from_server or by_step or scaling.is_identity)
    signed = s.statistic in SIGNED

    if s.statistic in MEASURED:
        measure = Measure(beside=lambda v, batch: MEASURED[s.statistic](oracle, v, batch, batch.z))  # type: ignore[attr-defined]
    else:
        measure = Measure(of_gradient=lambda gradient: gradient)

    def probe_at(x: Tensor, clients: list[int]) -> list[Tensor]:
        if not stacked:
            return [probe(oracle, x, feed.one(0, m, 0), measure) for m in clients]
        return list(probe(oracle, x.expand(len(clients), -1), feed.stack(0, tuple(clients), 0), measure))

    steps = partial(scaled_local_steps, oracle, scaling=scaling, step_size=s.step_size, momentum=s.momentum)

    def looped_round(p: int, clients: list[int], d_hat: Tensor | None, wanted: bool) -> list[Any]:
        results = []
        for m in clients:
            own = state[m].memory
            results.append(
                steps(
                    x=x,
                    batches=[feed.one(p, m, k) for k in range(s.local_steps[m])],
                    d_hat=d_hat if is_global else scaling.d_hat(own),
                    buffer=state[m].momentum,
                    measure=measure if wanted else None,
                    memory=own if by_step else None,
                )
            )
        return results

    def stacked_round(p: int, clients: list[int], d_hat: Tensor | None, wanted: bool) -> list[Any]:
        ranked = sorted(clients, key=lambda m: -s.local_steps[m])
        memories = [state[m].memory for m in ranked if state[m].memory is not None]
        if not is_global:
            each = [scaling.d_hat(own) for own in memories]
            d_hat = torch.stack([torch.ones_like(x) if d is None else d for d in each])
        clocks = torch.tensor([[float(own.clock)] for own in memories], dtype=torch.float64)
        momenta = [torch.zeros_like(x) if b is None else b for b in (state[m].momentum for m in ranked)]
        result = steps(
            x=x.expand(len(ranked), -1),
            batches=[
                feed.stack(p, tuple(m for m in ranked if s.local_steps[m] > k), k)
                for k in range(s.local_steps[ranked[0]])
            ],
            d_hat=d_hat,
            buffer=torch.stack(momenta),
            measure=measure if wanted else None,
            memory=Memory(torch.stack([own.value for own in memories]), clocks) if by_step else None,
        )
        rows = {m: _row(result, row) for row, m in enumerate(ranked)}
        return [rows[m] for m in clients]

    x = torch.from_numpy(x0)
    state = [Client() for _ in sizes]
    server: Any = scaling.init(x, ones=s.start == "ones")
    averaged: Tensor | None = None
    if is_global and probes:
        clients = present(0)
        weights = client_weights([sizes[m] for m in clients], s.weighting)
        server = scaling.refresh(server, combine(probe_at(x, clients), weights, s.combine, signed))

    history = [x.numpy()]
    for p in range(1, s.num_rounds + 1):
        clients = present(p)
        weights = client_weights([sizes[m] for m in clients], s.weighting)
        d_hat = scaling.d_hat(server)
        refreshes = p % s.refresh_every == 0 and not scaling.is_identity
        new = [m for m in clients if state[m].memory is None] if not is_global else []
        for m in new:
            state[m].memory = scaling.init(x, ones=s.start == "ones")
        if probes:
            for m, h in zip(new, probe_at(x, new) if new else [], strict=True):
                state[m].memory = scaling.refresh(state[m].memory, h)
        for m in clients if s.momentum_buffer != "kept" else []:
            state[m].momentum = averaged if s.momentum_buffer == "averaged" else None

        wanted = by_step or (refreshes and not from_server)
        run = stacked_round if stacked else looped_round
        results = run(p, clients, d_hat, wanted)

        for m, result in zip(clients, results, strict=True):
            state[m].momentum = result.momentum
        if s.momentum:
            averaged = weighted_sum([r.momentum for r in results], weights)
        before = x
        models = [r.params for r in results]
        if s.mixing == "preconditioned" and not scaling.is_identity:
            used = [torch.ones_like(x) if r.d_hat is None else r.d_hat for r in results]
            x = mix(models, used, weights)
        else:
            x = weighted_sum(models, weights)
        if is_global and refreshes and from_server:
            n = sum(w * s.local_steps[m] for w, m in zip(weights, clients, strict=True))
            server = scaling.refresh(server, displacement(before, x, d_hat, n, s.step_size))
        elif is_global and refreshes:
            statistics = [r.statistic for r in results]
            server = scaling.refresh(server, combine(statistics, weights, s.combine, signed))
        elif not is_global:
            for m, result in zip(clients, results, strict=True):
                if by_step:
                    state[m].memory = result.memory
                elif refreshes:
                    state[m].memory = scaling.refresh(state[m].memory, result.statistic)
        history.append(x.numpy())
    return history


def _row(result: LocalResult, row: int) -> LocalResult:
    """One client's part of a stack's result."""

    def pick(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.dim() == 1 else tensor[row]

    memory = result.memory
    if memory is not None:
        assert isinstance(memory.clock, Tensor)
        memory = Memory(memory.value[row], int(memory.clock[row]))
    statistic, momentum, d_hat = pick(result.statistic), pick(result.momentum), pick(result.d_hat)
    return LocalResult(result.params[row], result.loss[row], statistic, momentum, memory, d_hat, result.state)
