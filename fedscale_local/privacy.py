"""Differential privacy for whole clients: clipping, Gaussian noise, and what both have cost so far.

    y_m <- y_m min(1, C / |y_m|)                                            each vector that a client sends
    central   y <- (1/E) sum_m y_m + N(0, (z sqrt(G) C / E)^2 I)            the server, which is trusted; E is expected
    local     y_m <- y_m + N(0, (z sqrt(G) C)^2 I)                          each client, before it sends

DP-FedAvg, McMahan et al. 2018 (arXiv 1710.06963), with the estimator of fixed denominator. A client that sends G
vectors in a round, each with a bound C of its own, sends one vector of norm sqrt(G) at most, its parts divided by their
bounds; so the noise of all parts together is one Gaussian mechanism, and a round is one release of multiplier z.

Releases are counted by Google's dp-accounting; nothing of that is written anew here. It takes two seconds to import,
so only runs with privacy do.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedscale_local.randomness import generator
from fedscale_local.server_step import weighted_sum

Sampler = Literal["all", "poisson", "fixed"]


class Release(NamedTuple):
    """One use of the Gaussian mechanism.

    noise    standard deviation over the sensitivity
    sampler  whose data it is of: "all" clients', or those of `sampled` out of `clients`, each on its own with that
             probability ("poisson") or exactly so many ("fixed")
    """

    noise: float
    sampler: Sampler = "all"
    sampled: int = 1
    clients: int = 1


NOT_NEGATIVE = ("second",)
"""Vectors that a root is taken of: their noise may not take them below zero."""


Ledger = tuple[tuple[Release, int], ...]
"""Releases and how often."""


class Charging(NamedTuple):
    """As what something is charged, which neighbours that compares, and a warning where it is a makeshift."""

    release: Release
    neighbours: str
    warning: str | None = None


# ---------------------------------------------------------------- clipping and noise


def clipped(vector: Tensor, bound: float | None) -> Tensor:
    """The vector, shortened to a Euclidean norm of `bound` where it is longer; None: as it is.

    >>> clipped(torch.tensor([3.0, 4.0]), 1.0), clipped(torch.tensor([3.0, 4.0]), 5.0)
    (tensor([0.6000, 0.8000]), tensor([3., 4.]))
    """
    if bound is None:
        return vector
    norm = float(torch.linalg.vector_norm(vector, dtype=torch.float64))
    return vector if norm <= bound else vector * (bound / norm)


def noise(like: Tensor, std: float, stream: torch.Generator | None) -> Tensor:
    """Independent Gaussian numbers of this standard deviation, as `like`.

    stream: a seeded generator, for simulation. None: the operating system's cryptographic generator, for deployment.
    """
    if stream is None:
        return torch.from_numpy(system_normal(like.numel()) * std).to(like.dtype).reshape(like.shape)
    return torch.randn(like.shape, generator=stream, dtype=like.dtype) * std


def system_normal(size: int) -> np.ndarray:
    """Standard Gaussian numbers from os.urandom, (size,) float64.

    Each is half the sum of four by Box and Muller: which float came out then tells an observer nothing of the uniform
    numbers behind it in practicable time (Holohan and Braghin 2021, arXiv 2107.10138).
    """
    whole = np.frombuffer(os.urandom(4 * 2 * 8 * size), dtype=np.uint64).reshape(4, 2, size)
    uniform = ((whole >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53  # inside (0, 1)
    parts = np.sqrt(-2.0 * np.log(uniform[:, 0])) * np.cos(2.0 * np.pi * uniform[:, 1])
    return parts.sum(axis=0) / 2.0


def private_mean(
    vectors: Iterable[Tensor],
    nothing: Tensor,
    bound: float | None,
    expected: int,
    std: float,
    stream: torch.Generator | None,
) -> Tensor:
    """(1/E) sum of the clipped vectors, and noise of standard deviation std / E, (d,).

    nothing: zeros (d,), the sum where nobody was sampled, which gets its noise as any other.
    """
    kept = [clipped(vector, bound) for vector in vectors]
    mean = weighted_sum(kept, [1.0 / expected] * len(kept)) if kept else nothing
    return mean + noise(mean, std / expected, stream) if std else mean


def scale(multiplier: float, num_vectors: int, bound: float | None) -> float:
    """The standard deviation on one of a client's vectors, z sqrt(G) C; 0 without noise.

    >>> scale(2.0, 4, 0.5), scale(0.0, 4, None)
    (2.0, 0.0)
    """
    return 0.0 if bound is None else multiplier * math.sqrt(num_vectors) * bound


# ---------------------------------------------------------------- accounting


@dataclass(frozen=True)
class Mechanism:
    """What a run's section privacy amounts to."""

    kind: Literal["central", "local"]
    multiplier: float
    """z: the noise's standard deviation over the bound."""
    bounds: Mapping[str, float | None]
    """C of each group of vectors (`group_of`); None: not clipped."""
    release: Release
    """What a round (central) or a message (local) is charged as."""
    neighbours: str
    """What epsilon compares, in words."""
    accountant: str
    delta: float
    secure: bool
    """Does noise come from the operating system, and not from the seed?"""
    warnings: tuple[str, ...] = ()

    def stream(self, seed: int, purpose: str, round: int, client: int = 0) -> torch.Generator | None:
        """The seeded generator of these names; None, which stands for the system's, where noise is to be secret."""
        return None if self.secure else generator(seed, purpose, round, client)


