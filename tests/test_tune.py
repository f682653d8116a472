"""Tuning: the space, equal trials, pruning by rounds, and that a repeated command counts nothing twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from whole_runs import kept_fresh

from fedscale_local import cells, cli, drawing, pruning, sweep
from fedscale_local.cells import Cell
from fedscale_local.compose_tuning import Dimension, tuning
from fedscale_local.pruning import Limits
from fedscale_local.reports import tuning as report

TINY = [
    "data=quadratic",
    "data.dimension=2",
    "data.examples=4",
    "num_clients=3",
    "num_rounds=4",
    "client.local_steps=1",
    "client.batch_size=full",
    "engine.workers=1",
]
SPACE = ["client.step_size=tag(log,interval(0.001,1))", "scaling.beta=choice(0.5,0.9,0.99)"]
ASKED = [*TINY, *SPACE, "strategy=fedavg,savic", "tune.metric=train_loss", "hydra.sweep.dir=t"]
EAGER = ["tune.prune_after_trials=2", "tune.prune_after_rounds=0"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


one_fresh = pytest.fixture(scope="module", autouse=True)(kept_fresh)


def told(folder: str = "t") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(folder, "tuning.json").read_text())["methods"]
    return found


# ---------------------------------------------------------------- the space


def test_hydras_grammar_makes_the_space_and_lists_are_methods() -> None:
    found = tuning(
        [
            *TINY,
            "strategy=fedavg,savic",
            "client.step_size=tag(log, interval(1e-3, 1))",
            "scaling.alpha=interval(0.5, 2)",
            "client.local_steps=int(interval(1, 8))",
            "client.batch_size=range(2, 9, 2)",
            "scaling.beta=choice(0.9, 0.99)",
            "scaling=choice(adam, oasis)",
            "seed=range(3)",
        ]
    )
    assert found.space == [
        Dimension("++client.step_size", (), 0.001, 1, None, True),
        Dimension("++scaling.alpha", (), 0.5, 2),
        Dimension("++client.local_steps", (), 1, 8, is_int=True),
        Dimension("++client.batch_size", (), 2, 8, 2, is_int=True),
        Dimension("++scaling.beta", ("0.9", "0.99")),
        Dimension("scaling", ("adam", "oasis")),
    ]
    assert found.apart == [["strategy=fedavg"], ["strategy=savic"]] and found.seeds == ["0", "1", "2"]
    jobs = found.jobs(1, {"++client.step_size": "0.1"})
    assert [job[-2:] for job in jobs] == [["++client.step_size=0.1", f"++seed={seed}"] for seed in range(3)]
    assert all("strategy=savic" in job and "tune" not in " ".join(job) for job in jobs)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("strategy=fedavg,savic", "nothing is to be tuned"),
        ("scaling.alpha=tag(log, interval(0, 1))", "on a logarithmic scale from above 0"),
        ("scaling.alpha=interval(2, 1)", "a space goes upwards"),
        ("scaling.alpha=interval(1, 2) tune.trials=0", "1 or more"),
        ("scaling.beta=interval(0.5, 1.5)", "scaling.beta=1.5"),
        ("scaling.beta=interval(0.5, 0.9) tune.triels=3", "tune.triels"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_trial(
    override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    head, _, tail = override.partition(" tune.")
    assert cli.main(["tune", *TINY, head, *([f"tune.{tail}"] if tail else []), "hydra.sweep.dir=t"]) == 2
    assert words in capsys.readouterr().err and not Path("t").exists()


def test_a_run_is_not_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *TINY, "tune.trials=3"]) == 2
    assert "tune.trials=3: a run is not tuned" in capsys.readouterr().err


# ---------------------------------------------------------------- what is drawn


def test_draws_stay_in_the_space_and_depend_on_seed_and_history_alone() -> None:
    space = [
        Dimension("a", (), 0.0123456, 1, None, True),
        Dimension("b", (), 1, 9, 2, is_int=True),
        Dimension("c", ("x", "y")),
    ]

    def drawn(seed: int, num_trials: int) -> list[dict[str, Any]]:
        study, found = optuna.create_study(), []
        for number in range(num_trials):
            values = drawing.draw(space, study, seed + number)
            distributions = {d.name: drawing.distribution(d) for d in space}
            study.add_trial(
                optuna.trial.create_trial(params=values, distributions=distributions, value=values["a"])
            )
            found.append(values)
        return found

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    first = drawn(0, 15)
    assert first == drawn(0, 15) and first != drawn(100, 15)
    assert all(0.0123456 <= v["a"] <= 1 and v["b"] in (1, 3, 5, 7, 9) and v["c"] in "xy" for v in first)
    assert all(v["a"] == float(f"{v['a']:.3g}") or v["a"] == 0.0123456 for v in first)


def test_a_finite_space_is_tried_whole_before_anything_is_tried_twice() -> None:
    space = [
        Dimension("a", ("x", "y", "z")),
        Dimension("b", (), 2, 6, 2, is_int=True),
        Dimension("c", (), 0.1, 0.5, 0.2),
    ]
    every = {(a, b, c) for a in "xyz" for b in (2, 4, 6) for c in ("0.1", "0.3", "0.5")}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, found = optuna.create_study(), set()
    for number in range(len(every)):
        values = drawing.draw(space, study, number)
        assert values is not None
        distributions = {d.name: drawing.distribution(d) for d in space}
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=distributions, value=float(number))
        )
        found.add((values["a"], values["b"], f"{values['c']:.1f}"))
    assert found == every and drawing.draw(space, study, 99) is None


# ---------------------------------------------------------------- the median rule


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_median_rule_is_that_of_optunas_pruner(direction: str) -> None:
    draw, pruned = np.random.default_rng(5), 0
    for _ in range(40):
        after_trials, after_rounds = int(draw.integers(1, 4)), int(draw.integers(0, 3))
        whole = [dict(enumerate(draw.normal(size=6).round(1), start=1)) for _ in range(draw.integers(0, 6))]
        curve = dict(enumerate(draw.normal(size=6).round(1), start=1))
        pruner = optuna.pruners.MedianPruner(after_trials, after_rounds + 1)
        study = optuna.create_study(direction=direction, pruner=pruner)
        for one in whole:
            study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values=one))
        trial, theirs = study.ask(), None
        for round, value in curve.items():
            trial.report(value, round)
            if theirs is None and trial.should_prune():
                theirs = round
        ours = pruning.limits("m", direction == "maximize", whole, after_trials, after_rounds)
        assert pruning.verdict(curve, ours) == theirs
        pruned += theirs is not None
    assert 5 < pruned < 40


# ---------------------------------------------------------------- trials, with cells that are made up


Work = Callable[[Cell], None]


def made_up(cell: Cell) -> None:
    """What an attempt at a cell leaves behind: a loss that is least at a step size of 0.1, or as far as is needed."""
    step = json.loads(cell.config)["client"]["step_size"]
    losses = [abs(math.log10(step) + 1) + 1 / round for round in range(1, 5)]
    end = cell.limits and pruning.verdict(dict(enumerate(losses, 1)), cell.limits)
    lines = [{"round": r, "train_loss": loss} for r, loss in enumerate(losses[:end], start=1)]
    cell.run_dir.mkdir(exist_ok=True)
    (cell.run_dir / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = f"pruned: in round {end}" if end else "done"
    (cell.run_dir / "manifest.json").write_text(json.dumps({"exit": ended}))
    (cell.run_dir / "config.yaml").write_text(cell.config)  # JSON is YAML
    (cell.run_dir / "report.html").write_text("")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Cells are done by `work`; how often one was."""
    state: dict[str, Any] = {"work": made_up, "count": 0}

    def work_off(planned: object, found: Sequence[Cell]) -> None:
        for cell in found:
            if not cells.is_settled(cell):
                state["count"] += 1
                state["work"](cell)

    monkeypatch.setattr(sweep, "work_off", work_off)
    monkeypatch.setattr(sweep, "report", lambda folder: None)
    return state


