"""Sweeps: which cells there are, what is done again, what is told of those that fail, and that nothing leaks."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from whole_runs import configured

from fedscale_local import cells, cli, compose, fresh, identity, locks, processes, progress, run_dir, sweep
from fedscale_local.cells import Cell

SMALL = [
    "num_clients=3",
    "num_rounds=2",
    "client.local_steps=1",
    "client.batch_size=full",
    "engine.workers=1",
]
TINY = ["data=quadratic", "data.dimension=2", "data.examples=4", *SMALL]
ARRAYS = ["data=arrays", "data.path=a.npz", "partition=iid", "model=logistic", *SMALL]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


BREAKING = """
import os
import re
import threading
import time
import torch
built = 0

class Breaking(torch.nn.Linear):
    def __init__(self, how):
        global built
        built += 1
        print("built", built, flush=True)
        super().__init__(2, 1)
        if how == "raise":
            raise RuntimeError("it broke")
        if how == "die":
            os.kill(os.getpid(), 9)
        if how == "orphan":
            print("process", os.getpid(), flush=True)
            os.kill(os.getppid(), 9)
            time.sleep(1000)

class Leaking(torch.nn.Linear):
    def __init__(self, mark):
        super().__init__(4, 3)
        share = [os.environ.get(name) for name in ("FEDSCALE_CORES", "OMP_NUM_THREADS")]
        print("share", *share, flush=True)
        left = [name for name in os.environ if name.startswith("LEFT")]
        left += [thread.name for thread in threading.enumerate() if thread.name.startswith("LEFT")]
        left += [name for name in vars(torch) if name.startswith("LEFT")]
        print("left", *left, "threads", torch.get_num_threads(), "dtype", torch.get_default_dtype(), flush=True)
        os.environ["LEFT" + str(mark)] = "1"
        setattr(torch, "LEFT" + str(mark), 1)
        threading.Thread(target=time.sleep, args=(1000,), name="LEFT" + str(mark), daemon=True).start()
        torch.set_num_threads(7)
        torch.set_default_dtype(torch.float64)
