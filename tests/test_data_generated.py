"""Generated sets: the quadratics are exactly those that are promised, LEAF's Synthetic follows its recipe."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedscale_local.data import load
from fedscale_local.data.dataset import Dataset
from fedscale_local.data.partition import make
from fedscale_local.data.quadratic import quadratics
from fedscale_local.errors import DataError

NATURAL = SimpleNamespace(scheme="natural")


def quadratic_config(**options: object) -> SimpleNamespace:
    defaults = {"dimension": 6, "examples": 6, "condition": 50.0, "heterogeneity": 0.7}
    return SimpleNamespace(name="quadratic", **(defaults | options))


def shard(dataset: Dataset, client: int) -> tuple[np.ndarray, np.ndarray]:
    rows = make(NATURAL, dataset, None, 0)[client]
    return dataset.x.numpy()[rows], dataset.y.numpy()[rows]


@pytest.mark.parametrize("examples", [6, 7, 30])
@pytest.mark.parametrize("rotation", [0.0, 3.0])
def test_full_batch_objective_of_a_client_is_the_promised_quadratic(examples: int, rotation: float) -> None:
    config = quadratic_config(examples=examples, rotation=rotation)
    dataset = load(config, 3, num_clients=4)
    A, c, _ = quadratics(3, 4, 6, 50.0, 0.7, rotation)
    assert dataset.kind == "regression" and dataset.x.dtype == torch.float64 and dataset.num_classes == 1
    for m in range(4):
        x, y = shard(dataset, m)
        assert len(x) == examples
        for v in np.random.default_rng(m).standard_normal((5, 6)):
            half_mean_square = 0.5 * np.mean((x @ v - y) ** 2)
            assert half_mean_square == pytest.approx(0.5 * (v - c[m]) @ A[m] @ (v - c[m]), rel=1e-12)


def test_minimiser_is_where_the_mean_gradient_vanishes_and_solves_the_pooled_least_squares() -> None:
    dataset = load(quadratic_config(), 1, num_clients=5)
    A, c, minimiser = quadratics(1, 5, 6, 50.0, 0.7)
    assert np.abs(np.einsum("mij,mj->i", A, minimiser - c)).max() < 1e-13
    solved = np.linalg.lstsq(dataset.x.numpy(), dataset.y.numpy(), rcond=None)[0]
    assert solved == pytest.approx(minimiser, rel=1e-10)


@pytest.mark.parametrize("heterogeneity", [0.0, 0.4, 2.0])
def test_spectrum_and_heterogeneity(heterogeneity: float) -> None:
    A, c, minimiser = quadratics(0, 8, 6, 50.0, heterogeneity, rotation=1.0)
    eigenvalues = np.linalg.eigvalsh(A)
    assert eigenvalues.max() <= 1 + 1e-12 and eigenvalues.min() >= 1 / 50 - 1e-12
    if heterogeneity == 0:
        assert np.ptp(A, axis=0).max() == 0 and np.ptp(c, axis=0).max() == 0
        assert minimiser == pytest.approx(c[0])
        assert eigenvalues[0].max() / eigenvalues[0].min() == pytest.approx(50)
    else:
        assert np.ptp(A, axis=0).max() > 0.1 * min(heterogeneity, 1)
        assert c.std(0).mean() == pytest.approx(heterogeneity, rel=0.4)


def test_unrotated_quadratics_are_diagonal_and_rotated_ones_are_not() -> None:
    for rotation, diagonal in ((0.0, True), (1.0, False)):
        A = quadratics(0, 2, 4, rotation=rotation).A
        off = A - np.einsum("mii->mi", A)[:, None] * np.eye(4)
        assert bool(np.abs(off).max() == 0) is diagonal


def test_a_client_stays_the_same_among_more_clients_and_changes_with_the_seed() -> None:
    few, many, other = (quadratics(seed, m, 5) for seed, m in ((0, 3), (0, 9), (1, 3)))
    assert np.array_equal(few.A, many.A[:3]) and np.array_equal(few.c, many.c[:3])
    assert not np.array_equal(few.c, other.c)
    assert load(quadratic_config(), 0).num_examples == 10 * 6


def test_one_dimension_and_too_few_rows() -> None:
    A, c, minimiser = quadratics(0, 2, 1)
    assert A.shape == (2, 1, 1) and minimiser == pytest.approx(c.mean(0))
    with pytest.raises(DataError, match=r"data.examples=5: 6 dimensions need at least as many rows"):
        load(quadratic_config(examples=5), 0, 2)


def synthetic_config(a: float = 1.0, b: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(name="synthetic", a=a, b=b, dimension=60, num_classes=10)


def client_means(dataset: Dataset) -> np.ndarray:
    assert dataset.client is not None
    x = dataset.x.numpy()
    return np.stack([x[dataset.client == k].mean(0) for k in range(dataset.client.max() + 1)])


def test_synthetic_sizes_are_heavy_tailed_and_split_nine_to_one() -> None:
    dataset = load(synthetic_config(), 0, num_clients=400)
    assert dataset.client is not None and dataset.test_client is not None
    train, test = np.bincount(dataset.client), np.bincount(dataset.test_client)
    total = train + test
    assert len(train) == len(test) == 400 and total.min() >= 50
    assert np.array_equal(train, (0.9 * total).astype(int))
    logs = np.log(total - 50 + 0.5)
    assert logs.mean() == pytest.approx(4, abs=0.3) and logs.std() == pytest.approx(2, abs=0.25)
    assert np.sort(total)[-40:].sum() > 0.5 * total.sum(), "a tenth of the clients holds half of the data"
    assert load(synthetic_config(), 0).client.max() == 29  # type: ignore[union-attr]


def test_synthetic_inputs_have_the_recipe_s_variances() -> None:
    dataset = load(synthetic_config(), 0, num_clients=60)
    assert dataset.client is not None
    x = dataset.x.numpy()
    largest = int(np.bincount(dataset.client).argmax())
    variance = x[dataset.client == largest].var(0)
    assert variance == pytest.approx(np.arange(1, 61) ** -1.2, rel=0.2)


def test_synthetic_b_spreads_the_clients_inputs_and_a_changes_nothing() -> None:
    """v_k has entries N(B_k, 1): over coordinates its mean is B_k with deviation 1/sqrt(60)."""
    centres = [client_means(load(synthetic_config(b=b), 0, 200)).mean(1) for b in (0.0, 1.0)]
    assert centres[0].std() == pytest.approx(1 / np.sqrt(60), rel=0.2)
    assert centres[1].std() == pytest.approx(np.sqrt(1 + 1 / 60), rel=0.2)
    # u_k is added to every logit of a client: the recipe's a cannot matter
    plain, spread = load(synthetic_config(a=0.0), 0, 20), load(synthetic_config(a=1.0), 0, 20)
    assert torch.equal(plain.x, spread.x) and torch.equal(plain.y, spread.y)
    assert not torch.equal(plain.x[:50], load(synthetic_config(a=0.0), 1, 20).x[:50])


def test_synthetic_labels_are_linear_within_a_client() -> None:
    """A client's labels come from one linear map, so logistic regression on it alone fits them."""
    dataset = load(synthetic_config(), 0, 30)
    largest = int(np.bincount(dataset.client).argmax())  # type: ignore[arg-type]
    rows = torch.from_numpy(np.flatnonzero(dataset.client == largest))
    x, y = dataset.x[rows].double(), dataset.y[rows]
    layer = torch.nn.Linear(60, 10).double()
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (layer(x).argmax(1) == y).float().mean() > 0.99
