"""The conformance claims, one test each, at the level of the core's pure functions.

Claims 4 and 10 (one D-hat a round, the byte ledger) are about whole runs: tests/test_conformance_of_runs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from core_driver import feed, run_core
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from twin import RULES, Draws, LeastSquares, Settings

from fedscale_local.client_step import Measure, probe, scaled_local_steps
from fedscale_local.curvature import MEASURED, Batch, Oracle, rademacher
from fedscale_local.randomness import generator
from fedscale_local.scaling import Memory, Scaling
from fedscale_local.server_step import client_weights, combine, weighted_sum


def noise(added: Tensor) -> Batch:
    """A mini-batch of Quadratic: what it adds to the gradient, (..., d)."""
    return Batch(x=added, y=added)


@dataclass(frozen=True)
class Quadratic(Oracle):
    """f(v) = 1/2 sum_i a_i (v_i - c_i)^2 with curvature a and centre c, each (d,) or (clients, d)."""

    a: Tensor
    c: Tensor | float = 0.0

    def start(self, x: Tensor) -> Tensor:
        return x.clone()

    def finish(self, v: Tensor) -> Tensor:
        return v

    def gradient(self, v: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        loss = torch.zeros(v.shape[:-1], dtype=v.dtype)  # not looked at
        return loss, self.a * (v - self.c) + batch.x

    def hessian_vector(self, v: Tensor, batch: Batch, z: Tensor) -> Tensor:
        return self.a * z.expand_as(v)

    def gauss_newton(self, v: Tensor, batch: Batch) -> Tensor:
        return self.a.expand_as(v)


of_gradient = Measure(of_gradient=Tensor.clone)
"""The gradient statistic."""


def vectors(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_1_identity_scaling_is_local_sgd_bit_for_bit(momentum: float, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    oracle: Any = Quadratic(vectors(rng, 257).abs().to(dtype), vectors(rng, 257).to(dtype))
    noises = [vectors(rng, 257).to(dtype) for _ in range(7)]
    x = vectors(rng, 257).to(dtype)

    parameter = x.clone().requires_grad_()
    sgd = torch.optim.SGD([parameter], lr=0.07, momentum=momentum)
    for added in noises:
        parameter.grad = oracle.gradient(parameter.detach(), noise(added))[1]
        sgd.step()

    result = scaled_local_steps(
        oracle, x, [noise(n) for n in noises], Scaling("identity"), step_size=0.07, momentum=momentum
    )
    assert torch.equal(result.params, parameter.detach())


@pytest.mark.parametrize("beta2", [0.9, 0.999])
def test_2_one_client_with_adam_is_rmsprop_with_adams_bias_correction(beta2: float) -> None:
    """The statistics of the probe and of rounds < p make torch's denominator of round p."""
    rng = np.random.default_rng(2)
    oracle: Any = Quadratic(vectors(rng, 5).abs())
    scaling = Scaling("adam", beta=beta2, alpha=1e-3, floor="add")
    x, eps, lr = vectors(rng, 5), 1e-3, 0.1

    shadow = x.clone().requires_grad_()  # fed with the same gradients; only its second moment is used
    adam = torch.optim.Adam([shadow], lr=lr, betas=(0.0, beta2), eps=eps)

    def torch_sees(gradient: Tensor, step: int) -> Tensor:
        shadow.grad = gradient
        adam.step()
        return (adam.state[shadow]["exp_avg_sq"] / (1 - beta2**step)).sqrt() + eps

    first = noise(vectors(rng, 5))
    memory = scaling.init(x)
    assert memory is not None
    memory = scaling.refresh(memory, probe(oracle, x, first, of_gradient))
    denominator = torch_sees(oracle.gradient(x, first)[1], 1)
    expected = x.clone()
    for p in range(1, 20):
        batch = noise(vectors(rng, 5))  # fresh
        g = oracle.gradient(expected, batch)[1]
        expected = expected - lr * g / denominator
        denominator = torch_sees(g, p + 1)
        result = scaled_local_steps(
            oracle, x, [batch], scaling, step_size=lr, d_hat=scaling.d_hat(memory), measure=of_gradient
        )
        assert result.statistic is not None
        x, memory = result.params, scaling.refresh(memory, result.statistic)
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)


