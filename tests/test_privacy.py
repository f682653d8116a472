"""Clipping, noise and accounting by themselves, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedscale_local import privacy, sampling
from fedscale_local.privacy import Release
from fedscale_local.randomness import generator

DELTA = 1e-5


def exact_gaussian(noise: float, delta: float) -> float:
    """The epsilon of one Gaussian mechanism, where its delta(epsilon) is `delta` (Balle and Wang 2018, Theorem 8)."""

    def excess(epsilon: float) -> float:
        high, low = 1 / (2 * noise) - epsilon * noise, -1 / (2 * noise) - epsilon * noise
        return float(norm.cdf(high) - math.exp(epsilon) * norm.cdf(low)) - delta

    return float(brentq(excess, 0.0, 500.0, xtol=1e-12))


def converted(renyi: dict[float, float], delta: float) -> float:
    """From Renyi to (epsilon, delta): Canonne, Kamath and Steinke 2020, Proposition 12."""
    return min(
        own + math.log1p(-1 / order) - math.log(delta * order) / (order - 1) for order, own in renyi.items()
    )


def poisson_renyi(share: float, noise: float, order: int) -> float:
    """Of whole orders: Mironov, Talwar and Zhang 2019, equation 6."""
    terms = [
        math.comb(order, k)
        * (1 - share) ** (order - k)
        * share**k
        * math.exp((k * k - k) / (2 * noise * noise))
        for k in range(order + 1)
    ]
    return math.log(math.fsum(terms)) / (order - 1)


# ---------------------------------------------------------------- epsilon


@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (5.0, 100)])
def test_the_gaussian_mechanism_has_its_closed_form(noise: float, count: int) -> None:
    """n of them are one with noise / sqrt(n). PLD rounds losses up to multiples of 1e-4; Renyi bounds from above."""
    exact = exact_gaussian(noise / math.sqrt(count), DELTA)
    ledger = ((Release(noise), count),)
    assert exact <= privacy.epsilon(ledger, "pld", DELTA) <= exact + 1e-3
    renyi = privacy.epsilon(ledger, "rdp", DELTA)
    fine = {order: count * order / (2 * noise**2) for order in np.linspace(1.01, 100, 10_000)}
    best = converted(fine, DELTA)
    assert exact < best
    assert best - 1e-3 <= renyi <= best * 1.01


def test_poisson_sampling_has_its_closed_form() -> None:
    """The best order of this case is a whole number, of which the moments are a finite sum."""
    share, noise, count = 0.05, 2.0, 40
    found = privacy.epsilon(((Release(noise, "poisson", 5, 100), count),), "rdp", DELTA)
    expected = converted({o: count * poisson_renyi(share, noise, o) for o in range(2, 64)}, DELTA)
    assert found == pytest.approx(expected, abs=1e-9)


def test_kinds_of_releases_add_up() -> None:
    """Three of noise 2 and eight of noise 4 are five of noise 2: 3/4 + 8/16 = 5/4."""
    together = privacy.epsilon(((Release(2.0), 3), (Release(4.0), 8)), "rdp", DELTA)
    assert together == pytest.approx(privacy.epsilon(((Release(2.0), 5),), "rdp", DELTA), abs=1e-12)


def test_without_noise_there_is_no_epsilon_and_without_releases_none_is_lost() -> None:
    assert privacy.epsilon(((Release(0.0), 1),), "rdp", DELTA) == math.inf
    assert privacy.epsilon((), "rdp", DELTA) == 0.0
    assert privacy.spent({}, "rdp", DELTA) == 0.0


def test_a_sample_of_fixed_size_is_charged_by_its_own_event() -> None:
    """Replacing one of S clients moves the sum by two bounds. PLD has no such event: said, and charged in full."""
    of = (2.0, "fixed")
    release, neighbours, warning = privacy.central(*of, "rdp", 20, 200)
    assert (release, warning) == (Release(1.0, "fixed", 20, 200), None)
    assert "replaced" in neighbours
    release, _, warning = privacy.central(*of, "pld", 20, 200)
    assert release == Release(2.0)
    assert warning is not None and "sampling=poisson" in warning
    assert privacy.central(2.0, "poisson", "pld", 20, 200).release == Release(2.0, "poisson", 20, 200)
    for sampler in ("fixed", "poisson"):
        assert privacy.central(2.0, sampler, "rdp", 200, 200) == (
            Release(2.0),
            "with or without one client",
            None,
        )
    assert privacy.local(2.0).release == Release(1.0)


def test_the_noise_for_a_target_is_the_least() -> None:
    def release(multiplier: float) -> Release:
        return Release(multiplier, "poisson", 1, 20)

    found = privacy.calibrated(release, 10, 3.0, "rdp", DELTA)
    assert privacy.epsilon(((release(found), 10),), "rdp", DELTA) <= 3.0
    assert privacy.epsilon(((release(found * 0.999), 10),), "rdp", DELTA) > 3.0


def test_the_client_charged_most_is_what_counts() -> None:
    charged: privacy.Charged = {}
    for clients in ([0, 1], [1, 2], [1]):
        privacy.charge(charged, clients, Release(2.0))
    assert {client: [entry[-1] for entry in entries] for client, entries in charged.items()} == {
        0: [1],
        1: [3],
        2: [1],
    }
    assert privacy.spent(charged, "rdp", DELTA) == privacy.epsilon(((Release(2.0), 3),), "rdp", DELTA)
    privacy.charge(charged, [2], Release(0.1))
    assert privacy.spent(charged, "rdp", DELTA) > 50


# ---------------------------------------------------------------- clipping and noise


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.floats(1e-3, 1e3),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_a_clipped_vector_keeps_its_direction_and_no_more_than_its_bound(
    numbers: list[float], bound: float, dtype: torch.dtype
) -> None:
    vector = torch.tensor(numbers, dtype=dtype)
    clipped = privacy.clipped(vector, bound)
    rounding = 4 * torch.finfo(dtype).eps
    length, before = float(clipped.double().norm()), float(vector.double().norm())
    assert length <= bound * (1 + rounding)
    if before <= bound:
        assert torch.equal(clipped, vector)
    else:
        assert length >= bound * (1 - rounding)
        expected = vector.double() * (bound / before)
        torch.testing.assert_close(clipped.double(), expected, rtol=rounding, atol=1e-30)
    assert privacy.clipped(vector, None) is vector


@pytest.mark.parametrize("kind", ["seed", "system"])
def test_the_noise_is_gaussian_of_the_variance_asked_for(kind: str) -> None:
    """Six standard errors: by chance fails one run in 10^8."""
    size, std = 200_000, 0.3
    stream = generator(0, "privacy", 1) if kind == "seed" else None
    found = privacy.noise(torch.zeros(size, dtype=torch.float64), std, stream).numpy() / std
    assert abs(found.mean()) < 6 / math.sqrt(size)
    assert abs((found**2).mean() - 1) < 6 * math.sqrt(2 / size)
    assert abs((found**4).mean() - 3) < 6 * math.sqrt(96 / size)
    assert abs((found[1:] * found[:-1]).mean()) < 6 / math.sqrt(size)
    for cut in (-2.0, -0.5, 1.0, 3.0):
        share = norm.cdf(cut)
        assert abs((found < cut).mean() - share) < 6 * math.sqrt(share * (1 - share) / size)


def test_the_systems_noise_never_repeats_and_the_seeds_always_does() -> None:
    zeros = torch.zeros(8)
    assert not torch.equal(privacy.noise(zeros, 1.0, None), privacy.noise(zeros, 1.0, None))
    first, second = (privacy.noise(zeros, 1.0, generator(0, "privacy", 1)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_mean_has_a_denominator_that_nobody_moves() -> None:
    """Two clients answered, ten were expected; and nobody, which is noise alone."""
    vectors, nothing = [torch.tensor([6.0, 8.0]), torch.tensor([0.0, -1.0])], torch.zeros(2)
    mean = privacy.private_mean(vectors, nothing, 5.0, 10, 0.0, None)
    torch.testing.assert_close(mean, torch.tensor([0.3, 0.3]))
    assert torch.equal(privacy.private_mean([], nothing, 5.0, 10, 0.0, None), nothing)
    alone = privacy.private_mean([], nothing, 5.0, 10, 1.0, generator(0, "privacy", 1))
    assert torch.equal(alone, privacy.noise(nothing, 0.1, generator(0, "privacy", 1)))


# ---------------------------------------------------------------- sampling


def test_poisson_sampling_is_each_client_on_its_own() -> None:
    """Counts, and pairs, within six standard errors of independent coins; sometimes nobody."""
    clients, rounds, share = list(range(10, 18)), 6000, 1 / 4
    drawn = np.zeros((rounds, len(clients)))
    for round in range(rounds):
        chosen = sampling.choose(clients, 2, "poisson", generator(0, "sampling", round))
        assert chosen == sorted(set(chosen))
        drawn[round, [client - 10 for client in chosen]] = 1
    assert np.abs(drawn.mean(axis=0) - share).max() < 6 * math.sqrt(share * (1 - share) / rounds)
    pairs = (drawn.T @ drawn / rounds)[np.triu_indices(len(clients), 1)]
    assert np.abs(pairs - share**2).max() < 6 * math.sqrt(share**2 * (1 - share**2) / rounds)
    nobody = (1 - share) ** len(clients)
    assert abs((drawn.sum(axis=1) == 0).mean() - nobody) < 6 * math.sqrt(nobody * (1 - nobody) / rounds)


@pytest.mark.parametrize("sampler", ["fixed", "poisson"])
def test_the_systems_sample_needs_no_seed(sampler: str) -> None:
    clients = list(range(1000))
    first, second = (sampling.choose(clients, 500, sampler, None) for _ in range(2))
    assert first != second
    assert 400 < len(first) < 600 and set(first) <= set(clients)
    assert sampler == "poisson" or len(first) == 500
    assert sampling.choose(clients, 1000, sampler, None) == clients
