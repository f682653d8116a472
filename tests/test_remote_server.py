"""A SuperLink in Flower's default isolation starts the server's side itself: what comes back, and what is left of it.

Real processes on loopback. The server's side has its temporary files in a folder of its own, which must be empty again.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import whole_runs
from real_processes import marked, until

from fedscale_local import federation, processes
from fedscale_local.cli import main
from fedscale_local.engines import flower_command, submit, superlink
from fedscale_local.errors import RunDirError

NODES, ROUNDS = 2, 3
PROBLEM = ["data=synthetic", "partition=natural", "model=logistic", "scaling=adam", f"num_clients={NODES}"]
PROBLEM += ["clients_per_round=null", "checkpoint_every=1"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("remote_server"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc"),
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the SuperLink's side keeps temporary files."""
    return tmp_path_factory.mktemp("host")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, host: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("federation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(host))
        federation.up(folder, NODES, serverapp="remote")
    yield folder
    federation.down(folder)
    assert not marked(f"TMPDIR={host}")


@pytest.fixture(autouse=True)
def nothing_left(nodes: Path, host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file and no process of a run is left, neither here nor there."""
    here = tmp_path / "tmp"
    here.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(here))
    monkeypatch.setenv("TMPDIR", str(here))
    yield
    until(lambda: not list(here.iterdir()) and not marked(f"TMPDIR={here}"))
    until(lambda: not list(host.glob("fedscale-*")) and not at_work(nodes))


def at_work(nodes: Path) -> list[bytes]:
    """The commands of ServerApps and ClientApps that run."""
    found = []
    for home in (nodes / "superlink", *(nodes / "nodes").iterdir()):
        for process in processes.processes_of(home):
            try:
                found.append(Path(f"/proc/{process}/cmdline").read_bytes())
            except OSError:
                continue
    return [command for command in found if b"flwr-serverapp" in command or b"flwr-clientapp" in command]


def outcome(run_dir: Path) -> list[bytes]:
    return [(run_dir / name).read_bytes() for name in ("rounds.jsonl", "model.safetensors")]


def command(*arguments: Any) -> list[str]:
    """The command with Ctrl-C as a terminal gives it: a shell's background job would ignore it."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from fedscale_local.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, arguments)]


def on_nodes(nodes: Path, run_dir: Path, *overrides: str) -> list[str]:
    return [*PROBLEM, "engine=superlink", f"superlink.federation={nodes}", f"run_dir={run_dir}", *overrides]


def test_interrupted_and_carried_on_it_ends_with_the_bytes_of_a_run_in_process(
    nodes: Path, tmp_path: Path
) -> None:
    run_dir, seen = tmp_path / "run", []
    start = command("run", *on_nodes(nodes, run_dir, f"num_rounds={ROUNDS}"))
    with subprocess.Popen(start, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            seen.append(line)
            if line.startswith("round 1/"):  # the bar has moved while the run goes on
                until(lambda: (run_dir / "checkpoints" / "round-000001.json").exists())
                process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert seen[-1] == f"fedscale-local: interrupted; carry on with: fedscale-local resume {run_dir}\n"
    assert not (run_dir / "model.safetensors").exists() and not list(run_dir.rglob("*.part"))
    home = nodes / "superlink"
    told = flower_command.flwr(["list", flower_command.HERE], home, flower_command.environment(home))
    assert [row["status"] for row in told["runs"]] == ["finished:stopped"]

    done = subprocess.run(command("resume", run_dir), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"round {ROUNDS}/{ROUNDS}" in done.stderr
    here = whole_runs.run(tmp_path / "here", *PROBLEM, f"num_rounds={ROUNDS}", "engine.mode=looped")
    assert outcome(run_dir) == outcome(here.run_dir)
    rounds = [json.loads(line)["round"] for line in (run_dir / "timing.jsonl").read_text().splitlines()]
    assert rounds == list(range(1, ROUNDS + 1))
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert (manifest["exit"], manifest["engine"]["serverapp"]) == ("done", "remote")
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        f"round-{round:06d}.{kind}" for round in (ROUNDS - 1, ROUNDS) for kind in ("json", "safetensors")
    ]


def test_a_command_that_is_killed_leaves_a_run_that_is_stopped_by_its_id_and_carried_on(
    nodes: Path, tmp_path: Path
) -> None:
    run_dir, home, overrides = tmp_path / "run", nodes / "superlink", ["num_rounds=4"]
    env = flower_command.environment(home)
    with subprocess.Popen(
        command("run", *on_nodes(nodes, run_dir, *overrides)), stderr=subprocess.DEVNULL
    ) as process:
        until(lambda: (run_dir / "checkpoints" / "round-000001.json").exists())
        process.kill()
    until(lambda: not marked(f"TMPDIR={tmp_path / 'tmp'}"))
    runs = flower_command.flwr(["list", flower_command.HERE], home, env)["runs"]
    (going,) = [row["run-id"] for row in runs if not row["status"].startswith("finished")]
    flower_command.flwr(["stop", going, flower_command.HERE], home, env)
    done = subprocess.run(command("resume", run_dir), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here = whole_runs.run(tmp_path / "here", *PROBLEM, *overrides, "engine.mode=looped")
    assert outcome(run_dir) == outcome(here.run_dir)


def test_a_server_that_fails_says_why_and_what_was_done_is_here(
    nodes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    overrides = ["scaling=identity", "strategy._target_=remote_app.Failing", "checkpoint_every=0"]
    assert main(["run", *on_nodes(nodes, run_dir, "num_rounds=2", *overrides)]) == 1
    said = capfd.readouterr().err
    assert said.count("fedscale-local: ") == 1 and "Traceback" not in said
    assert "the run is finished:failed: ServerApp failed with exception: no room on the server" in said
    log = run_dir / "flower.log"
    assert str(log) in said and "no room on the server" in log.read_text() and "Traceback" in log.read_text()
    assert [json.loads(line)["round"] for line in (run_dir / "rounds.jsonl").read_text().splitlines()] == [1]
    assert (run_dir / "checkpoints" / "round-000001.json").exists()


def test_a_superlink_that_leaves_the_server_to_others_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With --isolation process nobody would start the server's side, and the run would wait for ever."""
    monkeypatch.setattr(submit, "START_SECONDS", 1.0)
    port, home = flower_command.free_port(), tmp_path / "superlink"
    home.mkdir()
    start = ["flower-superlink", "--insecure", "--isolation", "process", "--port", str(port)]
    log, env = home / "log", flower_command.environment(home) | {"TMPDIR": str(home)}
    process = flower_command.start(start, home, log, env)
    try:
        flower_command.await_port(process, port, log)
        where = [f"superlink.address=127.0.0.1:{port}", "superlink.insecure=true"]
        overrides = [*PROBLEM, "engine=superlink", *where, "superlink.serverapp=remote"]
        assert main(["run", *overrides, f"run_dir={tmp_path / 'run'}"]) == 1
    finally:
        processes.end([process.pid])
    assert "did not start the server's side in 1 s; start it without --isolation" in capfd.readouterr().err


def test_a_checkpoint_that_is_too_large_to_travel_is_refused(
    nodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = whole_runs.run(tmp_path / "run", *PROBLEM, "num_rounds=1")
    superlink._refuse_large(run.run_dir)
    monkeypatch.setattr(superlink, "RECORDS_BYTES", 1000)
    with pytest.raises(RunDirError, match=r"a run takes no more than 0\.0 MB along; carry on"):
        superlink._refuse_large(run.run_dir)