def test_2_a_d_of_its_own_at_each_step_is_torchs_adam_without_first_moment() -> None:
    rng = np.random.default_rng(22)
    oracle: Any = Quadratic(vectors(rng, 5).abs())
    scaling = Scaling("adam", beta=0.99, alpha=1e-3, floor="add")
    x, batches = vectors(rng, 5), [noise(vectors(rng, 5)) for _ in range(25)]
    parameter = x.clone().requires_grad_()
    adam = torch.optim.Adam([parameter], lr=0.1, betas=(0.0, 0.99), eps=1e-3)
    for batch in batches:
        parameter.grad = oracle.gradient(parameter.detach(), batch)[1]
        adam.step()
    result = scaled_local_steps(
        oracle,
        x,
        batches,
        scaling,
        step_size=0.1,
        measure=of_gradient,
        memory=scaling.init(x),
    )
    torch.testing.assert_close(result.params, parameter.detach(), rtol=1e-12, atol=1e-12)


def least_squares(seed: int, sizes: Sequence[int], d: int) -> tuple[LeastSquares, Draws, np.ndarray]:
    """Full batches, everybody takes part."""
    rng = np.random.default_rng(seed)
    problem = LeastSquares([rng.normal(size=(n, d)) for n in sizes], [rng.normal(size=n) for n in sizes])
    signs = rng.choice([-1.0, 1.0], (1000, d))
    draws = Draws(
        participants=lambda p: list(range(len(sizes))),
        batch=lambda p, m, k: list(range(sizes[m])),
        z=lambda p, k: signs[p],
        labels=lambda p, m, k: [0.0] * sizes[m],
    )
    return problem, draws, rng.normal(size=d)


def run(problem: LeastSquares, s: Settings, draws: Draws, x0: np.ndarray) -> list[np.ndarray]:
    return run_core(problem.sizes, s, draws.participants, x0, feed(problem, draws), stacked=False)


@pytest.mark.parametrize("rule", RULES)
def test_3_one_local_step_is_centralised_scaled_sgd_on_the_mean_gradient(rule: str) -> None:
    problem, draws, x0 = least_squares(3, (2, 5, 3), d=6)
    s = Settings(rule=rule, local_steps=(1, 1, 1), num_rounds=15, step_size=0.05, alpha=1e-2)
    # Weighted by examples, the mean of the clients' full gradients is the gradient of all examples together.
    pooled = LeastSquares([np.concatenate(problem.a)], [np.concatenate(problem.y)])
    alone = replace(draws, participants=lambda p: [0], batch=lambda p, m, k: list(range(10)))
    alone = replace(alone, labels=lambda p, m, k: [0.0] * 10)
    central = run(pooled, replace(s, local_steps=(1,)), alone, x0)
    np.testing.assert_allclose(run(problem, s, draws, x0), central, rtol=1e-11, atol=1e-12)


class Recorder(Scaling):
    """A rule that notes which D-hat each step divides by, and the clock at each refresh."""

    seen: list[Tensor | None] = []  # noqa: RUF012
    clocks: list[Any] = []  # noqa: RUF012

    def step_(self, v: Tensor, b: Tensor, d_hat: Tensor | None, step_size: float) -> Tensor:
        self.seen.append(d_hat)
        return super().step_(v, b, d_hat, step_size)

    def refresh(self, memory: Memory, statistic: Tensor) -> Memory:
        self.clocks.append(memory.clock)
        return super().refresh(memory, statistic)


@pytest.fixture
def recorder() -> type[Recorder]:
    Recorder.seen, Recorder.clocks = [], []
    return Recorder


