"""Runs of several strategies, killed at random instants (the command python -m benchmarks.kills does many more)."""

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
