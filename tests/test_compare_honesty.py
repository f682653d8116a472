"""What a comparison must not leave unsaid, or say without grounds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from html import unescape
from pathlib import Path

import compared
import numpy as np
import pytest
import run_dirs
from rich.console import Console

from fedscale_local import decisive, reports
from fedscale_local.reports import histories

FIVE = {"a": [0.8, 0.81, 0.82, 0.83, 0.84], "b": [0.7, 0.72, 0.71, 0.73, 0.7]}


def told(directory: Path) -> tuple[str, str]:
    """(the head of the page, what the terminal shows)."""
    said = io.StringIO()
    console = Console(file=said, width=500)
    page = reports.compare([directory], directory / "page.html", console=console).read_text()
    return unescape(page.partition("</header>")[0]), said.getvalue()


def other_clients(run: Path) -> None:
    lines = (run / "rounds.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    (run / "rounds.jsonl").write_text("\n".join([json.dumps(first | {"clients": [0, 1]}), *lines[1:]]) + "\n")


def other_sum(key: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["common_random_numbers"][key] = "another"
        (run / "manifest.json").write_text(json.dumps(manifest))

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (other_clients, "sampled clients in 2"),
        (other_sum("initial_model"), "initial model in 2"),
        (other_sum("batches"), "batches in 2"),
    ],
    ids=["clients", "model", "batches"],
)
def test_random_numbers_that_are_not_common_are_told_at_the_head_of_the_page_and_in_the_terminal(
    change: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    sums = {"partition": "p", "initial_model": "m", "batches": "b"}
    compared.methods(tmp_path, FIVE, manifest={"common_random_numbers": sums})
    for place in told(tmp_path):
        assert "Common random numbers do not hold" not in place
    for seed in (1, 3):
        change(tmp_path / f"b-{seed}")
    for place in told(tmp_path):
        assert "Common random numbers do not hold: of 5 pairs of runs under one seed" in place
        assert f"should decide alike: {what}." in place


def test_the_head_names_a_best_method_only_where_it_is_decided(tmp_path: Path) -> None:
    head, _ = told(compared.methods(tmp_path / "five", FIVE))
    assert "Best mean test accuracy" in head and 'class="tile main"' in head
    few = {name: values[:4] for name, values in FIVE.items()}
    noisy = {name: 0.8 + 0.01 * np.random.default_rng(i).normal(size=5) for i, name in enumerate("ab")}
    third = FIVE | {"c": FIVE["a"]}  # better than b, and no better than a
    for name, finals in (("few", few), ("noisy", noisy), ("third", third)):
        head, _ = told(compared.methods(tmp_path / name, finals))
        assert "Leading mean test accuracy, not decided" in head and 'class="tile main"' not in head
    head, _ = told(compared.methods(tmp_path / "one", {"a": FIVE["a"]}))
    assert "<span>Mean test accuracy</span>" in head


def test_numbers_of_examples_that_vary_with_the_seed_are_no_difference_between_runs(tmp_path: Path) -> None:
    compared.methods(tmp_path, FIVE)
    for seed, name in ((seed, name) for seed in range(5) for name in FIVE):
        sizes = {"num_clients": 20, "sizes": [100 + seed] * 20}
        (tmp_path / f"{name}-{seed}" / "partition.json").write_text(json.dumps(sizes))
    head, _ = told(tmp_path)
    assert "fashion_mnist_12k, 2,000 to 2,080 training examples" in head and "The runs differ" not in head
    compared.run(tmp_path / "c-0", 0, 0.7, strategy="c", changes={"partition": {"scheme": "iid"}})
    head, _ = told(tmp_path)
    assert (
        "The runs differ in partition.scheme, partition.alpha, partition.min_examples, as listed below."
        in head
    )


def test_what_decides_nothing_of_a_result_makes_no_other_method(tmp_path: Path) -> None:
    """Each of these keys differs under seed 5, as in a run that was extended or made on another machine."""
    changes = {
        "checkpoint_every": 1, "checkpoint_keep": 5, "round_timeout": 60.0, "num_rounds": 7, "eval_clients": False,
        "eval_personal_steps": 2, "eval_personal_step_size": 0.5, "engine": {"name": "workers", "workers": 2},
        "superlink": {"address": "elsewhere"}, "tracking": {"name": "mlflow"},
    }  # fmt: skip
    assert {*changes, "run_dir"} == set(decisive.FREE)
    compared.methods(tmp_path, FIVE)
    compared.run(tmp_path / "other", 5, 0.8, strategy="a", changes=changes, num_rounds=7)
    runs, _ = histories.gather([tmp_path])
    found = {method.name: sorted(method.runs) for method in histories.methods(runs)}
    assert found == {"strategy=a": [0, 1, 2, 3, 4, 5], "strategy=b": [0, 1, 2, 3, 4]}
    page = reports.compare(
        [tmp_path], tmp_path / "page.html", console=Console(file=io.StringIO())
    ).read_text()
    assert "Runs of one method differ in what decides nothing of a result: " in page


def test_who_sweeps_over_such_a_key_gets_a_method_for_each_value(tmp_path: Path) -> None:
    base = run_dirs.config()
    for workers in (1, 2):
        for seed in (0, 1):
            changes = {"engine": base["engine"] | {"workers": workers}}
            compared.run(tmp_path / f"{workers}-{seed}", seed, 0.8, changes=changes)
    runs, _ = histories.gather([tmp_path])
    assert [method.name for method in histories.methods(runs)] == ["engine.workers=1", "engine.workers=2"]
