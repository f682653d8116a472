"""The two conformance claims about whole runs: one D-hat a round (4), and the traffic of each method (10)."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fedscale_local import compose, lifecycle
from fedscale_local.scaling import Scaling

SMALL = (
    "engine.workers=1",
    "data=quadratic",
    "data.dimension=7",
    "data.examples=8",
    "num_clients=4",
    "client.local_steps=3",
    "client.batch_size=2",
    "dtype=float64",
    "engine.mode=looped",
    "num_rounds=12",
)
FEDAVG = ("strategy=fedavg",)
DISPLACEMENT = ("scaling=adam", "scaling.statistic=displacement")
MIXED = ("scaling=adam", "scaling.scope=local", "strategy.mixing=preconditioned")
MOMENTUM = ("client.momentum=0.5",)
D_BYTES = 7 * 8


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs, and nobody looks at it."""
    monkeypatch.setattr("fedscale_local.reports.write", lambda run_dir: None)


def records(run_dir: Path, *overrides: str) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl of a small run; the probe's bytes taken off round 1 and kept beside."""
    lifecycle.run(compose.config([*SMALL, *overrides, f"run_dir={run_dir}"]))
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    for way in ("up", "down"):
        lines[0][f"bytes_{way}"] -= lines[0].get(f"probe_bytes_{way}", 0)
    return lines


def per_client(lines: list[dict[str, Any]], way: str) -> float:
    """Vectors of length d per client and round, in this direction."""
    return sum(line[f"bytes_{way}"] for line in lines) / sum(len(line["clients"]) * D_BYTES for line in lines)


@pytest.mark.parametrize("mode", ["looped", "stacked"])
def test_4_d_hat_changes_between_rounds_and_never_within_one(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Tensor] = []
    held: list[Tensor] = []
    step_ = Scaling.step_

    def noting(self: Scaling, v: Tensor, b: Tensor, d_hat: Tensor | None, step_size: float) -> Tensor:
        assert d_hat is not None
        used.append(d_hat.clone())
        held.append(d_hat)
        return step_(self, v, b, d_hat, step_size)

    monkeypatch.setattr(Scaling, "step_", noting)
    lines = records(tmp_path / "run", f"engine.mode={mode}", "scaling=adam", "num_rounds=5")
    in_round = len(used) // len(lines)
    assert in_round == (2 if mode == "stacked" else 4) * 3  # four clients are two stacks
    rounds = [used[p * in_round : (p + 1) * in_round] for p in range(5)]
    for round in rounds:
        assert all(bool((d_hat == round[0]).all()) for d_hat in round)
    assert all(not bool((a[0] == b[0]).all()) for a, b in pairwise(rounds))
    # And it is one tensor: every client of a round, at every step, reads the same memory.
    for p in range(5):
        assert len({d_hat.data_ptr() for d_hat in held[p * in_round : (p + 1) * in_round]}) == 1


LEDGER = {
    "fedavg": (FEDAVG, 1, 1),
    "scaled, local scope": (("scaling=adam", "scaling.scope=local"), 1, 1),
    "scaled, identity": (("scaling=identity",), 1, 1),
    "scaled global, displacement": (DISPLACEMENT, 1, 1),
    "scaled global": (("scaling=adam",), 2, 2),
    "scaled global, Hutchinson": (("scaling=oasis",), 2, 2),
    "scaled global, refreshed every 6th round": (("scaling=adam", "scaling.refresh_every=6"), 7 / 6, 7 / 6),
    "preconditioned mixing": (MIXED, 2, 1),
    "fedavg, kept momentum": ((*FEDAVG, *MOMENTUM, "client.momentum_buffer=kept"), 1, 1),
    # Averaged momentum is sent from the second round on.
    "fedavg, averaged momentum": ((*FEDAVG, *MOMENTUM, "client.momentum_buffer=averaged"), 2, 1 + 11 / 12),
    "scaled global, averaged momentum": ((*MOMENTUM, "client.momentum_buffer=averaged"), 3, 2 + 11 / 12),
    "preconditioned mixing, averaged momentum": (
        (*MIXED, *MOMENTUM, "client.momentum_buffer=averaged"),
        3,
        1 + 11 / 12,
    ),
}


@pytest.mark.parametrize("method", LEDGER)
def test_10_the_byte_ledger_is_the_traffic_list(method: str, tmp_path: Path) -> None:
    overrides, up, down = LEDGER[method]
    lines = records(tmp_path / "run", *overrides)
    assert len(lines) == 12
    assert per_client(lines, "up") == pytest.approx(up, rel=1e-12)
    assert per_client(lines, "down") == pytest.approx(down, rel=1e-12)


def test_10_the_probe_costs_one_model_down_and_one_statistic_up(tmp_path: Path) -> None:
    first = records(tmp_path / "run", "scaling=adam", "num_rounds=1")[0]
    assert first["probe_bytes_down"] == first["probe_bytes_up"] == 4 * D_BYTES


def test_10_a_seldom_d_is_sent_once_to_each_client_that_has_not_got_it(tmp_path: Path) -> None:
    lines = records(
        tmp_path / "run", "scaling=adam", "scaling.refresh_every=5", "clients_per_round=2", "num_rounds=20"
    )
    has: dict[int, int] = {}
    for line in lines:
        clock = 1 + (line["round"] - 1) // 5  # the probe was the first refresh
        lacking = [client for client in line["clients"] if has.get(client) != clock]
        assert line["bytes_down"] == (2 + len(lacking)) * D_BYTES
        assert line["bytes_up"] == (2 + 2 * (line["round"] % 5 == 0)) * D_BYTES
        has |= dict.fromkeys(line["clients"], clock)


def test_10_with_displacement_d_goes_only_to_clients_that_missed_a_round(tmp_path: Path) -> None:
    lines = records(tmp_path / "run", *DISPLACEMENT, "clients_per_round=2", "num_rounds=20")
    for before, line in pairwise(lines):
        newcomers = set(line["clients"]) - set(before["clients"])
        assert line["bytes_up"] == 2 * D_BYTES
        assert line["bytes_down"] == (2 + len(newcomers)) * D_BYTES
    assert lines[0]["bytes_down"] == 2 * D_BYTES
