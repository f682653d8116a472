"""Partition schemes: disjoint and complete whatever the labels, and the statistics that they promise."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedscale_local.data import load
from fedscale_local.data.dataset import Dataset
from fedscale_local.data.partition import (
    Partition,
    apportion,
    by_size,
    counts,
    dirichlet,
    from_owners,
    iid,
    main_class,
    main_classes,
    make,
    natural,
    pathological,
)
from fedscale_local.errors import DataError

OPTIONS = {"alpha": 0.3, "min_examples": 0, "share": 0.6, "classes_per_client": 2, "sigma": 1.0}


def config(scheme: str, **options: float) -> SimpleNamespace:
    return SimpleNamespace(scheme=scheme, **(OPTIONS | options))


@pytest.fixture(scope="module")
def clothes() -> Dataset:
    return load(SimpleNamespace(name="fashion_mnist_12k", path=None, download=False), 0)


@pytest.fixture(scope="module")
def labels(clothes: Dataset) -> np.ndarray:
    assert clothes.labels is not None
    return clothes.labels


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_complete_and_disjoint(partition: Partition, num_examples: int) -> None:
    assert np.array_equal(np.sort(partition.order), np.arange(num_examples))
    assert partition.offsets[0] == 0 and partition.offsets[-1] == num_examples
    assert (partition.sizes >= 0).all()
    assert all((np.diff(shard) > 0).all() for shard in partition)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Labels of unequal classes (with gaps in the numbering), a number of clients, a seed."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    seed = draw(st.integers(0, 2**32))
    return rng(seed).permutation(labels), draw(st.integers(1, len(labels))), seed


@settings(max_examples=150, deadline=None)
@given(problems(), st.floats(0.05, 10), st.floats(0, 1), st.floats(0, 3), st.integers(1, 6))
def test_every_scheme_is_disjoint_and_complete(
    problem: tuple[np.ndarray, int, int], alpha: float, share: float, sigma: float, k: int
) -> None:
    labels, num_clients, seed = problem
    drawn = {
        "iid": lambda: iid(len(labels), num_clients, rng(seed)),
        "by_size": lambda: by_size(len(labels), num_clients, sigma, rng(seed)),
        "dirichlet": lambda: dirichlet(labels, num_clients, alpha, 0, rng(seed)),
        "main_class": lambda: main_class(labels, num_clients, share, rng(seed)),
        "pathological": lambda: pathological(labels, num_clients, k, rng(seed)),
    }
    for scheme, draw in drawn.items():
        try:
            partition = draw()
        except DataError as refusal:  # only these two may find that it cannot be
            remedy = {"main_class": "partition.share", "pathological": "partition.classes_per_client"}
            assert str(refusal).startswith(remedy[scheme])
            continue
        assert len(partition) == num_clients
        assert_complete_and_disjoint(partition, len(labels))
        table = counts(partition, labels, 6)
        assert np.array_equal(table.sum(1), partition.sizes)
        assert np.array_equal(table.sum(0), np.bincount(labels, minlength=6))
        if scheme == "pathological":
            assert ((table > 0).sum(1) <= k).all()
        if scheme in ("iid", "by_size"):
            assert partition.sizes.min() >= 1


@settings(max_examples=100, deadline=None)
@given(problems(), st.floats(0.01, 1))
def test_main_class_has_its_share_and_no_more_than_must_be(
    problem: tuple[np.ndarray, int, int], share: float
) -> None:
    labels, num_clients, seed = problem
    totals = np.bincount(labels)
    present = np.flatnonzero(totals)
    try:
        partition = main_class(labels, num_clients, share, rng(seed))
    except DataError as refusal:
        assert num_clients < len(present), refusal
        return
    main = present[main_classes(totals[present], num_clients)]
    held = counts(partition, labels, len(totals))[np.arange(num_clients), main]
    wanted = np.rint(share * partition.sizes)
    assert (held >= wanted).all()
    # what is left of class c, and the room that its own clients have left, must not exceed all that is left
    for c in present:
        own = main == c
        left, room = totals[c] - wanted[own].sum(), (partition.sizes - wanted)[own].sum()
        excess = max(0, left + room - (len(labels) - wanted.sum()))
        assert (held - wanted)[own].sum() == excess


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1000), st.lists(st.floats(0.001, 1e3), min_size=1, max_size=20))
def test_apportion_sums_up_and_is_within_one(total: int, weights: list[float]) -> None:
    parts = apportion(total, np.array(weights))
    exact = total * np.array(weights) / sum(weights)
    assert parts.sum() == total and (np.abs(parts - exact) < 1 + 1e-9).all()


def test_iid_mixes_the_classes(labels: np.ndarray) -> None:
    partition = iid(len(labels), 200, rng())
    assert partition.sizes.tolist() == [60] * 200
    table = counts(partition, labels, 10)
    # each cell is hypergeometric: mean 6, variance 6 * 0.9 * (1 - 60/12000)
    assert table.var() == pytest.approx(6 * 0.9 * (1 - 60 / 12000), rel=0.1)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 10.0])
def test_dirichlet_shares_have_the_variance_of_the_distribution(labels: np.ndarray, alpha: float) -> None:
    """Var of one share of a symmetric Dirichlet over M clients: (M - 1) / (M^2 (alpha M + 1))."""
    clients = 50
    shares = np.concatenate(
        [counts(dirichlet(labels, clients, alpha, 0, rng(seed)), labels, 10) / 1200 for seed in range(40)]
    )
    assert shares.mean() == pytest.approx(1 / clients)
    assert shares.var() == pytest.approx((clients - 1) / (clients**2 * (alpha * clients + 1)), rel=0.1)


def test_dirichlet_min_examples_holds_or_ends_in_words(labels: np.ndarray) -> None:
    assert dirichlet(labels, 100, 1.0, 10, rng()).sizes.min() >= 10
    with pytest.raises(DataError) as caught:
        dirichlet(labels, 1000, 0.1, 10, rng())
    message = str(caught.value)
    assert message.startswith("partition.min_examples=10: ") and "alpha=0.1" in message
    assert "lower partition.min_examples" in message


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("clients", [10, 200])
def test_main_class_share_on_real_labels(labels: np.ndarray, share: float, clients: int) -> None:
    partition = main_class(labels, clients, share, rng())
    assert (partition.sizes == 12000 // clients).all()
    shares = counts(partition, labels, 10) / partition.sizes[:, None]
    main = np.arange(clients) % 10
    assert shares[np.arange(clients), main] == pytest.approx(np.full(clients, share), abs=1e-9)
    # what is not of the main class is spread evenly over the nine others
    others = np.array([np.delete(row, c) for row, c in zip(shares, main, strict=True)])
    assert others.mean(0) == pytest.approx(np.full(9, (1 - share) / 9), abs=0.01)
    noise = np.sqrt((1 - share) / 9 / partition.sizes[0])
    assert others.std() < 1.3 * noise + 1e-9


def test_main_class_share_zero_is_iid(labels: np.ndarray) -> None:
    without, plain = main_class(labels, 50, 0.0, rng(5)), iid(len(labels), 50, rng(5))
    assert np.array_equal(without.order, plain.order)


def test_main_class_with_fewer_clients_than_classes(labels: np.ndarray) -> None:
    partition = main_class(labels, 4, 0.4, rng())
    assert (counts(partition, labels, 10)[np.arange(4), np.arange(4)] == 1200).all()
    with pytest.raises(DataError, match=r"partition.share=0.5: 4 equal clients need more examples of"):
        main_class(labels, 4, 0.5, rng())


def test_main_class_of_unequal_classes() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    partition = main_class(labels, 10, 0.5, rng())
    assert np.bincount(main_classes(np.array([600, 300, 100]), 10)).tolist() == [6, 3, 1]
    assert (partition.sizes == 100).all()
    # 400 examples of the others cannot fill half of the six clients of class 0 and give half to the rest
    held = counts(partition, labels, 3)[np.arange(10), main_classes(np.array([600, 300, 100]), 10)]
    assert (held >= 50).all()


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_pathological_holds_exactly_k_classes_evenly(labels: np.ndarray, k: int) -> None:
    partition = pathological(labels, 200, k, rng())
    table = counts(partition, labels, 10)
    assert ((table > 0).sum(1) == k).all()
    holders = (table > 0).sum(0)
    assert (holders == 200 * k // 10).all()
    for c in range(10):
        sizes = table[:, c][table[:, c] > 0]
        assert np.ptp(sizes) <= 1
    if k == 2:  # pairs vary: many of the 45 occur
        assert len({tuple(np.flatnonzero(row)) for row in table}) > 30


def test_pathological_that_cannot_be(labels: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"classes_per_client=11: the training set has 10 classes"):
        pathological(labels, 20, 11, rng())
    with pytest.raises(DataError, match=r"3 clients would leave some of 10 classes to nobody"):
        pathological(labels, 3, 3, rng())


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_by_size_is_log_normal_and_mixed(labels: np.ndarray, sigma: float) -> None:
    partition = by_size(len(labels), 200, sigma, rng())
    assert partition.sizes.min() >= 1
    if sigma == 0:
        assert np.ptp(partition.sizes) <= 1
    else:
        assert np.log(partition.sizes).std() == pytest.approx(sigma, rel=0.15)
        assert not (np.diff(partition.sizes) >= 0).all()
    large = partition.sizes >= 60
    shares = counts(partition, labels, 10)[large] / partition.sizes[large, None]
    assert np.abs(shares - 0.1).max() < 0.2


def test_natural_takes_all_owners_or_the_first() -> None:
    owner = np.array([2, 0, 1, 2, 0, 4])
    everyone = natural(owner)
    assert [shard.tolist() for shard in everyone] == [[1, 4], [2], [0, 3], [], [5]]
    assert [shard.tolist() for shard in natural(owner, 2)] == [[1, 4], [2]]
    with pytest.raises(DataError, match=r"num_clients=6: the data set has 5 natural clients"):
        natural(owner, 6)


def test_make_draws_from_the_seed_alone(clothes: Dataset) -> None:
    for scheme in ("iid", "dirichlet", "main_class", "pathological", "by_size"):
        first, again, other = (make(config(scheme), clothes, 100, seed) for seed in (1, 1, 2))
        assert np.array_equal(first.order, again.order) and np.array_equal(first.offsets, again.offsets)
        assert not np.array_equal(first.order, other.order)
        assert_complete_and_disjoint(first, 12000)


def test_make_refuses_what_the_data_cannot_give(clothes: Dataset) -> None:
    tokens = Dataset(
        "letters", "tokens", torch.zeros(9, 4, dtype=torch.int64), torch.zeros(9, 4, dtype=torch.int64),
        torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.int64), 5,
        client=np.arange(9) % 3,
    )  # fmt: skip
    assert len(make(config("natural"), tokens, None, 0)) == 3
    assert len(make(config("iid"), tokens, 4, 0)) == 4
    cases = [
        (config("natural"), clothes, None, "partition.scheme=natural: data=fashion_mnist_12k has no natural"),
        (config("iid"), clothes, None, "num_clients=null: partition.scheme=iid needs a number of clients"),
        (config("iid"), clothes, 12001, "num_clients=12001: there are only 12000 training examples"),
        (config("dirichlet"), tokens, 2, "partition.scheme=dirichlet: data=letters has no class labels"),
        (config("by_sise"), clothes, 2, "partition.scheme=by_sise: no such scheme"),
    ]
    for partition, dataset, num_clients, message in cases:
        with pytest.raises(DataError) as caught:
            make(partition, dataset, num_clients, 0)
        assert str(caught.value).startswith(message)


def test_ten_thousand_clients_are_quick() -> None:
    labels = rng().integers(0, 10, 60_000)
    x = torch.zeros(60_000, 1)
    dataset = Dataset("many", "classification", x, torch.from_numpy(labels), x[:0], x[:0, 0].long(), 10)
    for scheme in ("iid", "dirichlet", "main_class", "pathological", "by_size"):
        start = time.process_time()
        partition = make(config(scheme), dataset, 10_000, 0)
        assert time.process_time() - start < 2, scheme
        assert_complete_and_disjoint(partition, 60_000)


def test_client_numbers_beyond_the_end_are_refused() -> None:
    partition = from_owners(np.array([0, 1]), 2)
    for client in (-1, 2):
        with pytest.raises(IndexError):
            partition[client]
