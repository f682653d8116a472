"""What docs/results.md claims of hostile clients, held against the small form of its command."""

from __future__ import annotations

import json
import lzma
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from pages import REPO


@pytest.mark.slow
def test_the_mean_fails_and_three_defences_hold_where_thirty_percent_flip_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its file: benchmarks are not installed, and the repository on the path would hide what is."""
    spec = spec_from_file_location("attacks", REPO / "benchmarks" / "attacks.py")
    assert spec is not None and spec.loader is not None
    study = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "attacks", study)
    spec.loader.exec_module(study)
    monkeypatch.setattr(sys, "argv", ["attacks", "--small", "--out", str(tmp_path)])
    # Forty runs on the same images, which take as long to unpack as half of a run.
    monkeypatch.setattr(lzma, "decompress", cache(lzma.decompress))
    study.main()
    trials = [
        study.Trial(**json.loads(line)) for line in (tmp_path / "trials.jsonl").read_text().splitlines()
    ]
    accuracy = {(t.attack, t.defence, t.seed): t.accuracy for t in trials}
    assert len(accuracy) == 2 * 4 * 5
    for seed in range(5):
        clean = accuracy["none", "mean", seed]
        assert clean > 65
        assert accuracy["sign flip, 4", "mean", seed] < 20, "ten classes: no better than guessing, or hardly"
        for defence in ("median", "trimmed mean", "geometric median"):
            assert accuracy["sign flip, 4", defence, seed] > clean - 12
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + 2 + 2
