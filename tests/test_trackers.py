"""Trackers: what they have of a run is what rounds.jsonl has, each round once, whatever happened in between."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from whole_runs import configured, run

from fedscale_local import cli, lifecycle, run_dir, trackers

SMALL = [
    "data=quadratic",
    "data.dimension=2",
    "data.examples=4",
    "num_clients=3",
    "client.local_steps=1",
    "client.batch_size=full",
    "engine.workers=1",
    "checkpoint_every=2",
]
Told = list[dict[str, Any]]
"""One dict a round: its number, its train_loss, its bytes up."""
NUMBERS = ("train_loss", "bytes_up")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "POLL_SECONDS", 0.05)
    return tmp_path


def of_records(folder: Path) -> Told:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("round", *NUMBERS)} for line in lines]


def of_tensorboard(folder: Path) -> Told:
    """Every event that stands in the files of a folder, in the order of writing."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    rounds: dict[int, dict[str, Any]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag in NUMBERS:
                    told = rounds.setdefault(event.step, {"round": event.step})
                    assert value.tag not in told, f"round {event.step} stands there twice"
                    told[value.tag] = value.tensor.float_val[0]
    return list(rounds.values())


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One store for all of these tests, as making one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys.modules[__name__], "STORE", f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
        )
        yield STORE


STORE = ""


def of_mlflow(folder: Path, experiment: str = "fedscale-local") -> Told:
    from mlflow import MlflowClient

    (found,) = [one for one in runs_in(experiment) if one.data.tags.get("run_dir") == str(folder.absolute())]
    rounds: dict[int, dict[str, Any]] = {}
    for key in NUMBERS:
        for metric in MlflowClient(STORE).get_metric_history(found.info.run_id, key):
            told = rounds.setdefault(metric.step, {"round": metric.step})
            assert key not in told, f"round {metric.step} stands there twice"
            told[key] = metric.value
    return [rounds[round] for round in sorted(rounds)]


def runs_in(experiment: str) -> list[Any]:
    from mlflow import MlflowClient

    asked = MlflowClient(STORE)
    return list(asked.search_runs([asked.get_experiment_by_name(experiment).experiment_id]))


def as_told(name: str) -> tuple[list[str], Callable[[], Told]]:
    """Overrides for this tracker, and what it has of the run in the directory `a`."""
    if name == "tensorboard":
        return ["tracking=tensorboard"], lambda: of_tensorboard(Path("a/tensorboard"))
    return ["tracking=mlflow", f"tracking.uri={STORE}"], lambda: of_mlflow(Path("a"))


