"""Sweeps on Slurm: the real submitit, its job files and its polling, against the programs of tests/slurm.py."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from pathlib import Path

import pytest
import slurm
from whole_runs import kept_fresh

from fedscale_local import cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
one_fresh = pytest.fixture(scope="module", autouse=True)(kept_fresh)
PROBLEM = (
    *("data=quadratic", "data.dimension=2", "data.examples=4", "num_clients=3", "num_rounds=2"),
    *("client.local_steps=1", "client.batch_size=full", "engine.workers=1", "strategy=fedavg,savic"),
)
ON_SLURM = (
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.partition=long",
    "hydra.launcher.timeout_min=120",
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from submitit.core.core import Job

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Job, "_results_timeout_s", 1)  # for a disk that shows late what another machine wrote
    return slurm.install(tmp_path / "slurm", monkeypatch)


def run(folder: str, *more: str) -> int:
    return cli.main(["run", "-m", *PROBLEM, f"hydra.sweep.dir={folder}", *more])


def rounds(folder: str) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in Path(folder).glob("*/rounds.jsonl")}


def test_each_cell_is_a_job_and_the_bytes_are_those_of_a_serial_sweep(cluster: Path) -> None:
    assert run("here", "seed=0") == 0
    assert run("there", "seed=0", *ON_SLURM) == 0
    assert slurm.states(cluster) == {"101_0": "COMPLETED", "101_1": "COMPLETED"}
    assert len(rounds("here")) == 2 and rounds("there") == rounds("here")
    asked = (cluster / "101.sh").read_text().splitlines()
    assert {"#SBATCH --partition=long", "#SBATCH --time=120", "#SBATCH --array=0-1%2"} <= set(asked)
    assert run("there", "seed=0,1", *ON_SLURM) == 0  # two cells are done, two are jobs
    assert [job for job in slurm.states(cluster) if not job.startswith("101")] == ["102_0", "102_1"]
    assert (
        run("there", "seed=0,1", *ON_SLURM) == 0 and len(slurm.states(cluster)) == 4
    )  # nothing is left to do
    assert run("there", "seed=0,1,2", "strategy=fedavg", *ON_SLURM) == 0  # one cell is a job without an array
    assert slurm.states(cluster)["103"] == "COMPLETED" and len(rounds("there")) == 5


def test_a_job_that_the_cluster_ends_is_a_failed_cell_and_the_others_go_on(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One job is cancelled at work, one before it began; the same command does both again."""

    def cancel() -> None:
        while not list(Path("s").glob("*/rounds.jsonl")):
            time.sleep(0.05)
        for job in ("101_0", "101_1"):
            subprocess.run(["scancel", job], check=True)

    operator = threading.Thread(target=cancel)
    operator.start()
    many = ("num_rounds=600", "strategy=fedavg", "seed=0,1,2", "checkpoint_every=20")
    assert run("s", *many, *ON_SLURM) == 1
    operator.join()
    expected = {"101_0": "CANCELLED", "101_1": "CANCELLED", "101_2": "COMPLETED"}
    assert slurm.states(cluster) == expected
    rows = json.loads(Path("s/sweep.json").read_text())["cells"]
    assert [row["state"] for row in rows] == ["failed", "failed", "done"]
    assert rows[0]["message"].startswith(
        "its job 101_0 came to no end (CANCELLED); what it printed, if anything, is in "
    )
    assert list(Path(rows[0]["message"].rpartition(" ")[2]).glob("101_0_0_log.err"))
    assert "(3 runs, 2 failed)" in capsys.readouterr().out
    assert run("s", *many, *ON_SLURM) == 0
    assert set(slurm.states(cluster)) == {*expected, "102_0", "102_1"}
    assert run("whole", *many) == 0 and rounds("s") == rounds("whole")
    first = json.loads((Path("s") / rows[0]["run_dir"] / "manifest.json").read_text())
    assert first["resumed"][0]["after_round"] < 600
