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
@pytest.mark.parametrize("name", ["savic", "scaffold", "local_adam_kept", "fedyogi", "feddyn"])
def test_killed_and_carried_on_they_end_with_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPO)])
    monkeypatch.setattr("fedscale_local.reports.write", lambda run_dir: run_dir)
    from benchmarks import kills

    hit, _, same = kills.torment(name, 2, tmp_path, random.Random(os.getpid()))
    assert (hit, same) == (2, True)


@pytest.mark.slow
def test_carried_on_after_any_round_every_strategy_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPO)])
    monkeypatch.setattr("fedscale_local.reports.write", lambda run_dir: run_dir)
    from benchmarks import kills, resumes

    names = kills.strategies()
    assert len(names) > 30
    unequal = {name: resumes.unequal(name, [], tmp_path / name) for name in names}
    assert not any(unequal.values()), unequal
