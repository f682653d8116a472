"""Comparisons: no difference found where there is none, one found where there is, and wrong files told in a message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import compared
import numpy as np
import pytest
from scipy.stats import binom

from fedscale_local import cli
from fedscale_local.reports import budget, comparison, histories, statistics


def of(*directories: Path, at: str | None = None) -> comparison.Comparison:
    runs, left_out = histories.gather(directories)
    chosen = None if at is None else budget.parse(at)
    return comparison.compare(histories.methods(runs), chosen, None, left_out)


def test_two_copies_of_one_method_differ_in_one_trial_of_twenty() -> None:
    """Of 4,000 trials of 10 pairs 5 % are wrong by design, 200, with a standard deviation of 14; four of those are
    allowed. Of any 20 trials alone, more than one is wrong in a quarter of all cases."""
    draw = np.random.default_rng(0)
    found = sum(statistics.t_test(draw.normal(size=10)) < 0.05 for _ in range(4000))
    assert abs(found - 200) < 4 * 14


TRIALS = 400


@pytest.mark.slow
@pytest.mark.parametrize("copies", [2, 4])
def test_methods_that_are_alike_are_called_different_in_one_comparison_of_twenty(
    copies: int, tmp_path: Path
) -> None:
    """Independent noise of ten seeds for each copy, through the whole comparison, 400 times.

    With two copies the test's level is exact: how often one is called better is binomial with 5 %. Holm's correction
    promises no more than that for any mistake among six pairs. A correct comparison leaves these bounds once in 10,000.
    """
    compared.methods(tmp_path, {name: [0.5] * 10 for name in "abcd"[:copies]}, num_rounds=1)
    alike = histories.methods(histories.gather([tmp_path])[0])
    assert [len(method.runs) for method in alike] == [10] * copies
    draw = np.random.default_rng(0)

    def noisy(method: histories.Method) -> histories.Method:
        values = {seed: {"test_accuracy": np.array([draw.normal(0.8, 0.01)])} for seed in method.runs}
        runs = {
            seed: replace(run, values={**run.values, **values[seed]}) for seed, run in method.runs.items()
        }
        return replace(method, runs=runs)

    wrong = 0
    for _ in range(TRIALS):
        pairs = comparison.compare([noisy(method) for method in alike], None, None, []).pairs
        assert len(pairs) == copies * (copies - 1) / 2
        wrong += any(pair.is_decided for pair in pairs)
    at_most, at_least = (float(quantile(1e-4 / 2, TRIALS, 0.05)) for quantile in (binom.isf, binom.ppf))
    assert wrong <= at_most and (wrong >= at_least or copies > 2)


def test_a_comparison_of_two_copies_says_that_they_do_not_differ(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    shared = 0.8 + 0.01 * draw.normal(size=10)
    finals = {name: shared + 0.005 * draw.normal(size=10) for name in ("one", "other")}
    pair = of(compared.methods(tmp_path, finals, num_rounds=2)).pairs[0]
    assert not pair.is_decided and "is better" not in pair.words


def test_a_better_method_is_found_and_few_seeds_name_no_winner(tmp_path: Path) -> None:
    shared = 0.8 + 0.01 * np.random.default_rng(1).normal(size=5)
    step = np.array([0.018, 0.022, 0.02, 0.019, 0.021])
    pair = of(compared.methods(tmp_path / "five", {"plain": shared, "better": shared + step})).pairs[0]
    assert pair.is_decided and pair.words.startswith(
        "strategy=better is better than strategy=plain by 2.00 ± "
    )
    few = of(
        compared.methods(tmp_path / "four", {"plain": shared[:4], "better": shared[:4] + step[:4]})
    ).pairs[0]
    assert not few.is_decided and few.words.startswith("Not enough seeds to name a winner")


@pytest.mark.parametrize("fault", ["twin", "torn", "foreign", "nothing"])
def test_wrong_files_are_one_message_and_exit_2(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared.methods(tmp_path / "runs", {"a": [0.8, 0.7]})
    if fault == "twin":
        compared.run(tmp_path / "runs" / "again", 0, 0.9, strategy="a")
    elif fault == "torn":
        with (tmp_path / "runs" / "a-0" / "rounds.jsonl").open("a") as file:
            file.write('{"round": 7')
    elif fault == "foreign":
        (tmp_path / "runs" / "a-0" / "config.yaml").unlink()
    place = tmp_path / ("none" if fault == "nothing" else "runs")
    assert cli.main(["compare", str(place), "--out", str(tmp_path / "page.html")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "page.html").exists()
