"""Generated clients with known objectives f_m(v) = 1/2 (v - c_m)^T A_m (v - c_m), as least squares.

Client m's full-batch objective, the mean of 1/2 (prediction - target)^2 over its rows with a linear model
without bias, is exactly f_m; a mini-batch gives an unbiased noisy gradient of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from fedscale_local.data.dataset import Dataset
from fedscale_local.errors import DataError
from fedscale_local.randomness import numpy_generator

NUM_CLIENTS, DIMENSION, CONDITION, HETEROGENEITY = 10, 20, 100.0, 1.0


class Quadratics(NamedTuple):
    """The objectives of all clients: A (clients, d, d), c (clients, d); the minimiser (d,) of their mean."""

    A: np.ndarray
    c: np.ndarray
    minimiser: np.ndarray


class _Spectrum(NamedTuple):
    basis: np.ndarray  # (d, d), columns are the eigenvectors, shared by all clients
    eigenvalues: np.ndarray  # (clients, d)
    centres: np.ndarray  # (clients, d)


def quadratics(
    seed: int,
    num_clients: int,
    dimension: int = DIMENSION,
    condition: float = CONDITION,
    heterogeneity: float = HETEROGENEITY,
    rotation: float = 0.0,
) -> Quadratics:
    """The objectives that data=quadratic with these options has.

    All eigenvalues lie in [1/condition, 1]. ``heterogeneity`` 0 gives all clients one objective; it is the
    deviation of the c_m around a common centre and, cut off at 1, the share in which each client's spectrum
    (in the logarithm) is its own permutation. ``rotation`` 0 aligns the eigenvectors with the coordinates,
    where a diagonal preconditioner can be perfect; large values give a uniformly random basis.

    >>> problem = quadratics(seed=0, num_clients=3, dimension=2)
    >>> bool(np.allclose((problem.A @ (problem.minimiser - problem.c)[..., None]).sum(0), 0))
    True
    """
    basis, eigenvalues, c = _spectrum(seed, num_clients, dimension, condition, heterogeneity, rotation)
    A = np.einsum("ij,mj,kj->mik", basis, eigenvalues, basis)
    return Quadratics(A, c, np.linalg.solve(A.sum(0), np.einsum("mij,mj->i", A, c)))


def quadratic(data: Any, seed: int, num_clients: int | None = None) -> Dataset:
    """Rows of all clients: x (clients * examples, dimension) float64, y (clients * examples,) float64.

    data.examples rows a client (default: dimension), row i along eigenvector i mod dimension. No test rows.
    """
    dimension = _option(data, "dimension", DIMENSION)
    examples = _option(data, "examples", dimension)
    if examples < dimension:
        raise DataError(
            f"data.examples={examples}",
            f"{dimension} dimensions need at least as many rows a client",
            "raise data.examples or lower data.dimension",
        )
    clients = NUM_CLIENTS if num_clients is None else num_clients
    basis, eigenvalues, c = _spectrum(
        seed,
        clients,
        dimension,
        _option(data, "condition", CONDITION),
        _option(data, "heterogeneity", HETEROGENEITY),
        _option(data, "rotation", 0.0),
    )
    direction = np.arange(examples) % dimension
    times = np.bincount(direction, minlength=dimension)
    scale = np.sqrt(examples * eigenvalues / times)[:, direction]  # (clients, examples)
    x = scale[..., None] * basis.T[direction]
    y = np.einsum("mid,md->mi", x, c)
    rows, targets = torch.from_numpy(x.reshape(-1, dimension)), torch.from_numpy(y.reshape(-1))
    return Dataset(
        data.name, "regression", rows, targets, rows[:0], targets[:0], 1,
        client=np.repeat(np.arange(clients), examples), test_client=np.empty(0, np.int64),
    )  # fmt: skip


def _spectrum(
    seed: int, clients: int, dimension: int, condition: float, heterogeneity: float, rotation: float
) -> _Spectrum:
    shared = numpy_generator(seed, "data")
    centre = shared.standard_normal(dimension)
    basis, upper = np.linalg.qr(np.eye(dimension) + rotation * shared.standard_normal((dimension, dimension)))
    basis = basis * np.sign(np.diag(upper))
    exponent = np.linspace(0, -1, dimension)
    own = min(heterogeneity, 1.0)
    eigenvalues, centres = np.empty((clients, dimension)), np.empty((clients, dimension))
    for m in range(clients):  # its own stream: client m stays the same when there are more
        rng = numpy_generator(seed, "data", client=m + 1)
        centres[m] = centre + heterogeneity * rng.standard_normal(dimension)
        eigenvalues[m] = condition ** ((1 - own) * exponent + own * rng.permutation(exponent))
    return _Spectrum(basis, eigenvalues, centres)


def _option(data: Any, name: str, default: Any) -> Any:
    value = getattr(data, name, None)
    return default if value is None else value
