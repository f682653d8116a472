"""A comparison of 200 runs of 500 rounds keeps to its memory, and its page to its size; its time is the benchmark's."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[1]
_spec = spec_from_file_location("compare_size", REPO / "benchmarks" / "compare_size.py")
assert _spec is not None and _spec.loader is not None
compare_size: Any = module_from_spec(_spec)  # by its file: benchmarks are not installed
_spec.loader.exec_module(compare_size)
Taken = compare_size.Taken


@pytest.mark.slow
def test_two_hundred_long_runs_take_less_than_a_gibibyte_and_make_a_page_of_less_than_five_megabytes(
    tmp_path: Path,
) -> None:
    compare_size.make(tmp_path, 20, 10, 500)
    taken = compare_size.measure(tmp_path)
    assert 50 < taken.memory < 1024 and 0.5 < taken.page < 5


@pytest.mark.parametrize(
    ("taken", "status"),
    [
        (Taken(9.9, 20, 1023, 4.9), 0),
        (Taken(10.1, 20, 1023, 4.9), 1),
        (Taken(9.9, 20, 1025, 4.9), 1),
        (Taken(9.9, 20, 1023, 5.1), 1),
    ],
    ids=["within", "time", "memory", "page"],
)
def test_the_benchmark_can_be_a_check(
    taken: Any, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare_size, "make", lambda *asked: None)
    monkeypatch.setattr(compare_size, "measure", lambda folder: taken)
    monkeypatch.setattr(sys, "argv", ["compare_size", "--check"])
    assert compare_size.main() == status
    assert len(capsys.readouterr().out.splitlines()) == 1 + status
    monkeypatch.setattr(sys, "argv", ["compare_size"])
    assert compare_size.main() == 0
