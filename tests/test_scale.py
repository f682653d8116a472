"""Many clients on one machine: time and memory go with the clients that are asked, not with those that exist."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from whole_runs import client_files

MEASURED = """
import json, re, resource, sys
from pathlib import Path
from fedscale_local import compose, lifecycle
from unittest.mock import patch
config = compose.config(sys.argv[1:])
begun = Path(config.run_dir, "manifest.json").exists()
with patch("fedscale_local.reports.write"):
    lifecycle.resume(Path(config.run_dir), config) if begun else lifecycle.run(config)
# The kernel's ru_maxrss of a process begins with that of the one that started it; VmHWM does not.
own = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps([1024 * own, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""
GIB = 2**30

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def measured(run_dir: Path, *overrides: str) -> tuple[list[dict[str, Any]], int]:
    """The lines of rounds.jsonl of a run in a process of its own, and its peak memory in bytes, workers included.

    A run that is there is carried on.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *overrides, f"run_dir={run_dir}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    own, of_a_worker = json.loads(done.stdout.splitlines()[-1])
    manifest = json.loads((run_dir / "manifest.json").read_text())
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    return lines, own + of_a_worker * (manifest["engine"]["workers"] > 1)


def test_ten_thousand_clients(tmp_path: Path) -> None:
    """The embedded 12,000 images: a client holds one or two of them."""
    overrides = ("partition=iid", "num_clients=10000", "clients_per_round=50", "num_rounds=10")
    lines, peak = measured(tmp_path / "run", *overrides)
    assert all(len(line["clients"]) == 50 and not line["failures"] for line in lines)
    assert max(max(line["clients"]) for line in lines) > 5000
    print(f"peak {peak / GIB:.2f} GiB")
    assert peak < 1.5 * GIB


@pytest.mark.parametrize("method", ["scaling=adam", "scaling.scope=local"])
def test_memory_does_not_grow_with_clients_that_are_not_sampled(method: str, tmp_path: Path) -> None:
    """The same examples in all, among 500 clients and among 10,000; a model of 100,000 numbers is 0.4 MB."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 20)).astype(np.float32)
    np.savez(tmp_path / "many.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    data = ("data=arrays", f"data.path={tmp_path / 'many.npz'}", "partition=iid")
    overrides = (*data, "model=mlp", "model.hidden=[300,300]")
    peaks = [
        measured(
            tmp_path / str(count),
            *overrides,
            method,
            f"num_clients={count}",
            "clients_per_round=20",
            "num_rounds=4",
            "engine.workers=1",
        )[1]
        for count in (500, 10_000)
    ]
    print([f"{peak / GIB:.3f} GiB" for peak in peaks])
    # 80 clients are asked in both runs; a model for each of the 9,500 others would be 3.6 GiB.
    assert peaks[1] < peaks[0] + 0.1 * GIB


def test_what_clients_keep_is_on_disk_alone(tmp_path: Path) -> None:
    """Control variates of 100,000 numbers, of 25 clients or of about 500, with a checkpoint after each round;
    then 5 rounds more, in another process."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4_000, 20)).astype(np.float32)
    np.savez(tmp_path / "many.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    kept, peaks = dict[int, int](), dict[tuple[int, int], int]()
    for count in (25, 1000):
        for num_rounds in (30, 35):
            run_dir = tmp_path / str(count)
            _, peaks[count, num_rounds] = measured(
                run_dir,
                *(
                    "data=arrays",
                    f"data.path={tmp_path / 'many.npz'}",
                    "partition=iid",
                    f"num_clients={count}",
                ),
                *("model=mlp", "model.hidden=[300,300]", "strategy=scaffold", "client.local_steps=1"),
                *("clients_per_round=25", "checkpoint_every=1", f"num_rounds={num_rounds}"),
                *("engine.workers=1", "engine.client_state=disk"),
            )
            kept[count] = sum((run_dir / name).stat().st_size for name in client_files(run_dir))
    print({key: f"{peak / GIB:.3f} GiB" for key, peak in peaks.items()}, kept)
    assert kept[1000] > 200e6 > 25e6 > kept[25]
    for num_rounds in (30, 35):
        assert peaks[1000, num_rounds] < peaks[25, num_rounds] + 0.25 * (kept[1000] - kept[25])


def test_a_thousand_clients_of_fashion_mnist(tmp_path: Path) -> None:
    if not any(Path("/usr/share").rglob("*fashion*mnist*")):
        pytest.skip("Fashion-MNIST is not installed (Debian: dataset-fashion-mnist)")
    overrides = ("data=fashion_mnist", "num_clients=1000", "clients_per_round=100", "num_rounds=3")
    lines, peak = measured(tmp_path / "run", *overrides)
    assert [len(line["clients"]) for line in lines] == [100] * 3
    assert not any(line["failures"] for line in lines)
    assert lines[-1]["test_accuracy"] > 0.5
    print(f"peak {peak / GIB:.2f} GiB")


def test_the_thirty_subjects_of_hapt(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "hapt"
    if not path.is_dir():
        pytest.skip(f"no folder {path}")
    overrides = ("data=hapt", f"data.path={path}", "clients_per_round=null", "num_rounds=3")
    lines, peak = measured(tmp_path / "run", *overrides)
    assert all(len(line["clients"]) > 15 and not line["failures"] for line in lines)
    assert lines[-1]["test_loss"] < lines[0]["test_loss"]
    print(f"peak {peak / GIB:.2f} GiB")