@pytest.mark.parametrize("shape", [(3,), (4, 3)], ids=["looped", "stacked"])
def test_4_d_hat_is_the_same_tensor_at_every_local_step(
    recorder: type[Recorder], shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(4)
    d_hat = vectors(rng, 3).abs() + 0.1
    before = d_hat.clone()
    oracle: Any = Quadratic(vectors(rng, 3).abs())
    batches = [noise(vectors(rng, *shape)) for _ in range(6)]
    x = vectors(rng, *shape)
    scaled_local_steps(oracle, x, batches, recorder("adam"), step_size=0.1, d_hat=d_hat, measure=of_gradient)
    assert len(recorder.seen) == 6
    assert all(used is not None and used.data_ptr() == d_hat.data_ptr() for used in recorder.seen)
    assert torch.equal(d_hat, before)


@pytest.mark.parametrize("seed", range(5))
def test_5_the_shared_probe_measures_the_mean_hessian(seed: int) -> None:
    problem, _, _ = least_squares(seed, (2, 9, 4), d=5)
    hessians = [torch.from_numpy(a.T @ a / len(a)) for a in problem.a]
    z = rademacher(generator(seed, "probe", 3), 5, torch.float64)
    assert set(z.tolist()) <= {-1.0, 1.0}
    weights = client_weights(problem.sizes, "examples")

    @dataclass(frozen=True)
    class OfOne:
        hessian: Tensor

        def hessian_vector(self, v: Tensor, batch: Any, z: Tensor) -> Tensor:
            return self.hessian @ z

    oracles: list[Any] = [OfOne(h) for h in hessians]
    empty = noise(torch.zeros(5))
    own = [MEASURED["hutchinson"](oracle, z, empty, z) for oracle in oracles]
    mean_hessian = weighted_sum(hessians, weights)
    combined = combine(own, weights, "square_of_mean", signed=True)
    torch.testing.assert_close(combined, z * (mean_hessian @ z), rtol=1e-12, atol=1e-12)
    # With a probe of its own for each client this does not hold.
    others = [z * torch.tensor([1.0, -1, 1, -1, 1]), z, -z * torch.tensor([1.0, 1, -1, 1, 1])]
    apart = [MEASURED["hutchinson"](o, z, empty, own) for o, own in zip(oracles, others, strict=True)]
    wrong = combine(apart, weights, "square_of_mean", signed=True)
    assert not torch.allclose(wrong, z * (mean_hessian @ z), rtol=1e-3)


statistics = st.lists(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=3, max_size=3), min_size=1, max_size=6
)


@settings(max_examples=200, deadline=None)
@given(
    rule=st.sampled_from([rule for rule in RULES if rule != "identity"]),
    beta=st.floats(0, 0.999),
    alpha=st.floats(1e-8, 10),
    floor=st.sampled_from(["max", "add"]),
    room=st.none() | st.floats(1, 100),
    history=statistics,
)
def test_6_d_hat_stays_between_alpha_and_the_cap(
    rule: str, beta: float, alpha: float, floor: str, room: float | None, history: list[list[float]]
) -> None:
    cap = None if room is None else alpha * room
    scaling = Scaling(rule, beta=beta, alpha=alpha, floor=floor, upper_bound=cap)
    memory = scaling.init(torch.zeros(3, dtype=torch.float64))
    assert memory is not None
    for h in history:
        memory = scaling.refresh(memory, torch.tensor(h, dtype=torch.float64))
        d_hat = scaling.d_hat(memory)
        assert d_hat is not None
        assert (d_hat >= alpha).all()
        assert cap is None or (d_hat <= cap).all()


def test_6_oasis_keeps_the_sign_in_memory() -> None:
    # 1/2 * 4 + 1/2 * (-4) = 0 and not 4: the absolute value is taken in the floor only.
    oasis = Scaling("oasis", beta=0.5, alpha=1e-3)
    memory = oasis.init(torch.zeros(2))
    assert memory is not None
    memory = oasis.refresh(oasis.refresh(memory, torch.tensor([4.0, -2.0])), torch.tensor([-4.0, -2.0]))
    assert memory.value.tolist() == [0.0, -2.0]
    d_hat = oasis.d_hat(memory)
    assert d_hat is not None
    torch.testing.assert_close(d_hat, torch.tensor([1e-3, 2.0]))


