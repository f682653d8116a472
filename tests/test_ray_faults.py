"""Faults on Ray, with real processes: clients that die, exit or hang, and a command that is interrupted or killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import real_processes
import touchy_model
import whole_runs
from real_processes import lines, marked

from clients import training

SIZES = (9, 4, 7, 5)
DYING, EXITING, SLEEPING = 1, 0, 2
MODEL = ["data=arrays", "partition=natural", "num_clients=null", "clients_per_round=null", "model=custom"]
MODEL += ["model._target_=touchy_model.Touchy", "strategy=fedavg", "eval_clients=false"]
ON_RAY = ["engine=ray", "engine.workers=1"]
until = partial(real_processes.until, seconds=200)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc"),
]


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the commands have their temporary files: a short path, for the sockets that Ray has in it."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
        yield Path(folder)


def commanded(
    outside: Path,
    arguments: list[str],
    trouble: Callable[[subprocess.Popen[str]], Any] = lambda process: None,
) -> tuple[int, str]:
    """Status and message of a command that leaves nothing behind."""
    # A shell's background job would ignore Ctrl-C.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from fedscale_local.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        trouble(process)
        said = process.communicate(timeout=300)[1]
    until(lambda: not list(outside.glob("fedscale-*")))
    until(lambda: not marked(f"TMPDIR={outside}"))
    return process.returncode, said


def test_a_worker_that_dies_is_replaced_and_a_command_that_ends_early_leaves_nothing(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker has all clients. It dies in round 1; then the command is interrupted, killed, and carried on."""
    arrays = touchy_model.save(tmp_path / "four.npz", SIZES, {DYING: touchy_model.DIE})
    run_dir, once = tmp_path / "run", tmp_path / "once"
    overrides = [*MODEL, f"data.path={arrays}", "num_rounds=400", "checkpoint_every=1"]

    def after(round: int, sign: int, process: subprocess.Popen[str]) -> None:
        until(lambda: len(lines(run_dir)) >= round or process.poll() is not None)
        process.send_signal(sign)

    begin = ["run", *overrides, *ON_RAY, f"+model.once={once}", f"run_dir={run_dir}"]
    status, said = commanded(outside, begin, partial(after, 3, signal.SIGINT))
    assert status == 130, said
    found = lines(run_dir)
    assert [failure["client"] for failure in found[0]["failures"]] == [0, 1, 2, 3]
    assert all("actor" in failure["reason"].lower() for failure in found[0]["failures"])
    assert [line["failures"] for line in found[1:]] == [[]] * (len(found) - 1)

    at = len(found) + 3
    status, _ = commanded(outside, ["resume", str(run_dir)], partial(after, at, signal.SIGKILL))
    assert status == -signal.SIGKILL
    done = len(lines(run_dir))
    assert at <= done < 400
    assert [line["failures"] for line in lines(run_dir)[1:]] == [[]] * (done - 1), "none is of Ray's own end"
    on = ["resume", str(run_dir), f"num_rounds={done + 1}", "engine=in_process", "engine.mode=looped"]
    status, said = commanded(outside, [*on, "--accept-changes"])
    assert status == 0, said

    batches = training._batches

    def lost_in_round_1(experiment: Any, order: training.Order) -> Any:
        if order.round == 1:
            raise OSError("its worker died")
        return batches(experiment, order)

    monkeypatch.setattr(training, "_batches", lost_in_round_1)
    settings = {"data.path": str(arrays), "num_rounds": done + 1}
    here = whole_runs.run(
        tmp_path / "here",
        *MODEL,
        f"+model.once={once}",
        "engine.mode=looped",
        "engine.workers=1",
        settings=settings,
    )
    assert (run_dir / "model.safetensors").read_bytes() == here.bytes[1]


def test_too_few_replies_end_a_run_with_their_reasons(outside: Path, tmp_path: Path) -> None:
    """One client exits and one hangs, so the last one's turn does not come: one of four is done."""
    faults = {EXITING: touchy_model.EXIT, SLEEPING: touchy_model.SLEEP}
    arrays = touchy_model.save(tmp_path / "four.npz", SIZES, faults)
    run_dir = tmp_path / "run"
    overrides = [*MODEL, f"data.path={arrays}", "num_rounds=2", "round_timeout=6.0", "min_replies=2"]
    status, said = commanded(outside, ["run", *overrides, "on_too_few=stop", *ON_RAY, f"run_dir={run_dir}"])
    told = said.splitlines()[-1]
    assert status == 1 and "1 of 4 replies can be used, min_replies=2" in told
    assert "client 0: client 0, round 1, train: SystemExit: 0" in told
    assert "client 2: client 2, round 1, train: no reply in time" in told
    assert told.endswith(f"carry on with: fedscale-local resume {run_dir}")
    assert json.loads((run_dir / "manifest.json").read_text())["exit"].startswith("failed")