def test_each_method_has_as_many_trials_over_the_same_seeds_and_a_repeated_command_does_none(
    tried: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tune", *ASKED, "tune.trials=4", "seed=3,4", *EAGER]
    assert cli.main(arguments) == 0
    fedavg, savic = told()
    assert (fedavg["name"], savic["name"]) == ("strategy=fedavg", "strategy=savic")
    assert len(fedavg["trials"]) == len(savic["trials"]) == 4 and fedavg["seeds"] == [3, 4]
    assert [t["values"] for t in fedavg["trials"]] == [
        t["values"] for t in savic["trials"]
    ]  # the same losses
    assert (
        tried["count"] == 2 * 4 * 2 == len({cell for m in told() for t in m["trials"] for cell in t["cells"]})
    )
    states = [trial["state"] for trial in fedavg["trials"]]
    assert states[:2] == ["complete", "complete"] and "pruned" in states
    assert (
        fedavg["best"]
        == min((t["value"], t["number"]) for t in fedavg["trials"] if t["state"] == "complete")[1]
    )
    out = capsys.readouterr().out
    assert out.count("pruned in round") == 2 * states.count("pruned")
    before = told()
    assert cli.main(arguments) == 0 and told() == before and tried["count"] == 16
    assert cli.main([*arguments, "tune.trials=5"]) == 0 and tried["count"] == 20
    assert [m["trials"][:4] for m in told()] == [m["trials"] for m in before]


def test_more_trials_than_a_space_has_values_are_those_values(tried: dict[str, Any]) -> None:
    asked = ["strategy=fedavg,savic", "client.step_size=choice(0.01,0.1,0.5)", "tune.trials=5"]
    assert (
        cli.main(["tune", *TINY, *asked, "tune.metric=train_loss", "tune.prune=false", "hydra.sweep.dir=t"])
        == 0
    )
    for method in told():
        values = [trial["values"]["client.step_size"] for trial in method["trials"]]
        assert sorted(values) == ["0.01", "0.1", "0.5"] and values[method["best"]] == "0.1"


class Killed(BaseException):
    """Stands for a process that is no more."""


def test_killed_anywhere_and_repeated_it_draws_the_same_and_counts_nothing_twice(
    tried: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["tune", *ASKED, "tune.trials=3", *EAGER]
    assert cli.main([*arguments, "hydra.sweep.dir=whole"]) == 0
    num_cells, add = tried["count"], optuna.Study.add_trial
    left = {"steps": 0}

    def step() -> None:
        left["steps"] -= 1
        if left["steps"] == 0:
            raise Killed

    def work(cell: Cell) -> None:
        step()  # before a cell has begun
        made_up(cell)
        step()  # after it is done

    def add_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        add(study, trial)
        if study.study_name.startswith("strategy"):  # and not one in memory, of which nothing is left
            step()  # between the methods' trials

    tried.update(work=work, count=0)
    monkeypatch.setattr(optuna.Study, "add_trial", add_trial)
    for steps in (2, 7):
        left["steps"] = steps
        with pytest.raises(Killed):
            cli.main([*arguments, "hydra.sweep.dir=killed"])
    assert cli.main([*arguments, "hydra.sweep.dir=killed"]) == 0
    assert told("killed") == told("whole")
    names = {path.name for path in Path("killed").glob("strategy=*")}
    assert names == {path.name for path in Path("whole").glob("strategy=*")} and len(names) == num_cells


def test_values_that_cannot_be_run_are_trials_and_other_failures_are_tried_again(
    tried: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(exit: int) -> Work:
        def work(cell: Cell) -> None:
            if "strategy=savic" in cell.overrides:
                cell.outcome.write_text(json.dumps({"exit": exit, "message": "it broke"}))
            else:
                made_up(cell)

        return work

    tried["work"] = broken(1)
    arguments = ["tune", *ASKED, "tune.trials=1"]
    assert cli.main(arguments) == 1
    assert [len(method["trials"]) for method in told()] == [1, 0]
    assert "failed: it broke; the same command tries it again" in capsys.readouterr().out
    tried["work"] = broken(2)
    assert cli.main(arguments) == 0
    savic = told()[1]
    assert [trial["state"] for trial in savic["trials"]] == ["fail"] and savic["best"] is None
    assert "strategy=savic has no trial with a train_loss" in capsys.readouterr().out


def test_a_run_that_diverges_is_the_worst_and_no_winner(tried: dict[str, Any]) -> None:
    def diverging(cell: Cell) -> None:
        made_up(cell)
        lines = [{"round": round, "train_loss": None} for round in range(1, 5)]
        (cell.run_dir / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    tried["work"] = diverging
    assert cli.main(["tune", *ASKED, "strategy=fedavg", "tune.trials=1"]) == 0
    (method,) = told()
    assert method["best"] is None and method["trials"][0]["state"] == "complete"
    (study,) = optuna.load_study(
        study_name=optuna.get_all_study_names("sqlite:///t/study.db")[0], storage="sqlite:///t/study.db"
    ).trials
    assert study.value == math.inf


def test_a_metric_that_no_round_has_is_refused(
    tried: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", *ASKED, "tune.metric=test_loss", "tune.trials=1"]) == 2
    assert (
        "tune.metric=test_loss: the last round's record has no such number; set tune.metric to one of train_loss"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize(
    ("metric", "direction", "best"), [("accuracy", "auto", 1), ("loss", "maximize", 1), ("loss", "auto", 0)]
)
def test_the_direction_is_of_the_metric_or_is_said(
    metric: str, direction: str, best: int, tried: dict[str, Any]
) -> None:
    values = iter([1.0, 2.0])

    def work(cell: Cell) -> None:
        made_up(cell)
        (cell.run_dir / "rounds.jsonl").write_text(json.dumps({"round": 4, metric: next(values)}) + "\n")

    tried["work"] = work
    more = [f"tune.metric={metric}", f"tune.direction={direction}", "tune.trials=2", "tune.prune=false"]
    assert cli.main(["tune", *TINY, *SPACE, *more, "hydra.sweep.dir=t"]) == 0
    assert told()[0]["best"] == best


def test_methods_that_are_tuned_one_by_one_in_a_directory_stand_beside_each_other(
    tried: dict[str, Any],
) -> None:
    for method in ("fedavg", "savic"):
        arguments = [*TINY, *SPACE[:1], f"strategy={method}", "tune.metric=train_loss", "hydra.sweep.dir=t"]
        assert cli.main(["tune", *arguments, "tune.trials=1"]) == 0
    assert [method["name"] for method in told()] == ["strategy=fedavg", "strategy=savic"]


def test_another_space_is_another_study_in_the_same_directory(tried: dict[str, Any]) -> None:
    for space in (SPACE, SPACE[:1]):
        assert (
            cli.main(["tune", *TINY, *space, "tune.metric=train_loss", "tune.trials=1", "hydra.sweep.dir=t"])
            == 0
        )
    assert len(optuna.get_all_study_names("sqlite:///t/study.db")) == 2 and len(told()) == 1
    assert len(told()[0]["space"]) == 1


# ---------------------------------------------------------------- what is told


def tuned(name: str, value: Any, num_trials: int = 2) -> report.Tuned:
    space = {
        "key": "client.step_size",
        "choices": [],
        "low": 0.001,
        "high": 1.0,
        "step": None,
        "is_log": True,
    }
    trial = {
        "state": "complete",
        "value": 0.5,
        "values": {"client.step_size": value},
        "number": 0,
        "cells": [],
    }
    return report.Tuned(name, "test_loss", "minimize", [0], [space], [trial] * num_trials, 0)


def test_a_best_value_on_the_edge_and_unequal_trials_are_warned_of() -> None:
    assert report.remarks([tuned("a", 0.03), tuned("b", 0.03)]) == []
    (words,) = report.remarks([tuned("a", 0.03), tuned("b", 0.95)])
    assert words.startswith(
        "b: client.step_size=0.95 is on the upper edge of what was searched (log 0.001 to 1)"
    )
    (words,) = report.remarks([tuned("a", 0.03, 3), tuned("b", 0.03)])
    assert words == "Methods were not tuned alike: their trials are a 3, b 2."


# ---------------------------------------------------------------- real runs


@pytest.mark.slow
def test_a_pruned_cell_ends_with_that_round_and_a_sweep_carries_it_on() -> None:
    from test_sweep import expanded

    (cell,) = expanded("seed=0", "num_rounds=600", "checkpoint_every=10")
    held = cell._replace(limits=Limits("train_loss", False, ((25, -1.0),)))
    cells.attempt(held, None, None)
    records = pruning.read(cell.run_dir)
    assert records[-1]["round"] == 25 and cells.state(held) == "pruned" and cells.state(cell) == "half"
    assert json.loads((cell.run_dir / "manifest.json").read_text())["exit"].startswith(
        "pruned: in round 25 the best train_loss "
    )
    assert not (cell.run_dir / "report.html").exists()
    cells.attempt(cell, None, None)
    manifest = json.loads((cell.run_dir / "manifest.json").read_text())
    assert cells.state(cell) == "done"
    # Which checkpoints before round 25 were still kept when the run was stopped depends on how far it had got by then.
    assert manifest["resumed"][0]["after_round"] <= 25
    assert [record["round"] for record in pruning.read(cell.run_dir)] == list(range(1, 601))