@pytest.mark.parametrize("step_size", [1.0, 0.3])
@pytest.mark.parametrize("a", [(1.0, 3.0), (0.2, 5.0)])
def test_7_preconditioned_mixing_goes_to_the_minimum_and_the_plain_mean_does_not(
    a: tuple[float, float], step_size: float
) -> None:
    c = (1.0, -2.0)
    # (a/2)(x - c)^2 as least squares: one example sqrt(a), target sqrt(a) c. D = a by Hutchinson.
    roots = [np.array([[value**0.5]]) for value in a]
    problem = LeastSquares(roots, [root[0] * centre for root, centre in zip(roots, c, strict=True)])
    _, draws, _ = least_squares(7, (1, 1), d=1)
    plain = Settings(
        rule="oasis",
        statistic="hutchinson",
        scope="local",
        local_steps=(1, 1),
        num_rounds=120,
        step_size=step_size,
    )
    x0 = np.array([7.0])
    minimum = (a[0] * c[0] + a[1] * c[1]) / (a[0] + a[1])
    assert run(problem, plain, draws, x0)[-1] == pytest.approx((c[0] + c[1]) / 2, rel=1e-12)
    mixed = run(problem, replace(plain, mixing="preconditioned"), draws, x0)
    assert mixed[-1] == pytest.approx(minimum, rel=1e-12)


