"""`fedscale-local resume`: what it extends, refuses, accepts and tells, and that one process at a time is at work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from gauntlet import STRATEGIES
from whole_runs import configured

from fedscale_local import checkpoint, cli, disk, experiment, identity, lifecycle, locks, rounds
from fedscale_local.errors import RunDirError

TINY = (
    "data=synthetic",
    "data.dimension=4",
    "num_clients=6",
    "clients_per_round=3",
    "model=logistic",
    "client.local_steps=2",
    "client.batch_size=4",
    "engine.workers=1",
)


@pytest.fixture(autouse=True)
def without_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSCALE_DEBUG", raising=False)
    monkeypatch.setattr("fedscale_local.reports.write", lambda run_dir: run_dir)


def run(name: str, *overrides: str, **settings: object) -> Path:
    return lifecycle.run(configured(*TINY, *overrides, settings={"run_dir": name, **settings}))


def results(run_dir: Path) -> tuple[bytes, bytes]:
    return (run_dir / "rounds.jsonl").read_bytes(), (run_dir / "model.safetensors").read_bytes()


def manifest(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "manifest.json").read_text())  # type: ignore[no-any-return]


# ---------------------------------------------------------------- more rounds


@pytest.mark.parametrize(("first", "then"), [(4, 9), (6, 7), (5, 6)])
def test_an_extended_run_equals_one_that_had_its_rounds_from_the_start(
    first: int, then: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the old last round was evaluated only because it was the last."""
    whole = run("whole", num_rounds=then, eval_every=3)
    short = run("short", num_rounds=first, eval_every=3)
    assert cli.main(["resume", "short", f"num_rounds={then}", "checkpoint_every=2"]) == 0
    assert results(short) == results(whole)
    assert f"after round {then}" in capsys.readouterr().out
    assert yaml.safe_load((short / "config.yaml").read_text())["num_rounds"] == then


def test_a_run_that_is_to_end_where_it_was_stopped_is_evaluated_there() -> None:
    whole = run("whole", num_rounds=4, eval_every=10)
    longer = run("longer", num_rounds=7, eval_every=10, checkpoint_every=1, checkpoint_keep=9)
    for round in (5, 6, 7):
        for file in longer.glob(f"checkpoints/round-00000{round}.*"):
            file.unlink()
    assert cli.main(["resume", "longer", "num_rounds=4"]) == 0
    assert results(longer) == results(whole)


def test_fewer_rounds_than_are_done_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    before = results(run("run", num_rounds=4))
    assert cli.main(["resume", "run", "num_rounds=3"]) == 2
    assert "num_rounds=3: 4 rounds are done in run; set num_rounds to 4 or more." in capsys.readouterr().err
    assert results(Path("run")) == before


@pytest.mark.parametrize("override", ["seed=1", "client.step_size=0.5", "eval_every=2", "run_dir=there"])
def test_what_decides_the_result_is_refused(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(run("run", num_rounds=2))
    assert cli.main(["resume", "run", override]) == 2
    err = capsys.readouterr().err
    assert f"{override}: it would change the result" in err and "resume takes num_rounds" in err
    assert results(Path("run")) == before


def test_what_does_not_may_change(capsys: pytest.CaptureFixture[str]) -> None:
    whole = run("whole", num_rounds=5)
    run("run", num_rounds=3)
    free = ["num_rounds=5", "checkpoint_keep=3", "round_timeout=60", "engine=in_process", "engine.workers=2"]
    assert cli.main(["resume", "run", *free]) == 0, capsys.readouterr().err
    assert results(Path("run")) == results(whole)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["checkpoint_keep"], config["engine"]["workers"]) == (3, 2)


# ---------------------------------------------------------------- what has changed


def test_a_changed_configuration_is_refused_with_the_difference_or_accepted_and_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("run", num_rounds=2)
    file = Path("run/config.yaml")
    file.write_text(file.read_text().replace("local_steps: 2", "local_steps: 3"))
    assert cli.main(["resume", "run", "num_rounds=4"]) == 2
    err = capsys.readouterr().err
    assert "client.local_steps was 2, is 3" in err and "--accept-changes" in err
    assert cli.main(["resume", "run", "num_rounds=4", "--accept-changes"]) == 0
    (resumed,) = manifest(Path("run"))["resumed"]  # type: ignore[misc]
    assert resumed["after_round"] == 2  # type: ignore[index]
    assert resumed["notes"] == ["a change is accepted: client.local_steps was 2, is 3"]  # type: ignore[index]


