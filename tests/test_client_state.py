"""What clients keep may lie on disk: the same bytes, and nothing of it left in memory or behind the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from whole_runs import NATURAL, Run, run, save_arrays

from fedscale_local import wire
from fedscale_local.client_store import OnDisk
from fedscale_local.engines.in_process import InProcessGrid


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    x = [rng.normal(size=(n, 4)) for n in (12, 3, 7, 9, 5)]
    return save_arrays(
        tmp_path_factory.mktemp("arrays") / "five.npz", x, [rng.integers(0, 3, len(p)) for p in x]
    )


def small(run_dir: Path, arrays: Path, *overrides: str, **more: Any) -> Run:
    settings = {"data.path": str(arrays), "num_rounds": 5, "clients_per_round": 2, "client.local_steps": 2}
    return run(run_dir, *NATURAL, *overrides, settings=settings | more)


METHODS = {
    "scaffold": ("strategy=scaffold",),
    "kept moments": ("strategy=diloco",),
    "own D": ("scaling=adam", "scaling.scope=local"),
    "none": ("strategy=fedavg",),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_and_no_file_left(method: str, arrays: Path, tmp_path: Path) -> None:
    in_memory = small(tmp_path / "memory", arrays, *METHODS[method])
    grids = []
    called = InProcessGrid.send_and_receive

    def watched(self: InProcessGrid, *args: Any, **kwargs: Any) -> Any:
        grids.append(self.states)
        return called(self, *args, **kwargs)

    with patch.object(InProcessGrid, "send_and_receive", watched):
        on_disk = small(tmp_path / "disk", arrays, *METHODS[method], **{"engine.client_state": "disk"})
    assert on_disk.bytes == in_memory.bytes
    assert all(isinstance(states, OnDisk) for states in grids)
    assert not (on_disk.run_dir / "client_state").exists()


def test_a_state_comes_back_as_it_was_and_files_of_a_killed_run_do_not(tmp_path: Path) -> None:
    states = OnDisk(tmp_path / "kept")
    vector = torch.tensor([1.5, -2.0])
    states[7] = RecordDict({"own": wire.vector_record(vector), "config": ConfigRecord({"clock": 3})})
    assert list(states) == [7]
    back = states[7]
    assert torch.equal(wire.from_vector_record(back.array_records["own"], 2, torch.float32), vector)
    assert back.config_records["config"]["clock"] == 3
    states[7] = RecordDict()
    assert len(states) == 0
    states[8] = back
    assert list(OnDisk(tmp_path / "kept")) == []
