"""partition=dirichlet is flwr-datasets' DirichletPartitioner, draw for draw, without its 390 MB."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from fedscale_local.data import load
from fedscale_local.data.partition import dirichlet
from fedscale_local.errors import DataError

datasets = pytest.importorskip("datasets", reason="needs flwr-datasets (the dev extra)")
partitioners = pytest.importorskip("flwr_datasets.partitioner", reason="needs flwr-datasets (the dev extra)")


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    dataset = load(SimpleNamespace(name="fashion_mnist_12k", path=None, download=False), 0)
    return dataset.y.numpy()


def theirs(
    labels: np.ndarray, num_clients: int, alpha: float, min_examples: int, seed: int
) -> list[list[int]]:
    partitioner = partitioners.DirichletPartitioner(
        num_partitions=num_clients,
        partition_by="label",
        alpha=alpha,
        min_partition_size=min_examples,
        self_balancing=False,
        seed=seed,
    )
    columns = {"label": labels.tolist(), "row": list(range(len(labels)))}
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    return [sorted(partitioner.load_partition(client)["row"]) for client in range(num_clients)]


@pytest.mark.parametrize(
    ("num_clients", "alpha", "min_examples", "seed"),
    [
        (10, 0.5, 10, 42),
        (10, 0.1, 0, 1),
        (100, 0.3, 0, 2),
        (40, 0.3, 10, 3),
        (1, 1.0, 0, 4),
        (25, 100.0, 10, 5),
    ],
)
def test_same_draws(labels: np.ndarray, num_clients: int, alpha: float, min_examples: int, seed: int) -> None:
    ours = dirichlet(labels, num_clients, alpha, min_examples, np.random.default_rng(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = theirs(labels, num_clients, alpha, min_examples, seed)
    assert [shard.tolist() for shard in ours] == reference


def test_same_draws_after_several_tries(labels: np.ndarray) -> None:
    """A case in which the first draws leave a client with too little, so that both draw anew."""
    with warnings.catch_warnings(record=True) as retried:
        warnings.simplefilter("always")
        reference = theirs(labels, 20, 0.2, 120, seed=1)
    assert len(retried) >= 1, "the case must need a second try"
    ours = dirichlet(labels, 20, 0.2, 120, np.random.default_rng(1))
    assert [shard.tolist() for shard in ours] == reference


def test_where_theirs_gives_up_ours_says_what_to_do(labels: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="max number of attempts"):
            theirs(labels, 200, 0.1, 10, seed=0)
    with pytest.raises(DataError, match=r"lower partition.min_examples or num_clients, or raise"):
        dirichlet(labels, 200, 0.1, 10, np.random.default_rng(0))
