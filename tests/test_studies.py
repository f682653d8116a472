"""The studies in their small forms: every cell is there, trials are equally many, and the best of them is run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import compared
import numpy as np
import pytest
import run_dirs
from pages import REPO
from whole_runs import kept_fresh

sys.path.append(str(REPO))  # benchmarks are not installed
from benchmarks import niid_bench, savic_study, studies
from fedscale_local import compose_tuning
from fedscale_local.config import ConfigError
from fedscale_local.run_dir import SWEEP

EMBEDDED = "fashion_mnist_12k"


one_fresh = pytest.fixture(scope="module", autouse=True)(kept_fresh)


def size(per_class: int, test_per_class: int, shrink: int) -> studies.Images:
    return studies.Images(per_class=per_class, test_per_class=test_per_class, shrink=shrink)


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    """Of a sweep: what sets each run apart -> its last record."""
    rows = json.loads((folder / SWEEP).read_text())["cells"]
    return {row["overrides"]: studies.records(folder / row["run_dir"])[-1] for row in rows}


def main_of(
    name: str, tables: studies.Tables, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> list[dict[str, Any]]:
    argv = ["study", "--out", str(out), "--form", "small", "--data", EMBEDDED, "--at-once", "1", *more]
    monkeypatch.setattr(sys, "argv", argv)
    studies.main("A study.", name, tables)
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    return found


def links(page: Path) -> list[str]:
    return re.findall(r'href="([^"#:]+)"', page.read_text())


@pytest.mark.slow
def test_savics_setting_runs_what_did_best_of_equally_many_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = main_of("savic_study", savic_study.tables, tmp_path, monkeypatch)
    study = studies.read("savic_study_small")
    assert study.tuning is not None
    assert [r["method"] for r in results] == [method.name for method in study.methods]
    trials, final = cells(tmp_path / "tuning-8-local-steps"), cells(tmp_path / "share-0.7-8-local-steps")
    assert len(trials) + len(final) == study.num_runs
    for method, result in zip(study.methods, results, strict=True):
        own = " ".join(method.overrides)
        mine = {words: t["test_loss"] for words, t in trials.items() if words.startswith(own)}
        assert len(mine) == study.tuning.trials
        assert result["chosen"] in min(mine, key=mine.__getitem__)
        (record,) = [r for words, r in final.items() if words.startswith(own) and result["chosen"] in words]
        assert (record["test_accuracy"], record["round"]) == (result["test_accuracy"], 2)
    table = (tmp_path / "table.md").read_text()
    assert "no published number to match" in table and table.count("\n| ") == 2 + len(study.methods)

    page = (tmp_path / "share-0.7.html").read_text()
    assert "<h2>Tuning</h2>" in page and "scaling=oasis scaling.scope=local" in page and "0.003, 0.01" in page
    found = links(tmp_path / "index.html")
    assert sorted(found) == [
        "share-0.7-8-local-steps/report.html",
        "share-0.7.html",
        "tuning-8-local-steps/report.html",
    ]
    assert all((tmp_path / place).exists() for place in found)


@pytest.mark.slow
def test_niid_bench_has_ours_beside_the_published_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an equal division FedNova is FedAvg (Wang et al. 2020), so the two agree but for rounding."""
    problems = ["--problem", "iid", "--problem", "#C = 2"]
    results = main_of("niid_bench", niid_bench.tables, tmp_path, monkeypatch, *problems)
    of = {(r["problem"], r["method"]): r for r in results}
    methods = list(niid_bench.PUBLISHED["iid"])
    assert set(of) == {(p, m) for p in ("#C = 2", "iid") for m in methods}
    assert of["iid", "fednova"]["test_loss"] == pytest.approx(of["iid", "fedavg"]["test_loss"], rel=1e-4)
    assert all(of["iid", method]["test_accuracy"] > 0.3 for method in methods), "ten classes"
    for row in results:  # every round was evaluated
        folder = {"#C = 2": "C-2", "iid": "iid"}[row["problem"]] + "-3-rounds-of-5-local-epochs"
        (own,) = (tmp_path / folder).glob(f"strategy={row['method']}-*")
        seen = [record["test_accuracy"] for record in studies.records(own)]
        assert len(seen) == 3 and row["best_accuracy"] == max(seen) and row["test_accuracy"] == seen[-1]
    best, last = [
        line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| iid")
    ]
    assert [best.split(" | ")[place] for place in (2, 4, 6)] == ["71.3", "71.3", "71.7"]
    assert last.split(" | ")[1] == f"{100 * of['iid', 'fedavg']['test_accuracy']:.1f}"
    assert set(links(tmp_path / "index.html")) >= {"C-2.html", "iid.html"}


