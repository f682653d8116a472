"""Comparisons of real runs: a method that is better on quadratics is found, and two copies of one are the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.serverapp.strategy import FedAvg
from whole_runs import run

from fedscale_local.reports import comparison, histories

PROBLEM = {
    "num_rounds": 5, "num_clients": 3, "client.local_steps": 4, "client.batch_size": "full",
    "data.heterogeneity": 0.1, "data.examples": 20,
}  # fmt: skip


class One(FedAvg):
    """Flower's FedAvg."""


class Other(FedAvg):
    """The same under another name."""


def compared(
    place: Path, methods: dict[str, tuple[str, ...]], seeds: Iterable[int], **settings: float
) -> comparison.Comparison:
    for name, overrides in methods.items():
        for seed in seeds:
            wanted = PROBLEM | settings | {"seed": seed}
            overridden = ("data=quadratic", "engine.mode=looped", "engine.workers=1", *overrides)
            run(place / f"{name}-{seed}", *overridden, settings=wanted)
    runs, left_out = histories.gather([place])
    return comparison.compare(histories.methods(runs), None, None, left_out)


def test_the_scaled_method_is_better_where_the_hessian_is_ill_conditioned(tmp_path: Path) -> None:
    """Eigenvalues from 1/100 to 1, and D is the Hessian's diagonal: steps of one length leave the flat directions."""
    methods = {
        "plain": ("strategy=fedavg", "client.step_size=0.5"),
        "scaled": ("scaling=oasis", "scaling.alpha=0.01", "client.step_size=0.2"),
    }
    (pair,) = compared(tmp_path, methods, seeds=range(5)).pairs
    assert pair.is_decided and pair.words.startswith("strategy=savic is better than strategy=fedavg by ")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, 10))
def test_two_copies_of_one_method_are_the_same_under_each_of_ten_seeds(first: int, tmp_path: Path) -> None:
    """They share clients, batches and start, so they end with the same numbers: no difference in 20 trials of 20."""
    methods = {name: (f"strategy._target_=test_compare_runs.{name}",) for name in ("One", "Other")}
    found = compared(tmp_path, methods, seeds=range(first, first + 10), num_rounds=1)
    (pair,) = found.pairs
    assert {pair.first.name, pair.second.name} == {"strategy=One", "strategy=Other"}
    assert (
        pair.words
        == f"{pair.first.name} and {pair.second.name} are the same after 1 round in each of 10 seeds."
    )
    assert not pair.is_decided and [row.rank for row in found.rows] == [1.5, 1.5]
    ends = {run.values["test_loss"][-1] for run in pair.first.runs.values()}
    assert len(ends) == 10  # seeds differ, so this is no comparison of ten equal runs