def central(multiplier: float, sampler: str, accountant: str, sampled: int, clients: int) -> Charging:
    """A round of central privacy.

    Between federations with and without one client the sum moves by one bound. If the size of the sample is fixed, the
    client's place is taken by another: it moves by two.
    """
    if sampled == clients:
        return Charging(Release(multiplier), "with or without one client")
    if sampler == "poisson":
        return Charging(Release(multiplier, "poisson", sampled, clients), "with or without one client")
    if accountant == "rdp":
        return Charging(Release(multiplier / 2, "fixed", sampled, clients), "one client replaced by another")
    warning = (
        "sampling=fixed does not match privacy.accountant=pld, which knows no samples of a fixed size: each round is "
        "charged as if all clients took part; set sampling=poisson, or privacy.accountant=rdp"
    )
    return Charging(Release(multiplier), "one client's data cleared", warning)


def local(multiplier: float) -> Charging:
    """A message of local privacy: whatever a client holds, what it sends moves by two bounds at most.

    Sampling does not help, as the server knows who sent what.
    """
    return Charging(Release(multiplier / 2), "one client's data replaced by any other")


@lru_cache(maxsize=4096)
def epsilon(ledger: Ledger, accountant: str, delta: float) -> float:
    """The epsilon of all these releases together at this delta; infinite where one had no noise."""
    if not ledger or any(release.noise == 0 for release, _ in ledger):
        return math.inf if ledger else 0.0
    with _quiet():
        if accountant == "rdp":
            return _of_renyi(ledger, delta)
        book = _book(accountant, ledger)
        for release, count in ledger:
            book.compose(event(release), count)
        return float(book.get_epsilon(delta))


def _of_renyi(ledger: Ledger, delta: float) -> float:
    """What the RDP accountant says of all these: it adds up, and what one release costs takes longest to find out."""
    from dp_accounting import rdp

    costs = [(count, *_renyi(release)) for release, count in ledger]
    total = sum(count * own for count, _, own in costs)
    return float(rdp.compute_epsilon(costs[0][1], total, delta)[0])


@lru_cache(maxsize=64)
def _renyi(release: Release) -> tuple[np.ndarray, np.ndarray]:
    """Renyi orders, and the cost of one release at each."""
    book = _book("rdp", ((release, 1),))
    book.compose(event(release))
    return np.asarray(book.orders), np.asarray(book.rdp)


def calibrated(
    release: Callable[[float], Release], num_releases: int, target: float, accountant: str, delta: float
) -> float:
    """The least noise multiplier whose `num_releases` releases stay within the target epsilon.

    release: multiplier -> Release. Raises ValueError where no multiplier from 1e-2 to 1e6 does.
    """
    import dp_accounting

    with _quiet():
        try:
            found = dp_accounting.calibrate_dp_mechanism(
                lambda: _book(accountant, ((release(1.0), 1),)),
                lambda multiplier: dp_accounting.SelfComposedDpEvent(
                    event(release(multiplier)), num_releases
                ),
                target,
                delta,
                dp_accounting.LowerEndpointAndGuess(1e-2, 1.0),
                tol=1e-7,
            )
        except dp_accounting.mechanism_calibration.NoBracketIntervalFoundError:
            raise ValueError("no noise multiplier was found") from None
    return float(found)


def event(release: Release) -> Any:
    """The release as dp-accounting has it."""
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(release.noise)
    if release.sampler == "poisson":
        return dp_accounting.PoissonSampledDpEvent(release.sampled / release.clients, gaussian)
    if release.sampler == "fixed":
        return dp_accounting.SampledWithoutReplacementDpEvent(release.clients, release.sampled, gaussian)
    return gaussian


def _book(accountant: str, ledger: Ledger) -> Any:
    """A fresh accountant for releases such as these."""
    from dp_accounting import NeighboringRelation, pld, rdp

    replaces = any(release.sampler == "fixed" for release, _ in ledger)
    relation = NeighboringRelation.REPLACE_ONE if replaces else NeighboringRelation.ADD_OR_REMOVE_ONE
    return (rdp.RdpAccountant if accountant == "rdp" else pld.PLDAccountant)(neighboring_relation=relation)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without dp-accounting's word on each Renyi order that it leaves out, which is no fault."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


# ---------------------------------------------------------------- what was charged, as a checkpoint keeps it

Charged = dict[int, list[list[Any]]]
"""client index, or EVERYBODY -> its ledger, as lists of [noise, sampler, sampled, clients, count]"""
EVERYBODY = -1


def charge(charged: Charged, clients: Sequence[int], release: Release) -> None:
    """Count one more release for each of these, in place."""
    for client in clients:
        entries = charged.setdefault(client, [])
        if entries and entries[-1][:-1] == list(release):
            entries[-1][-1] += 1
        else:
            entries.append([*release, 1])


def spent(charged: Mapping[int, list[list[Any]]], accountant: str, delta: float) -> float:
    """The epsilon of who was charged most; 0 before any release."""
    ledgers = {tuple((Release(*entry[:-1]), entry[-1]) for entry in entries) for entries in charged.values()}
    return max((epsilon(ledger, accountant, delta) for ledger in ledgers), default=0.0)