"""
"""Models that cannot be built, take their process or its parent with them, or are well; one that leaves a mess."""


@pytest.fixture(scope="module", autouse=True)
def one_fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The process that forks cells is kept from test to test; it can import BREAKING."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "breaking.py").write_text(BREAKING)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        end = fresh.close_here
        patch.setattr(fresh, "close_here", lambda: None)
        yield
        end()


def run(*overrides: str, problem: Sequence[str] = TINY) -> int:
    return cli.main(["run", "-m", *problem, *overrides])


def expanded(*overrides: str, folder: str = "s") -> list[Cell]:
    """The cells of these overrides, none of them begun."""
    planned = compose.sweep([*TINY, *overrides])
    Path(folder, "logs").mkdir(parents=True, exist_ok=True)
    return sweep.expand(Path(folder), compose.configs(planned.jobs), planned.swept)


def names(found: Sequence[Cell]) -> list[str]:
    return [cell.run_dir.name.rpartition("-")[0] for cell in found]


def stamps(folder: str) -> dict[str, int]:
    """When each cell was last written to."""
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(folder).glob("*/manifest.json")}


# ---------------------------------------------------------------- which cells


def test_hydra_expands_and_directories_are_named_by_what_sets_them_apart() -> None:
    found = expanded("strategy=fedavg,savic", "seed=range(2)", "client.step_size=choice(0.1)")
    assert names(found) == [f"strategy={name},seed={seed}" for name in ("fedavg", "savic") for seed in (0, 1)]


def test_seeds_that_are_filled_in_are_those_that_hydra_composes() -> None:
    planned = compose.sweep([*TINY, "strategy=fedavg,savic", "seed=range(2)"])
    assert compose.configs(planned.jobs) == [compose.config(job) for job in planned.jobs]


def test_the_same_command_has_the_same_directory_and_another_has_another() -> None:
    def folder(*overrides: str) -> str:
        return compose.sweep(overrides).folder

    assert folder("strategy=fedavg,savic", "seed=0,1") == folder("strategy=fedavg,savic", "seed=0,1")
    assert folder("seed=0,1").startswith("sweeps/seed-")
    assert folder("experiment=fedavg_vs_savic").startswith("sweeps/fedavg_vs_savic-")
    others = [("seed=0,1",), ("seed=0,2",), ("seed=0,1", "num_rounds=5"), ("experiment=fedavg_vs_savic",)]
    assert len({folder(*overrides) for overrides in others}) == 4
    assert folder("seed=0,1") == folder("seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert folder("seed=0,1", "hydra.sweep.dir=mine") == "mine"


def save_arrays(scale: float) -> None:
    np.savez("a.npz", x=scale * np.ones((12, 2), np.float32), y=np.arange(12) % 2)


def test_a_cell_is_known_by_everything_that_decides_its_bytes_and_by_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key(**settings: Any) -> dict[str, Any]:
        dotted = {name.replace("__", "."): value for name, value in settings.items()}
        (found,) = identity.of_runs([configured(*ARRAYS, settings=dotted)])
        return found

    def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
        return {name for name in before if before[name] != after[name]}

    save_arrays(1)
    plain = key()
    free: dict[str, Any] = {
        "checkpoint_every": 1,
        "round_timeout": 5,
        "engine__workers": 2,
        "run_dir": "elsewhere",
    }
    for name, value in free.items():
        assert key(**{name: value}) == plain, name
    for name, value in {"num_rounds": 3, "client__step_size": 0.5, "engine__mode": "looped"}.items():
        assert changed(plain, key(**{name: value})) == {"config"}, name
    assert changed(plain, key(seed=1)) == {"config", "partition"}
    save_arrays(2)
    assert changed(plain, key()) == {"data"}
    save_arrays(1)
    with monkeypatch.context() as patch:
        patch.setattr(identity.metadata, "version", lambda name: "0")
        assert changed(plain, key()) == {"versions"}
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_sum_of_code", lambda config: "0")
        assert changed(plain, key()) == {"code_sha256"}
    assert key() == plain


def test_data_that_cannot_be_had_leave_the_others_their_identity() -> None:
    save_arrays(1)
    bad, good = identity.of_runs(
        [configured(*ARRAYS, settings={"data.path": path}) for path in ("b.npz", "a.npz")]
    )
    assert len(good["data"]) == 64 and "b.npz" in bad["data"]


def test_what_is_the_same_run_is_one_cell_unless_that_is_what_is_swept() -> None:
    assert len(expanded("seed=1,1")) == 1
    assert len(expanded("engine.workers=1,2")) == 2


# ---------------------------------------------------------------- what is done, and what again


def test_states_are_read_from_directories() -> None:
    (cell,) = expanded("seed=0")
    assert cells.state(cell) == "absent"
    cell.outcome.write_text(json.dumps({"exit": 2, "message": "no"}))
    assert cells.state(cell) == "failed"
    cell.run_dir.mkdir()
    for ended, outcome, expected in (
        ("running", 0, "half"),
        ("interrupted", 0, "half"),
        ("failed: FedscaleError: it broke", 0, "failed"),
        ("running", -9, "failed"),
        ("done", 0, "half"),
    ):
        (cell.run_dir / "manifest.json").write_text(json.dumps({"exit": ended}))
        cell.outcome.write_text(json.dumps({"exit": outcome, "message": ""}))
        assert cells.state(cell) == expected, ended
    (cell.run_dir / "report.html").write_text("")
    assert cells.state(cell) == "half"
    for steps, expected in ((0, "done"), (5, "half")):
        saved = json.loads(cell.config) | {"eval_personal_steps": steps}
        (cell.run_dir / "config.yaml").write_text(yaml.safe_dump(saved))
        assert cells.state(cell) == expected, steps


@pytest.mark.slow
def test_finished_cells_stay_new_ones_are_added_and_force_does_all_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("seed=0", "strategy=fedavg,savic", "hydra.sweep.dir=s") == 0
    first = stamps("s")
    assert run("seed=0,1", "strategy=fedavg", "hydra.sweep.dir=s") == 0
    second = stamps("s")
    assert len(first) == 2 and len(second) == 3 and first.items() <= second.items()
    out = capsys.readouterr().out
    assert "sweep   s (2 runs, 0 failed)" in out and "report  s/report.html" in out
    assert len(run_dir.cells(Path("s"))) == 3
    assert run("seed=0,1", "strategy=fedavg", "hydra.sweep.dir=s", "--force") == 0
    third = stamps("s")
    assert {name for name in third if third[name] != second[name]} == {
        cell.run_dir.name for cell in expanded("seed=0,1", "strategy=fedavg")
    }


def test_a_half_done_cell_is_carried_on() -> None:
    assert run("seed=0", "num_rounds=4", "checkpoint_every=1", "hydra.sweep.dir=s") == 0
    (folder,) = (path.parent for path in Path("s").glob("*/manifest.json"))
    whole = (folder / "rounds.jsonl").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"exit": "running"}))
    for path in folder.glob("checkpoints/round-000004*"):
        path.unlink()
    (folder / "rounds.jsonl").write_bytes(whole[: len(whole) - 10])
    last = max((int(path.stem[6:]) for path in folder.glob("checkpoints/*.json")), default=0)
    assert run("seed=0", "num_rounds=4", "checkpoint_every=1", "hydra.sweep.dir=s") == 0
    assert json.loads((folder / "manifest.json").read_text())["resumed"][0]["after_round"] == last < 4
    assert (folder / "rounds.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_an_evaluation_that_is_asked_for_later_is_done_on_finished_cells() -> None:
    problem = ["data=synthetic", "data.dimension=2", "data.num_classes=2", "model=logistic", *SMALL]

    def asked(*more: str) -> tuple[list[bytes], list[set[str]]]:
        assert run("strategy=fedavg,savic", "seed=0", "hydra.sweep.dir=s", *more, problem=problem) == 0
        found = sorted(path.parent for path in Path("s").glob("*/manifest.json"))
        told = [path / "clients.json" for path in found]
        keys = [set(json.loads(path.read_bytes())) if path.exists() else set() for path in told]
        return [(path / "rounds.jsonl").read_bytes() for path in found], keys

    before, of_model = asked()
    after, more = asked("eval_personal_steps=2")
    assert len(before) == 2 and after == before
    assert "test_loss" in of_model[0] and all("personal_test_loss" in keys for keys in more)
    assert "own models" in Path("s/report.html").read_text()
    rounds = [json.loads(path.read_bytes())["resumed"] for path in Path("s").glob("*/manifest.json")]
    assert [[one["after_round"] for one in resumed] for resumed in rounds] == [[2], [2]]
    assert asked() == (before, of_model) and asked("eval_clients=false") == (before, [set(), set()])


@pytest.mark.slow
def test_what_was_killed_before_it_was_a_run_is_begun_again() -> None:
    (cell,) = expanded("seed=0")
    cell.run_dir.mkdir()
    (cell.run_dir / "config.yaml").write_text("half")
    assert run("seed=0", "hydra.sweep.dir=s") == 0 and cells.state(cell) == "done"


@pytest.mark.slow
def test_other_data_make_new_cells_which_take_the_place_of_the_old() -> None:
    for scale in (1, 2):
        save_arrays(scale)
        assert run("seed=0", "strategy=fedavg,savic", "hydra.sweep.dir=s", problem=ARRAYS) == 0
    assert len(stamps("s")) == 4 and len(run_dir.cells(Path("s"))) == 2
    assert cli.main(["compare", "s"]) == 0


# ---------------------------------------------------------------- failures


def test_a_failing_cell_is_recorded_and_the_others_go_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "model=custom",
        "model._target_=breaking.Breaking",
        "model.how=raise,die,well",
        "hydra.sweep.dir=s",
    )
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert (
        "RuntimeError: it broke" in out
        and "its process was ended by signal 9" in out
        and "Traceback" not in err
    )
    assert "sweep   s (3 runs, 2 failed)" in out
    rows = {row["overrides"]: row for row in json.loads(Path("s/sweep.json").read_text())["cells"]}
    assert {k: (row["state"], row.get("exit")) for k, row in rows.items()} == {
        "model.how=raise": ("failed", 2), "model.how=die": ("failed", -9), "model.how=well": ("done", None),
    }  # fmt: skip
    for row in rows.values():  # each was built in a process in which none was before
        assert "built 1" in (place / "s" / "logs" / f"{row['run_dir']}.log").read_text().splitlines()[0]


@pytest.mark.slow
def test_the_process_that_forks_cells_is_killed_and_only_one_cell_fails(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "model=custom",
        "model._target_=breaking.Breaking",
        "model.how=orphan,well",
        "hydra.sweep.dir=s",
    )
    assert run(*arguments) == 1
    assert "its process was ended by signal 9" in capsys.readouterr().out
    rows = {row["overrides"]: row for row in json.loads(Path("s/sweep.json").read_text())["cells"]}
    assert rows["model.how=orphan"]["state"] == "failed" and rows["model.how=orphan"]["exit"] == -9
    assert rows["model.how=well"]["state"] == "done"
    (line,) = (
        line
        for line in (place / "s" / "logs" / f"{rows['model.how=orphan']['run_dir']}.log")
        .read_text()
        .splitlines()
        if line.startswith("process ")
    )
    assert not processes.is_alive(int(line.split()[1]))


@pytest.mark.slow
def test_another_share_of_the_cores_gets_another_process() -> None:
    kept, fresh._here = fresh._here, {}
    try:
        for cores in (1, 2, None):
            own = fresh.here(cores)
            assert own.call("os.getenv", "FEDSCALE_CORES").value == (None if cores is None else str(cores))
            assert fresh.here(cores) is own and list(fresh._here) == [cores]
        own.process.kill()
        assert own.call("os.getpid", None) == (-signal.SIGKILL, None) and fresh.here() is not own
    finally:
        fresh._here.pop(None).close()
        fresh._here = kept


def test_wrong_cells_are_refused_before_any_begins(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("seed=0,-1", "hydra.sweep.dir=s") == 2
    assert "seed=-1" in capsys.readouterr().err and not (place / "s").exists()


def test_force_is_for_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *TINY, "--force"]) == 2
    assert "--force: only a sweep" in capsys.readouterr().err


# ---------------------------------------------------------------- several at once


def test_a_cell_that_another_process_has_is_left_to_it() -> None:
    (cell,) = expanded("seed=0")
    with locks.hold(cell.run_dir):
        cells.attempt(cell, os.getpid(), None)
        assert cells.state(cell) == "absent" and not cell.log.exists()
    shutil.rmtree(cell.run_dir)
    cells.attempt(cell, os.getpid(), None)
    assert cells.state(cell) == "done"


def test_no_job_is_made_for_a_cell_that_another_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    found = expanded("seed=0,1")
    theirs = locks.hold(found[0].run_dir)
    launched: list[list[int]] = []

    def launch(planned: object, numbers: list[int], attempt: object) -> dict[int, str]:
        launched.append(numbers)
        for number in numbers:
            cells.record(found[number], cells.Outcome(1, "it was tried"))
        return {}

    monkeypatch.setattr(compose, "launch", launch)
    monkeypatch.setattr(sweep.time, "sleep", lambda seconds: theirs.__exit__(None, None, None))
    theirs.__enter__()
    sweep.work_off(compose.sweep(TINY), found)
    assert launched == [[1], [0]]


def test_a_lock_is_seen_and_seeing_takes_nothing(place: Path) -> None:
    assert not locks.is_held(place / "none") and not (place / "none").exists()
    with locks.hold(place / "a"):
        code = "from fedscale_local import locks; from pathlib import Path; print(locks.is_held(Path('a')))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "True"
    assert not locks.is_held(place / "a")


def test_cores_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    def at_once(name: str, **keys: object) -> int | None:
        config = compose._composed(f"hydra/launcher={name}").hydra.launcher
        return compose._at_once(OmegaConf.merge(config, keys), 3)

    assert (at_once("basic"), at_once("joblib", n_jobs=2), at_once("joblib", n_jobs=8)) == (1, 2, 3)
    assert (at_once("submitit_local"), at_once("submitit_slurm", partition="long")) == (3, None)
    from fedscale_local.engines import cost_model

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    monkeypatch.setenv("FEDSCALE_CORES", "3")
    assert cost_model.num_cores() == 3


@pytest.mark.slow
def test_side_by_side_cells_share_the_cores_and_leave_nothing_to_each_other(place: Path) -> None:
    """Rounds that are long enough for workers, of which a cell has all cores alone, and its share beside another."""
    problem = [
        "data=synthetic",
        "data.dimension=4",
        "data.num_classes=3",
        "num_clients=8",
        "clients_per_round=null",
    ]
    problem += [
        "num_rounds=2",
        "client=steps",
        "client.local_steps=400",
        "engine.mode=looped",
        "model=custom",
    ]
    problem += ["model._target_=breaking.Leaking", "hydra/launcher=joblib", "eval_clients=false"]
    cores = len(os.sched_getaffinity(0))

    def found(folder: str) -> tuple[set[int], set[str]]:
        workers = {
            json.loads(path.read_text())["engine"]["workers"]
            for path in place.glob(f"{folder}/*/manifest.json")
        }
        logs = [path.read_text() for path in place.glob(f"{folder}/logs/*.log")]
        lines = {line for log in logs for line in log.splitlines() if line.startswith(("share", "left"))}
        return workers, lines

    def asked(folder: str, at_once: int, *marks: int) -> None:
        swept = [f"model.mark={','.join(map(str, marks))}", f"hydra.launcher.n_jobs={at_once}"]
        assert run(*swept, f"hydra.sweep.dir={folder}", problem=problem) == 0
        assert len(list(place.glob(f"{folder}/*/manifest.json"))) == len(marks)

    asked("two", 2, 1, 2, 3, 4, 5)
    share = max(1, cores // 2)
    assert found("two") == ({share}, {f"share {share} 1", "left threads 1 dtype torch.float32"})
    asked("one", 1, 1)
    workers, _ = found("one")
    assert workers == {cores}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_every_launcher_gives_the_same_bytes(launcher: str) -> None:
    more = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    assert run("strategy=fedavg,savic", "seed=0", "hydra.sweep.dir=serial") == 0
    assert (
        run("strategy=fedavg,savic", "seed=0", "hydra.sweep.dir=other", f"hydra/launcher={launcher}", *more)
        == 0
    )
    found = [
        {p.parent.name: p.read_bytes() for p in Path(s).glob("*/rounds.jsonl")} for s in ("serial", "other")
    ]
    assert len(found[0]) == 2 and found[0] == found[1]


@pytest.mark.slow
def test_fresh_calls_answer_and_a_closed_one_ends_what_is_under_way() -> None:
    own = fresh.Fresh()
    assert own.call("json.loads", "[1, 2]") == (0, [1, 2])
    assert own.call("sys.exit", 3).exit == 3
    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.call("time.sleep", 1000, beat=beat)
    own.close()
    assert own.process.returncode == 1


# ---------------------------------------------------------------- progress


def test_progress_counts_cells_and_rounds_of_all_and_says_what_is_left() -> None:
    found = expanded("seed=0,1", "num_rounds=4")
    stream = io.StringIO()
    with progress.follow_sweep(found, console=Console(file=stream, force_terminal=False)):
        found[0].run_dir.mkdir()
        (found[0].run_dir / "rounds.jsonl").write_text('{"round": 1}\n{"round": 2}\n')
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("cells 0/2  rounds 2/8  ") and " left  " in last
    found[1].outcome.write_text(json.dumps({"exit": 1, "message": ""}))
    with progress.follow_sweep(found, console=Console(file=stream, force_terminal=False)):
        pass
    assert stream.getvalue().splitlines()[-1].startswith("cells 0/2, 1 failed  rounds 2/4  ")


def test_a_terminal_has_one_bar_over_the_rounds_of_all_cells_with_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of eight rounds in 10 s leave 30 s for six; then one cell is done and the other has failed."""
    clock = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    found = expanded("seed=0,1", "num_rounds=4")
    for cell in found:
        cell.run_dir.mkdir()

    def drawn(rounds: Sequence[int], seconds: float) -> str:
        """What is left on the screen after so many rounds of each cell in that time."""
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=True, width=100)
        with progress.follow_sweep(found, console=console):
            for cell, count in zip(found, rounds, strict=True):
                lines = [json.dumps({"round": 1 + i}) + "\n" for i in range(count)]
                (cell.run_dir / "rounds.jsonl").write_text("".join(lines))
            clock[0] += seconds
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
        return text.replace("\r", "\n").rstrip().splitlines()[-1].rstrip()

    def bar(done: int, of: int) -> str:
        """Twenty wide, in halves; the rest differs by its colour, and by the gap before it."""
        whole, half = divmod(40 * done // of, 2)
        text = "━" * whole + "╸" * half
        return text if done == of else (text + "╺" * (1 - half)).ljust(20, "━")

    assert drawn((2, 0), 10) == f"cells 0/2  rounds 2/8 {bar(2, 8)} 30.0 s left  10 s"
    assert drawn((2, 1), 5) == f"cells 0/2  rounds 3/8 {bar(3, 8)} 25.0 s left  5 s"
    found[1].outcome.write_text(json.dumps({"exit": 1, "message": ""}))
    assert drawn((4, 1), 6) == f"cells 0/2, 1 failed  rounds 5/5 {bar(5, 5)} 6 s"


@pytest.mark.slow
def test_control_c_ends_a_sweep_with_130_and_the_same_command_carries_it_on(place: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "fedscale_local.cli",
        "run",
        "-m",
        *TINY,
        "seed=0,1",
        "hydra.sweep.dir=s",
    ]
    argv.append("num_rounds=100000")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (found := list(place.glob("s/*/rounds.jsonl"))):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "fedscale-local: interrupted; the same command carries the sweep on"
    assert (
        len(found) == 1
        and json.loads((found[0].parent / "manifest.json").read_text())["exit"] == "interrupted"
    )