def test_8_the_clock_of_beta_counts_refreshes(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine rounds of four local steps, D refreshed every third round: t is 0 in the probe, then 1, 2, 3."""
    monkeypatch.setattr("core_driver.Scaling", recorder)
    problem, draws, x0 = least_squares(8, (3, 4), d=3)
    run(problem, Settings(rule="adam", local_steps=(4, 4), num_rounds=9, refresh_every=3), draws, x0)
    assert recorder.clocks == [0, 1, 2, 3]
    assert len(recorder.seen) == 2 * 4 * 9


def test_8_adams_d_after_t_refreshes_in_closed_form() -> None:
    rng, beta = np.random.default_rng(8), 0.9
    adam = Scaling("adam", beta=beta, alpha=1e-12)
    memory = adam.init(torch.zeros(4, dtype=torch.float64))
    assert memory is not None
    h = vectors(rng, 6, 4)
    for t in range(6):
        memory = adam.refresh(memory, h[t])
        decays = torch.tensor([beta ** (t - i) for i in range(t + 1)], dtype=torch.float64)
        closed = ((1 - beta) * decays @ h[: t + 1] ** 2 / (1 - beta ** (t + 1))).sqrt()
        torch.testing.assert_close(adam.d_hat(memory), closed, rtol=1e-12, atol=0)


def errors(
    scaling: Scaling,
    a: Tensor,
    x0: Tensor,
    *,
    seed: int,
    sigma: float,
    clients: int,
    rounds: int,
    steps: int,
    size: float,
) -> Tensor:
    """|x - x*|^2 after each round, (rounds + 1,); every client has f(v) = 1/2 sum a v^2.

    sigma: the square root of E |noise of a gradient|^2.  size: the step size.
    """
    stream = generator(seed, "batch")
    oracle: Any = Quadratic(a)
    d, weights = len(x0), [1 / clients] * clients

    def batch() -> Batch:
        added = torch.randn((clients, d), generator=stream, dtype=torch.float64)
        return noise(added * (sigma / d**0.5))

    x, found = x0, [x0.square().sum()]
    memory = scaling.init(x0)
    assert memory is not None
    first = probe(oracle, x.expand(clients, -1), batch(), of_gradient)
    memory = scaling.refresh(memory, combine(first, weights, "square_of_mean", signed=False))
    for _ in range(rounds):
        result = scaled_local_steps(
            oracle,
            x.expand(clients, -1),
            [batch() for _ in range(steps)],
            scaling,
            step_size=size,
            d_hat=scaling.d_hat(memory),
            measure=of_gradient,
        )
        assert result.statistic is not None
        x = weighted_sum(result.params, weights)
        memory = scaling.refresh(memory, combine(result.statistic, weights, "square_of_mean", signed=False))
        found.append(x.square().sum())
    return torch.stack(found)


@pytest.mark.parametrize("rule", ["rmsprop", "oasis"])
def test_9_the_bound_holds_over_seeds(rule: str) -> None:
    mu, largest, alpha, cap, sigma, clients, steps, rounds = 0.5, 1.0, 0.5, 1.0, 1.0, 4, 4, 60
    size = alpha / (4 * largest)
    a = size * mu / (2 * cap)
    drift = cap**2 / (2 * alpha**2) if rule == "rmsprop" else cap / alpha
    scaling = Scaling(rule, beta=1 - a / drift, alpha=alpha, upper_bound=cap)
    curvature = torch.linspace(mu, largest, 8, dtype=torch.float64)
    x0 = torch.full((8,), 2.0, dtype=torch.float64)
    given: dict[str, Any] = {"clients": clients, "rounds": rounds, "steps": steps, "size": size}
    each = [errors(scaling, curvature, x0, seed=seed, sigma=sigma, **given) for seed in range(30)]
    measured = torch.stack(each).mean(0)
    floor = 2 * size * cap * sigma**2 / (mu * alpha**2 * clients)
    drifting = 3 * size**2 * cap * largest * (steps - 1) * sigma**2 / (mu * alpha**3)
    for p, error in enumerate(measured.tolist()):
        start = (1 - a) ** (steps * p) * (cap / alpha) * float(x0.square().sum())
        assert error <= start + (1 + a) * (floor + drifting)
    assert measured[-1] < measured[0] / 10


def test_9_without_noise_the_error_falls_at_the_rate_of_the_weighted_constants() -> None:
    """D-hat goes to alpha with the gradient; each step then multiplies the slowest x by 1 - size mu/alpha."""
    mu, alpha, size, steps = 0.1, 0.5, 0.1, 5
    scaling = Scaling("rmsprop", beta=0.5, alpha=alpha, upper_bound=1.0)
    curvature = torch.tensor([mu, 0.5, 1.0], dtype=torch.float64)
    x0 = torch.ones(3, dtype=torch.float64)
    found = errors(scaling, curvature, x0, seed=0, sigma=0.0, clients=2, rounds=120, steps=steps, size=size)
    slope = float((found[120] / found[80]).log()) / (40 * steps)
    assert slope == pytest.approx(2 * log(1 - size * mu / alpha), rel=1e-6)
    assert slope <= log(1 - size * mu / (2 * 1.0))  # the rate that the bound promises


def slope_of(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def test_9_the_noise_floor_is_linear_in_the_step_size_and_in_one_over_the_clients() -> None:
    """The bound's leading term is proportional to step_size sigma^2 / M; so is the error that stays."""
    scaling = Scaling("rmsprop", beta=0.9, alpha=1.0, upper_bound=2.0)
    curvature = torch.ones(100, dtype=torch.float64)
    x0 = torch.zeros(100, dtype=torch.float64)

    def floor(clients: int, size: float) -> float:
        given: dict[str, Any] = {"sigma": 1.0, "rounds": 300, "steps": 2, "seed": 9}
        return float(errors(scaling, curvature, x0, clients=clients, size=size, **given)[100:].mean())

    clients, sizes = [1, 4, 16], [0.02, 0.04, 0.08]
    assert slope_of(clients, [floor(m, 0.1) for m in clients]) == pytest.approx(-1, abs=0.1)
    assert slope_of(sizes, [floor(2, size) for size in sizes]) == pytest.approx(1, abs=0.1)
