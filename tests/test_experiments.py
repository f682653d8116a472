"""Every experiment file runs, made small: two rounds with three clients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedscale_local import cli, compose

SMALL = ("num_rounds=2", "clients_per_round=3", "client.local_steps=2", "engine.workers=1")
MORE = {
    "shakespeare": ("eval_clients=false",),
    "savic_study": ("data=fashion_mnist_12k",),
    "niid_bench": ("data=fashion_mnist_12k", "client.local_epochs=null"),
}
"""Quicker than all roles, or CIFAR-10; and an experiment counts in epochs or in steps."""
SHARED_ONLY = ("shakespeare", "hapt", "heart_disease")
NAMES = sorted(
    name
    for name in compose.groups()["experiment"].choices
    if "\nstudy:" not in (compose.FOLDER / "experiment" / f"{name}.yaml").read_text()
)
"""Studies are many runs each; test_studies.py runs their small forms."""

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", NAMES)
def test_experiment(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in SHARED_ONLY:
        monkeypatch.setenv("FEDSCALE_DATA", str(request.getfixturevalue("shared_data")))
    is_sweep = compose.sweeps_by_itself([f"experiment={name}"])
    place = f"hydra.sweep.dir={tmp_path / 'runs'}" if is_sweep else f"run_dir={tmp_path / 'runs' / '0'}"
    assert cli.main(["run", f"experiment={name}", *SMALL, *MORE.get(name, ()), place]) == 0
    folders = [path.parent for path in (tmp_path / "runs").glob("*/manifest.json")]
    assert len(folders) == (6 if is_sweep else 1)
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        assert [line["round"] for line in lines] == [1, 2]
        assert all(len(line["clients"]) == 3 and not line["failures"] for line in lines)
        assert lines[-1]["test_loss"] is not None