@pytest.mark.parametrize("what", ["code", "library", "mode"])
def test_changed_code_and_libraries_are_refused_once(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("run", num_rounds=2)
    file, told = Path("run/manifest.json"), manifest(Path("run"))
    if what == "code":
        told["code_sha256"], words = "0" * 64, "the code (sha256) was 000000000000, is "
    elif what == "library":
        told["versions"]["torch"], words = "1.0", "torch was 1.0, is "  # type: ignore[index]
    else:
        mode = told["engine"]["mode"]  # type: ignore[index]
        told["engine"]["mode"], words = "vectorised", f"engine.mode was vectorised, is {mode}"  # type: ignore[index]
    file.write_text(json.dumps(told))
    assert cli.main(["resume", "run", "num_rounds=3"]) == 2
    assert words in capsys.readouterr().err
    assert cli.main(["resume", "run", "num_rounds=3", "--accept-changes"]) == 0
    assert cli.main(["resume", "run", "num_rounds=4"]) == 0


def test_the_sum_of_the_code_covers_the_users_own_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "my_model_for_sums.py"
    module.write_text("import torch\n\ndef make():\n    return torch.nn.Linear(4, 10)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = configured(*TINY[:-5], "model._target_=my_model_for_sums.make")
    before = identity.now(config)
    module.write_text(module.read_text() + "\n")
    assert identity.now(config)["code_sha256"] != before["code_sha256"]


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("damaged", ["round-000006.json", "round-000006.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damaged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run("whole", num_rounds=8)
    run("run", num_rounds=6, checkpoint_every=3)
    file = Path("run/checkpoints", damaged)
    content = file.read_bytes()
    file.write_bytes(content[:-9] + b"x" + content[-8:])
    assert cli.main(["resume", "run", "num_rounds=8"]) == 0
    assert results(Path("run")) == results(whole)
    (resumed,) = manifest(Path("run"))["resumed"]  # type: ignore[misc]
    assert resumed["after_round"] == 3 and damaged.split(".")[0] in resumed["notes"][0]  # type: ignore[index]


def test_lines_that_were_lost_are_done_again() -> None:
    whole = run("whole", num_rounds=6)
    run("run", num_rounds=6, checkpoint_every=2)
    file = Path("run/rounds.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:4], lines[4].replace(b"3", b"4")]))
    lifecycle.resume(Path("run"))
    assert results(Path("run")) == results(whole)
    notes = manifest(Path("run"))["resumed"][0]["notes"]  # type: ignore[index]
    assert "rounds.jsonl does not hold the rounds before it" in notes[0]


# ---------------------------------------------------------------- one at a time, and the end of one

LONG = ("num_rounds=1000000", "checkpoint_every=0", "run_dir=long")


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedscale_local.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def await_rounds(process: subprocess.Popen[str], run_dir: Path, count: int) -> None:
    deadline = time.monotonic() + 100
    file = run_dir / "rounds.jsonl"
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_done_and_excludes_others_meanwhile(
    sign: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start("run", *TINY[:-1], "engine.workers=2", *LONG)
    try:
        await_rounds(process, Path("long"), 20)
        assert cli.main(["resume", "long"]) == 2
        err = capsys.readouterr().err
        assert f"run_dir=long: process {process.pid} (" in err and f"kill {process.pid}" in err
        process.send_signal(sign)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "fedscale-local: interrupted; carry on with: fedscale-local resume long"
    found = checkpoint.newest(Path("long")).checkpoint
    done = len(Path("long/rounds.jsonl").read_bytes().splitlines())
    assert found is not None and 20 <= done - 1 <= found.round <= done
    assert cli.main(["resume", "long", f"num_rounds={found.round + 5}"]) == 0
    assert results(Path("long")) == results(run("whole", num_rounds=found.round + 5))


def test_the_lock_is_free_when_its_holder_is_gone_and_names_it_before(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locks.hold(tmp_path / "run"):
            if os.fork() == 0:  # a worker, which lives longer
                time.sleep(60)
                os._exit(0)
            os.write(writing, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    with (
        pytest.raises(RunDirError, match=f"process {child} .* is at work in it"),
        locks.hold(tmp_path / "run"),
    ):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locks.hold(tmp_path / "run"):
        pass


def test_a_failure_says_how_to_carry_on_and_the_run_can(capsys: pytest.CaptureFixture[str]) -> None:
    """Here the memory of this process is used up in round 4."""
    whole, round_ = run("whole", num_rounds=6), rounds._round

    def failing(experiment: object, strategy: object, grid: object, round: int, *more: object) -> object:
        if round == 4:
            raise MemoryError("no room for 7 tensors")
        return round_(experiment, strategy, grid, round, *more)  # type: ignore[arg-type]

    with patch.object(rounds, "_round", failing):
        assert cli.main(["run", *TINY, "num_rounds=6", "run_dir=run"]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedscale-local: ")]
    assert len(told) == 1 and "no room for 7 tensors" in told[0]
    assert told[0].endswith("carry on with: fedscale-local resume run")
    found = checkpoint.newest(Path("run")).checkpoint
    assert found is not None and found.round == 3
    lifecycle.resume(Path("run"))
    assert results(Path("run")) == results(whole)


def test_two_runs_that_chose_one_directory_do_not_mix() -> None:
    config = configured(*TINY, settings={"run_dir": "run", "num_rounds": 2})
    run("run", num_rounds=2)
    before = results(Path("run"))
    built = experiment.build(config)
    with pytest.raises(RunDirError, match="another run has just been there"):
        lifecycle.begin(built, {}, lambda: None)
    assert results(Path("run")) == before


# ---------------------------------------------------------------- what is in one


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_what_was_remembered_of_a_round_is_not_changed_by_the_next(name: str) -> None:
    """A checkpoint is written while later rounds compute: no tensor of it may be written into meanwhile."""
    remembered: list[tuple[checkpoint.Checkpoint, str]] = []
    offer = rounds.Writer.offer

    def sum_of(kept: checkpoint.Checkpoint) -> str:
        tree, leaves = checkpoint.encode(kept.state)
        return repr((json.dumps(tree), [leaf.tolist() for leaf in leaves.values()]))

    def watched(self: rounds.Writer, kept: checkpoint.Checkpoint, is_due: bool) -> None:
        remembered.append((kept, sum_of(kept)))
        offer(self, kept, is_due)

    with patch.object(rounds.Writer, "offer", watched):
        line = STRATEGIES[name]
        run("run", f"strategy={name}", num_rounds=5, dtype="float64", **line.settings)
    assert [kept.round for kept, _ in remembered] == [1, 2, 3, 4, 5]
    for kept, before in remembered:
        assert sum_of(kept) == before


def test_lists_texts_and_bytes_survive(tmp_path: Path) -> None:
    import numpy as np

    state = {
        "list": [1, [2.5, None]],
        "tuple": (1, "x"),
        "bytes": b"\0\xff",
        "arrays": [np.arange(3), np.ones(2)],
    }
    disk.write(tmp_path / "rounds.jsonl", b"")
    checkpoint.write(tmp_path, checkpoint.Checkpoint(1, state, {}, 0, {}), keep=1)
    found = checkpoint.newest(tmp_path).checkpoint
    assert found is not None
    assert {key: found.state[key] for key in ("list", "tuple", "bytes")} == {
        key: state[key] for key in ("list", "tuple", "bytes")
    }
    for kept, before in zip(found.state["arrays"], state["arrays"], strict=True):  # type: ignore[call-overload]
        assert np.array_equal(kept, before)


def test_as_many_checkpoints_are_kept_as_are_asked_for() -> None:
    write = checkpoint.write

    def noted(run_dir: Path, kept: checkpoint.Checkpoint, keep: int) -> None:
        write(run_dir, kept, keep)
        written.append(kept.round)

    for keep in (1, 3):
        written: list[int] = []
        with patch.object(checkpoint, "write", noted):
            run_dir = run(f"keep-{keep}", num_rounds=8, checkpoint_every=1, checkpoint_keep=keep)
        found = sorted(int(file.stem[-6:]) for file in run_dir.glob("checkpoints/*.json"))
        assert found == written[-keep:] and found[-1] == 8
        shutil.rmtree(run_dir)