def test_the_files_are_the_studies_that_are_published() -> None:
    """10 methods (3 rules x 3 scopes and SGD), 4 shares, 3 numbers of local steps, 5 seeds, and 3 trials of each."""
    full = studies.read("savic_study_full")
    assert full.num_runs == 10 * 3 * (3 + 4 * 5) == 690
    assert [work.overrides[0] for work in full.work] == [f"client.local_steps={h}" for h in (1, 8, 32)]
    assert [p.overrides for p in full.problems] == [[f"partition.share={s}"] for s in (0, 0.3, 0.5, 0.7)]
    assert studies.read("savic_study_medium").num_runs == 10 * 2 * (3 + 2 * 3)
    column = studies.read("niid_bench_full")
    assert column.num_runs == 6 * 4 * 3
    assert {p.name for p in column.problems} == {*niid_bench.PUBLISHED, "quantity"}
    assert all({m.name for m in column.methods} == set(known) for known in niid_bench.PUBLISHED.values())


@pytest.mark.parametrize("form", studies.FORMS)
def test_work_is_equal_and_every_method_has_a_space_of_as_many_values_as_trials(form: str) -> None:
    study = studies.read(f"savic_study_{form}")
    assert study.tuning is not None
    given = [dict(override.split("=") for override in work.overrides) for work in study.work]
    assert len({int(one["client.local_steps"]) * int(one["num_rounds"]) for one in given}) == 1
    for method in study.methods:
        planned = compose_tuning.tuning([*method.overrides, *method.space])
        assert [len(dimension.choices) for dimension in planned.space] == [study.tuning.trials]
    assert f"seed={max(study.seeds)}" not in study.tuning.overrides and "seed=1000" in study.tuning.overrides


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda study: study.pop("seeds"), "study.seeds"),
        (lambda study: study.update(sedes=[1]), "did you mean study.seeds"),
        (lambda study: study["images"].update(per_class=0), "study.images.per_class=0"),
    ],
)
def test_what_is_wrong_in_a_study_is_named(change: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = studies.compose.study(["experiment=niid_bench_small"])
    change(study)
    monkeypatch.setattr(studies.compose, "study", lambda overrides: study)
    with pytest.raises(ConfigError, match=re.escape(words)):
        studies.read("niid_bench_small")


def test_a_study_is_no_run_unless_it_is_asked_for_one() -> None:
    with pytest.raises(ConfigError, match=r"experiment=savic_study_small: it is a study.*add study=null"):
        studies.compose.config(["experiment=savic_study_small"])
    with pytest.raises(ConfigError, match="expected an experiment that is a study"):
        studies.compose.study(["experiment=savic_study"])
    config = studies.compose.config(["experiment=savic_study_small", "study=null"])
    assert (config.client.batch_size, config.model.name) == (16, "resnet8")


def test_work_in_few_rounds_and_in_many_is_compared_at_equal_local_steps(tmp_path: Path) -> None:
    """5 clients a round: 8 rounds of 5 steps and 4 of 10 are 200 steps; the tuning's edge is on the page."""
    for local_steps, num_rounds in ((5, 8), (10, 4)):
        client = run_dirs.config()["client"] | {"local_steps": local_steps}
        for seed in range(3):
            compared.run(
                tmp_path / str(local_steps) / str(seed),
                seed,
                0.5 + local_steps / 50,
                num_rounds=num_rounds,
                changes={"client": client},
            )
    space = {"key": "client.step_size", "choices": ["0.1", "0.2", "0.3"], "step": None, "is_log": False}
    space |= {"low": None, "high": None, "is_int": False}
    trial = {
        "state": "complete",
        "value": 0.5,
        "values": {"client.step_size": "0.3"},
        "number": 0,
        "cells": [],
    }
    tuned = studies.Tuned("strategy=fedavg", "test_loss", "minimize", [0], [space], [trial], 0)
    page = studies.page([tmp_path / "5", tmp_path / "10"], [tuned])
    assert "at equal local steps (200)" in page and "budgets are unequal" not in page
    assert "70.0" in page and "60.0" in page
    assert "client.step_size=0.3 is on the upper edge" in page and studies.on_edge(tuned)
    assert "after 4 rounds" in studies.page([tmp_path / "10"], [])


def test_images_are_the_first_of_each_class_and_means_over_pixels(tmp_path: Path) -> None:
    said = studies.images(tmp_path, EMBEDDED, size(3, 2, 2))
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
    assert studies.images(tmp_path, EMBEDDED, size(4, 2, 2)).startswith("4 + 2"), "not what was there"


@pytest.mark.slow
def test_the_lossy_copy_of_cifar_10_is_said_to_be_that(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSCALE_DATA", str(shared_data))
    assert "lossy JPEG copy" in studies.images(tmp_path, "cifar10", size(2, 1, 1))


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
