"""The studies in their small forms: every cell is there, trials are equally many, and the best of them is run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import REPO
from whole_runs import kept_fresh

sys.path.append(str(REPO))  # benchmarks are not installed
from benchmarks import niid_bench, savic_study, studies
from fedscale_local.config import ConfigError
from fedscale_local.run_dir import SWEEP

EMBEDDED = "fashion_mnist_12k"


one_fresh = pytest.fixture(scope="module", autouse=True)(kept_fresh)


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    """Of a sweep: what sets each run apart -> its last record."""
    rows = json.loads((folder / SWEEP).read_text())["cells"]
    return {row["overrides"]: studies.last(folder / row["run_dir"]) for row in rows}


def main_of(study: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    argv = ["study", "--out", str(out), "--form", "small", "--data", EMBEDDED, "--at-once", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    studies.main(study.__doc__, study.FORMS, study.study)
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.slow
def test_savics_setting_runs_what_did_best_of_equally_many_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = main_of(savic_study, tmp_path, monkeypatch)
    plan = savic_study.FORMS["small"]
    assert [r["method"] for r in results] == list(plan.methods)
    trials, final = cells(tmp_path / "tuning-h8"), cells(tmp_path / "share0.7-h8")
    for result in results:
        own = " ".join(savic_study.METHODS[result["method"]])
        mine = {words: t["test_loss"] for words, t in trials.items() if words.startswith(own)}
        assert len(mine) == plan.num_trials
        assert min(mine, key=mine.__getitem__).endswith(result["chosen"])
        (record,) = [r for words, r in final.items() if words.startswith(own) and result["chosen"] in words]
        assert (record["test_accuracy"], record["round"]) == (result["test_accuracy"], 2)
    table = (tmp_path / "table.md").read_text()
    assert "no published number to match" in table and table.count("\n| ") == 2 + len(plan.methods)
    assert savic_study.TUNING_SEED not in {r["seed"] for r in results}
    assert (tmp_path / "share0.7-h8" / "report.html").exists()


@pytest.mark.slow
def test_niid_bench_has_ours_beside_the_published_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an equal division FedNova is FedAvg (Wang et al. 2020), so the two agree but for rounding."""
    results = main_of(niid_bench, tmp_path, monkeypatch)
    of = {(r["partition"], r["method"]): r for r in results}
    assert set(of) == {(p, m) for p in ("#C = 2", "iid") for m in niid_bench.METHODS}
    assert of["iid", "fednova"]["test_loss"] == pytest.approx(of["iid", "fedavg"]["test_loss"], rel=1e-4)
    assert all(of["iid", method]["test_accuracy"] > 0.3 for method in niid_bench.METHODS), "ten classes"
    assert of["#C = 2", "fedavg"]["published_percent"] == 49.9
    (row,) = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| iid")]
    assert [row.split(" | ")[place] for place in (2, 4, 6)] == ["71.7", "70.6", "70.7"]


def test_the_forms_are_whole_and_give_every_method_as_many_trials() -> None:
    """3 rules x 3 scopes and SGD; every partition of the column; every trial there is to take."""
    for plan in savic_study.FORMS.values():
        assert all(plan.total_steps % h == 0 for h in plan.local_steps)
        assert all(plan.num_trials <= len(sizes) for sizes in savic_study.STEP_SIZES.values())
    full = savic_study.FORMS["full"]
    assert (full.shares, full.local_steps, len(full.seeds)) == ((0.0, 0.3, 0.5, 0.7), (1, 8, 32), 5)
    assert len(full.methods) == 10
    assert niid_bench.FORMS["full"].partitions == tuple(niid_bench.PARTITIONS)


def test_images_are_the_first_of_each_class_and_means_over_pixels(tmp_path: Path) -> None:
    said = studies.images(tmp_path, EMBEDDED, studies.Images(3, 2, 2))
    assert said.startswith("3 + 2 images a class of fashion_mnist_12k, shrunk 2 times; stratified subset")
    with np.load(tmp_path / "images.npz") as found:
        assert (
            np.bincount(found["y"]).tolist() == [3] * 10 and np.bincount(found["y_test"]).tolist() == [2] * 10
        )
        assert found["x"].shape == (30, 1, 14, 14) and found["x"].dtype == np.uint8
        first = found["x"][0, 0]
    whole = studies.data.load(studies.compose.config([f"data={EMBEDDED}"]).data, 0)
    means = whole.x[0, 0].double().reshape(14, 2, 14, 2).mean((1, 3))
    assert np.abs(first - means.numpy()).max() <= 0.5
    assert studies.images(tmp_path, EMBEDDED, studies.Images(4, 2, 2)).startswith("4 + 2"), (
        "not what was there"
    )


@pytest.mark.slow
def test_the_lossy_copy_of_cifar_10_is_said_to_be_that(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSCALE_DATA", str(shared_data))
    assert "lossy JPEG copy" in studies.images(tmp_path, "cifar10", studies.Images(2, 1, 1))


def test_spread_says_what_diverged() -> None:
    assert studies.spread([0.5, None]) == "diverged in 1 of 2"
    assert studies.spread([0.5]) == "50.0"
    assert studies.spread([0.4, 0.5, 0.6]) == "50.0 ± 24.8"  # t(2) = 4.303 over sqrt(3), times 10


@pytest.mark.parametrize("name", ["savic_study", "niid_bench"])
def test_the_experiments_are_what_the_studies_start_from(name: str) -> None:
    config = studies.compose.config([f"experiment={name}"])
    assert (config.num_clients, config.clients_per_round, config.data.name) == (10, None, "cifar10")
    with pytest.raises(ConfigError, match="clients_per_round"):
        studies.compose.config([f"experiment={name}", "clients_per_round=11"])
