"""The secure sum without messages: masks cancel, rounding is right on the mean, shares of liars are found out."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch

from fedscale_local.secagg import client, graph, primitives, rounding, server

CLIENTS, SIZE = 10, 300


def summed(
    neighbours: int | None,
    bits: int,
    before: Collection[int] = (),
    after: Collection[int] = (),
    share: float = 0.6,
    liar: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The sum that the server finds, and the plain sum of those whose vectors arrived, both modulo 2^bits.

    before: who vanishes after it has shared its secrets; after: after its masked vector arrived. liar: whose shares
    are other bytes.
    """
    rng, shuffle = np.random.default_rng(4), random.Random(3).shuffle
    dtype = rounding.unsigned(bits)
    x = {i: rng.integers(0, 2**bits, SIZE, dtype=dtype) for i in range(CLIENTS)}
    secrets = {i: client.fresh_secrets() for i in x}
    keys = {i: client.public(secrets[i]) for i in x}
    holders = graph.holders(list(x), neighbours, shuffle)
    members = {
        i: server.Member(
            keys[i],
            client.commitment(secrets[i].own),
            holders[i],
            graph.needed(share, len(holders[i])),
        )
        for i in x
    }
    sealed: dict[int, dict[int, bytes]] = {i: {} for i in x}
    own = {}
    for i, member in members.items():
        parts, own[i] = client.shared(secrets[i], i, {j: keys[j] for j in holders[i]}, member.threshold, "a")
        for j, part in parts.items():
            sealed[j][i] = part
    masked = {
        i: client.masked(secrets[i], i, {j: keys[j] for j in holders[i] if j != i}, x[i])
        for i in x
        if i not in before
    }
    shares = {
        i: client.opened(secrets[i], i, keys, sealed[i], "a", masked) | {i: own[i]}
        for i in masked
        if i not in after
    }
    if liar is not None:
        shares[liar] = {owner: bytes(16) for owner in shares[liar]}
    plain = np.sum([x[i] for i in masked], axis=0, dtype=dtype)
    return server.unmasked(members, masked, shares), plain


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("neighbours", "before", "after"),
    [
        (None, (), ()),
        (None, (2, 5), (7,)),
        (None, (0, 1, 9), ()),
        (None, (), (0, 8, 9)),
        (4, (6,), ()),
        (4, (), (0,)),
    ],
)
def test_masks_cancel_with_and_without_dropouts(
    neighbours: int | None, before: tuple[int, ...], after: tuple[int, ...], bits: int
) -> None:
    found, plain = summed(neighbours, bits, before, after)
    np.testing.assert_array_equal(found, plain)


def test_too_few_shares_unmask_nothing() -> None:
    with pytest.raises(ValueError, match=r"client \d stays secret \(5 shares, 6 are needed\)"):
        summed(None, 32, (0, 1), (2, 3, 4))


@pytest.mark.parametrize("before", [(), (9,)], ids=["own mask", "masking key"])
def test_a_holder_that_lies_is_noticed(before: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit each other"):
        summed(None, 32, before, liar=0)


def test_shares_below_the_threshold_fit_any_secret() -> None:
    """Two of three shares of one secret, completed by a third, give another one: they decide nothing."""
    shares = primitives.shares(bytes(range(16)), 3, 5)
    held = {0: shares[0], 4: shares[4]}
    assert primitives.combined(held | {2: shares[2]}, 3) == bytes(range(16))
    others = {primitives.combined(held | {2: bytes([n] * 16)}, 3) for n in range(8)}
    assert len(others) == 8 and bytes(range(16)) not in others


def test_a_pair_of_shares_is_for_its_holder_and_its_sum_alone() -> None:
    secrets = {i: client.fresh_secrets() for i in (1, 2, 3)}
    keys = {i: client.public(own) for i, own in secrets.items()}
    sealed, _ = client.shared(secrets[1], 1, keys, 2, "round 1")
    assert client.opened(secrets[2], 2, keys, {1: sealed[2]}, "round 1", [1])
    for opener, about in ((3, "round 1"), (2, "round 2")):
        with pytest.raises(ValueError, match="not authentic"):
            client.opened(secrets[opener], opener, keys, {1: sealed[2]}, about, [1])


@pytest.mark.parametrize(("count", "neighbours"), [(10, 4), (7, 2), (5, 4), (3, 8), (9, None)])
def test_neighbours_are_as_many_for_each_and_of_each_other(count: int, neighbours: int | None) -> None:
    held = graph.holders(list(range(5, 5 + count)), neighbours, random.Random(1).shuffle)
    sizes = {len(holders) for holders in held.values()}
    assert sizes == {count if neighbours is None else min(neighbours + 1, count)}
    assert all(i in held[j] for i, holders in held.items() for j in holders)
    reached, todo = set(), [5]
    while todo:
        if (here := todo.pop()) not in reached:
            reached.add(here)
            todo += held[here]
    assert len(reached) == count, "one sum of all, not sums of parts"


# ---------------------------------------------------------------- rounding


def rounded(values: Any, largest: float, bits: int, seed: int = 0) -> tuple[torch.Tensor, int]:
    stream = torch.Generator().manual_seed(seed)
    return rounding.quantised(torch.as_tensor(values, dtype=torch.float64), largest, bits, stream)


def test_rounding_is_exact_on_the_grid_and_within_a_step_elsewhere() -> None:
    values = [0.0, 1.0, -1.0, 1.0 / 127, -3.0, 0.0039]
    steps, clipped = rounded(values, 1.0, 8)
    assert steps[:5].tolist() == [0, 127, -127, 1, -127] and clipped == 1
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    steps, clipped = rounded(x, 2.0, 12)
    back = rounding.restored(steps, 2.0, 12, torch.float64)
    assert clipped == 0 and float((back - x).abs().max()) < 2.0 / rounding.most(12)


def test_rounding_is_right_on_the_mean() -> None:
    """0.3 steps are one step three times in ten: within five standard deviations of the mean."""
    n = 40_000
    steps, _ = rounded(np.full(n, 0.3 / 127), 1.0, 8)
    assert abs(float(steps.double().mean()) - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5


def test_what_is_no_number_is_not_summed_up() -> None:
    with pytest.raises(ValueError, match="finite"):
        rounded([0.0, float("nan")], 1.0, 8)


@pytest.mark.parametrize("bits", [32, 64])
def test_residues_give_back_numbers_of_either_sign(bits: int) -> None:
    half = 2 ** (bits - 1)
    numbers = torch.tensor([0, 1, -1, half - 1, -half])
    residues = rounding.to_residues(numbers, bits)
    assert residues.dtype == rounding.unsigned(bits)
    assert torch.equal(rounding.from_residues(residues), numbers)
