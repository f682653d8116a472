"""Runs of several strategies, killed at random instants (the command python -m benchmarks.kills does many more), and
runs of every strategy carried on after each of their rounds (python -m benchmarks.resumes does so on other engines)."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place"),
    [
        *((name, "memory") for name in ("savic", "scaffold", "local_adam_kept", "fedyogi", "feddyn")),
        *((name, "disk") for name in ("scaffold", "local_adam_kept")),
    ],
)
def test_killed_and_carried_on_they_end_with_the_same_bytes(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPO)])
    monkeypatch.setattr("fedscale_local.reports.write", lambda run_dir: run_dir)
    from benchmarks import kills

    hit, _, same = kills.torment(
        name, 2, tmp_path, random.Random(os.getpid()), [f"engine.client_state={place}"]
    )
    assert (hit, same) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_carried_on_after_any_round_every_strategy_ends_with_the_same_bytes(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPO)])
    monkeypatch.setattr("fedscale_local.reports.write", lambda run_dir: run_dir)
    from benchmarks import kills, resumes

    names = kills.strategies()
    assert len(names) > 30
    engine = ("engine.mode=looped", "engine.workers=1", f"engine.client_state={place}")
    unequal = {name: resumes.unequal(name, engine, tmp_path / name) for name in names}
    assert not any(unequal.values()), unequal