def as_if_killed_after(folder: Path, checkpointed: int) -> None:
    """Records up to the end, a checkpoint of an earlier round only, and nobody who has said that it ended."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"exit": "running"}))
    for path in folder.glob("checkpoints/*"):
        if not path.name.startswith(f"round-{checkpointed:06d}"):
            path.unlink()
    assert list(folder.glob("checkpoints/*"))
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    spoiled = [line | ({"train_loss": -1.0} if line["round"] > checkpointed else {}) for line in lines]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in spoiled))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_has_each_round_once_also_of_a_run_that_was_killed_and_extended(name: str) -> None:
    tracking, told = as_told(name)
    folder = run(Path("a"), *SMALL, *tracking, settings={"num_rounds": 4}).run_dir
    lifecycle.resume(folder, configured(*SMALL, *tracking, settings={"num_rounds": 5}))
    whole = of_records(folder)
    assert len(whole) == 5 and close(told(), whole)
    if name == "tensorboard":  # MLflow keeps what it was told before the kill, which were the same numbers
        as_if_killed_after(folder, 4)
        lifecycle.resume(folder)
        assert of_records(folder) == whole and close(told(), whole)
    lifecycle.resume(folder, configured(*SMALL, *tracking, settings={"num_rounds": 7}))
    assert len(of_records(folder)) == 7 and close(told(), of_records(folder))


def close(told: Told, records: Told) -> bool:
    """The same rounds with the same numbers; event files hold them in float32."""
    assert [one["round"] for one in told] == [one["round"] for one in records]
    for one, other in zip(told, records, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    return True


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_finished_run_is_told_afterwards(name: str) -> None:
    run(Path("a"), *SMALL, settings={"num_rounds": 3})
    tracking, told = as_told(name)
    assert cli.main(["resume", "a", *tracking]) == 0
    assert close(told(), of_records(Path("a")))


def test_mlflow_knows_configuration_and_end_and_tells_nobody_else() -> None:
    import mlflow.telemetry.client

    run(Path("a"), *SMALL, *as_told("mlflow")[0], settings={"num_rounds": 2})
    own = str(Path("a").absolute())
    (found,) = [one for one in runs_in("fedscale-local") if one.data.tags["run_dir"] == own]
    assert found.info.status == "FINISHED"
    assert found.data.params["strategy.name"] == "savic" and found.data.params["num_rounds"] == "2"
    assert mlflow.telemetry.client.get_telemetry_client() is None


# ---------------------------------------------------------------- trouble


@contextmanager
def failing(told: trackers.Told) -> Iterator[tuple[trackers.Send, int]]:
    def send(round: int, seconds: float, numbers: Any) -> None:
        raise ConnectionError("nobody listens")

    yield send, 0


@contextmanager
def hanging(told: trackers.Told) -> Iterator[tuple[trackers.Send, int]]:
    threading.Event().wait(20)
    yield (lambda *numbers: None), 0


@pytest.mark.parametrize(("tracker", "words"), [(failing, "nobody listens"), (hanging, "no answer in 0.2")])
def test_a_tracker_in_trouble_is_told_of_once_and_the_run_goes_on(
    tracker: Any, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "_tracker", lambda config: tracker)
    monkeypatch.setattr(trackers, "PATIENCE_SECONDS", 0.2)
    plain = run(Path("plain"), *SMALL, settings={"num_rounds": 3}).bytes
    assert run(Path("a"), *SMALL, "tracking=mlflow", settings={"num_rounds": 3}).bytes == plain
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "tracking=mlflow" in line]
    assert words in line and "the run goes on" in line
    assert run_dir.head(Path("a"))[1]["exit"] == "done"


def test_a_place_that_cannot_be_written_is_such_a_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    run(Path("a"), *SMALL, "tracking=tensorboard", settings={"num_rounds": 2, "tracking.dir": "file"})
    assert capsys.readouterr().err.count("tracking=tensorboard has failed") == 1
    assert run_dir.head(Path("a"))[1]["exit"] == "done"


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")]
)
@pytest.mark.parametrize("several", [[], ["-m", "seed=0,1"]])
def test_a_tracker_that_is_not_installed_is_one_message_before_any_work(
    name: str,
    package: str,
    several: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ImportError
    monkeypatch.delitem(sys.modules, f"fedscale_local.trackers.{name}", raising=False)
    assert cli.main(["run", *SMALL, f"tracking={name}", "num_rounds=2", *several]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedscale-local: tracking={name}: it needs the package {trackers.EXTRAS[name]}")
    assert line.endswith(f"install it with: pip install 'fedscale-local[{name}]'.")
    assert not Path("runs").exists()
    monkeypatch.undo()
    importlib.import_module(f"fedscale_local.trackers.{name}")


# ---------------------------------------------------------------- sweeps


@pytest.mark.slow
def test_the_cells_of_a_sweep_stand_side_by_side_in_tensorboard() -> None:
    assert (
        cli.main(
            ["run", "-m", *SMALL, "num_rounds=2", "tracking=tensorboard", "seed=0,1", "hydra.sweep.dir=s"]
        )
        == 0
    )
    cells = run_dir.cells(Path("s"))
    assert {path.name for path in Path("s/tensorboard").iterdir()} == {cell.name for cell in cells}
    assert len(cells) == 2 and all(cell.name.startswith(f"seed={k}-") for k, cell in enumerate(cells))
    for cell in cells:
        assert close(of_tensorboard(Path("s/tensorboard", cell.name)), of_records(cell))


@pytest.mark.slow
def test_a_sweep_is_one_experiment_of_mlflow_and_a_method_has_its_seeds_below_it() -> None:
    more = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=s"]
    swept = ["strategy=fedavg,savic", "seed=0,1"]
    assert cli.main(["run", "-m", *SMALL, "num_rounds=2", *as_told("mlflow")[0], *swept, *more]) == 0
    runs = runs_in("s")
    named = {one.info.run_id: one.info.run_name for one in runs}
    cells = {cell.name: cell for cell in run_dir.cells(Path("s"))}
    below = {
        one.info.run_name: named[one.data.tags["mlflow.parentRunId"]]
        for one in runs
        if one.info.run_name in cells
    }
    assert below == {name: name.partition(",")[0] for name in cells} and len(cells) == 4
    assert len(runs) == 6
    for cell in cells.values():
        assert close(of_mlflow(cell, "s"), of_records(cell))
