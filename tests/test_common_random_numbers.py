"""Common random numbers: under one seed every strategy has the same partition, clients, batches and initial model.

By construction, as each is a function of the seed and of what all share; here by what the run directories say, and by
the batches that clients really drew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from gauntlet import STRATEGIES
from torch import Tensor
from whole_runs import run

from fedscale_local.experiment import Experiment
from fedscale_local.reports import comparison, histories

NAMES = sorted(STRATEGIES)
PROBLEM = (
    "data=synthetic",
    "data.dimension=3",
    "data.num_classes=4",
    "partition=dirichlet",
    "partition.min_examples=1",
    "model=mlp",
    "model.hidden=[4]",
    "num_clients=8",
    "clients_per_round=4",
    "num_rounds=3",
    "client.local_steps=2",
    "client.batch_size=3",
    "engine.workers=1",
)
Drawn = dict[tuple[int, int], list[list[int]]]
"""(round, client) -> the examples of each batch."""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drawn]:
    """What clients draw from now on."""
    found: Drawn = {}
    whole = Experiment.batches

    def batches(self: Experiment, round: int, client: int) -> list[Tensor]:
        parts = whole(self, round, client)
        found[round, client] = [part.tolist() for part in parts]
        return parts

    monkeypatch.setattr(Experiment, "batches", batches)
    yield found


def told(run_dir: Path, drawn: Drawn) -> dict[str, Any]:
    """What a run had of the seed: by its directory, and the batches of the clients that took part."""
    manifest = json.loads((run_dir / "manifest.json").read_text())
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    took_part = [(line["round"], client) for line in lines for client in line["clients"]]
    return {
        **manifest["common_random_numbers"],
        "counts": json.loads((run_dir / "partition.json").read_text()),
        "clients": [line["clients"] for line in lines],
        "drawn": {pair: drawn[pair] for pair in took_part},
    }


def one(name: str, seed: int, folder: Path, drawn: Drawn, *more: str) -> dict[str, Any]:
    drawn.clear()
    settings: dict[str, Any] = {"seed": seed, "engine.mode": "looped"}
    settings |= STRATEGIES[name].settings
    return told(
        run(folder / f"{name}-{seed}", f"strategy={name}", *PROBLEM, *more, settings=settings).run_dir, drawn
    )


@pytest.mark.parametrize(
    "names",
    [("savic", "scaffold", "mime", "fedyogi"), pytest.param(NAMES, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_every_strategy_has_the_same_of_a_seed_and_another_seed_has_others(
    names: Sequence[str], tmp_path: Path, drawn: Drawn
) -> None:
    first = {seed: one("fedavg", seed, tmp_path, drawn) for seed in (0, 1)}
    assert set(first[0]) == {"partition", "initial_model", "batches", "counts", "clients", "drawn"}
    assert all(len(parts) == 2 and len(parts[0]) <= 3 for parts in first[0]["drawn"].values())
    for key in first[0]:
        assert first[0][key] != first[1][key], key
    for name in names:
        if name != "fedavg":
            assert one(name, 0, tmp_path, drawn) == first[0], name


@pytest.mark.parametrize(("scaling", "scope"), [("oasis", "global"), ("sophia", "local")])
def test_so_has_every_statistic_and_scope(scaling: str, scope: str, tmp_path: Path, drawn: Drawn) -> None:
    plain = one("fedavg", 0, tmp_path / "plain", drawn)
    assert one("savic", 0, tmp_path, drawn, f"scaling={scaling}", f"scaling.scope={scope}") == plain


def test_the_manifest_tells_of_the_batches_that_are_drawn(tmp_path: Path, drawn: Drawn) -> None:
    """Another batch size, momentum or number of steps: only the first has other batches."""
    plain = one("fedavg", 0, tmp_path / "plain", drawn)
    for override, is_same in (
        ("client.batch_size=2", False),
        ("client.momentum=0.5", True),
        ("client.local_steps=1", True),
    ):
        other = one("fedavg", 0, tmp_path / override, drawn, override)
        assert (other["batches"] == plain["batches"]) == is_same, override
        assert other["initial_model"] == plain["initial_model"] and other["partition"] == plain["partition"]


def test_a_comparison_says_so_or_what_differs(tmp_path: Path) -> None:
    for name in ("fedavg", "savic"):
        for seed in (0, 1):
            run(tmp_path / f"{name}-{seed}", *PROBLEM, f"strategy={name}", settings={"seed": seed})
    whole = (tmp_path / "savic-1" / "manifest.json").read_text()
    whole_sums = json.loads(whole)["common_random_numbers"]

    def checks() -> list[str]:
        found, left_out = histories.gather([tmp_path])
        return comparison.compare(histories.methods(found), None, None, left_out).checks

    (said,) = checks()
    assert (
        said.startswith("Checked in 2 pairs of runs")
        and "the model before round 1 and the first mini-batches" in said
    )
    for key, words in comparison.SHARED.items():
        changed = json.loads(whole) | {"common_random_numbers": whole_sums | {key: "0"}}
        (tmp_path / "savic-1" / "manifest.json").write_text(json.dumps(changed))
        (said,) = checks()
        assert said.startswith("Seed 1, ") and words in said
