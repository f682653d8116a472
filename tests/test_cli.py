"""The command: what it prints, its exit status, its sweeps, and that it starts without what it does not need."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import fedscale_local
from fedscale_local import cli, compose, lifecycle
from fedscale_local.config import from_container
from fedscale_local.errors import ClientError

TINY = (
    "data=quadratic data.dimension=2 data.examples=4 num_clients=3 num_rounds=2 client.local_steps=1 "
    "client.batch_size=full engine.workers=1"
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSCALE_DEBUG", raising=False)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedscale_local.cli", *arguments]


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    for verb in cli.COMMANDS:
        assert f"\n  {verb} " in out


@pytest.mark.parametrize("verb", cli.COMMANDS)
def test_each_command_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: fedscale-local {verb}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedscale-local {fedscale_local.__version__}\n"


def test_help_of_run_shows_groups_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    for group, entry in compose.groups().items():
        assert f"  {group}: {', '.join(entry.choices)}\n" in out + "\n"


def test_list_shows_every_file_of_conf_in_one_line_with_its_comment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = sorted(compose.FOLDER.glob("*/*.yaml"))
    assert len(lines) == len(files) + len(compose.groups())
    for file in files:
        (line,) = [line for line in lines if line.split()[0] == file.stem and line.split(None, 1)[1] in line][
            :1
        ]
        assert line.startswith("  ")
    (default,) = [line for line in lines if line.startswith("  savic ")]
    assert default.endswith(
        "  scaled local steps: one preconditioner for all, or one a client (see scaling) (default)"
    )


def test_list_of_one_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "engine"]) == 0
    assert capsys.readouterr().out.startswith("engine: where the clients run\n  in_process")


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"]])
def test_words_come_without_what_computes(arguments: list[str]) -> None:
    code = (
        "import sys; from fedscale_local.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'flwr', 'hydra', 'omegaconf', 'matplotlib'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_cfg_prints_what_a_run_would_use(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert cli.main(["run", "scaling=oasis", "--cfg", "job", "seed=7"]) == 0
    printed = from_container(yaml.safe_load(capsys.readouterr().out))
    assert printed == compose.config(["scaling=oasis", "seed=7"])
    assert list(place.iterdir()) == []


# ---------------------------------------------------------------- runs


def test_a_run_ends_with_its_places_and_its_result(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert cli.main(["run", *TINY.split(), "run_dir=there"]) == 0
    captured = capsys.readouterr()
    model, report, final = captured.out.splitlines()
    assert model.split() == ["model", "there/model.safetensors"] and Path("there/model.safetensors").is_file()
    assert report.split() == ["report", "there/report.html"] and Path("there/report.html").is_file()
    assert final.startswith("final   ") and final.endswith(" after round 2")
    assert [path.name for path in place.iterdir()] == ["there"]  # nothing of Hydra's
    written = from_container(yaml.safe_load(Path("there/config.yaml").read_text()))
    assert written == compose.config([*TINY.split(), "run_dir=there"])
    assert cli.main(["show", "there"]) == 0
    assert "2 of 2 rounds" in capsys.readouterr().out


def test_a_run_without_run_dir_goes_to_runs(place: Path) -> None:
    assert cli.main(["run", *TINY.split()]) == 0
    (run_dir,) = (place / "runs").iterdir()
    assert run_dir.name.endswith("-savic-adam-quadratic-s0")


def test_flower_strategy_with_its_arguments(place: Path) -> None:
    target = "strategy._target_=flwr.serverapp.strategy.FedMedian"
    assert cli.main(["run", *TINY.split(), target, "strategy.fraction_evaluate=0.0", "run_dir=a"]) == 0
    assert (place / "a" / "model.safetensors").is_file()


def raises(error: BaseException) -> object:
    def run(config: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ClientError("train", 3, 7, "loss is nan"), 1, "client 3, round 7, train: loss is nan"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "ZeroDivisionError: division by zero (FEDSCALE_DEBUG=1 shows where)",
        ),
        (SystemExit(0), 1, "sys.exit(0) was called before the work was done"),
        (SystemExit("bye"), 1, "sys.exit(bye) was called before the work was done"),
    ],
)
def test_a_failure_is_one_message_and_a_status(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lifecycle, "run", raises(error))
    assert cli.main(["run", *TINY.split()]) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("round ")]
    assert lines == [f"fedscale-local: {message}"]
    monkeypatch.setenv("FEDSCALE_DEBUG", "1")
    assert cli.main(["run", *TINY.split()]) == status
    assert "Traceback" in capsys.readouterr().err


def test_output_that_nobody_reads_to_the_end() -> None:
    process = subprocess.Popen(command("list"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


# ---------------------------------------------------------------- sweeps


def test_a_sweep_has_a_directory_for_each_run_which_equals_the_same_run_alone(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    argv = ["run", "-m", *TINY.split(), "strategy=savic,fedavg", "seed=range(2)", "hydra.sweep.dir=both"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("\ndone  ") + out.startswith("done  ") == 4 and "sweep   both (4 runs, 0 failed)" in out
    assert {path.name for path in place.iterdir()} == {"both"}
    folders = {path.parent.name: path.parent for path in (place / "both").glob("*/manifest.json")}
    used = []
    for name in sorted(folders):
        config = yaml.safe_load((folders[name] / "config.yaml").read_text())
        used.append((config["strategy"]["name"], config["scaling"]["rule"], config["seed"]))
        assert name.startswith(f"strategy={config['strategy']['name']},seed={config['seed']}-")
    assert used == [
        ("fedavg", "identity", 0),
        ("fedavg", "identity", 1),
        ("savic", "adam", 0),
        ("savic", "adam", 1),
    ]
    assert cli.main(["run", *TINY.split(), "strategy=savic", "seed=1", "run_dir=alone"]) == 0
    for file in ("rounds.jsonl", "model.safetensors"):
        assert (folders[sorted(folders)[3]] / file).read_bytes() == (place / "alone" / file).read_bytes()


def test_an_experiment_may_be_a_sweep_and_yields_to_overrides(place: Path) -> None:
    planned = compose.sweep(["experiment=fedavg_vs_savic", *TINY.split(), "seed=0", "hydra.sweep.dir=s"])
    assert planned.swept == [["strategy=fedavg"], ["strategy=savic"]] and planned.folder == "s"


def test_a_refused_run_of_a_sweep_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    argv = ["run", "-m", *TINY.split(), "model=resnet8,linear", "hydra.sweep.dir=s"]
    assert cli.main(argv) == 2
    out = capsys.readouterr().out
    assert "model=resnet8" in out and "Traceback" not in out
    assert "sweep   s (2 runs, 1 failed)" in out
    (folder,) = (path.parent.name for path in (place / "s").glob("*/manifest.json"))
    assert folder.startswith("model=linear-")


# ---------------------------------------------------------------- partition


def test_partition_prints_a_table_and_writes_a_picture(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    assert cli.main(["partition", "num_clients=12", "partition=pathological", "--out", "shards.svg"]) == 0
    out = capsys.readouterr().out
    assert "12 clients, 12000 examples" in out and out.endswith("picture shards.svg\n")
    assert (
        Path("shards.svg").read_text().lstrip().startswith("<?xml")
        or "<svg" in Path("shards.svg").read_text()
    )
    assert [path.name for path in place.iterdir()] == ["shards.svg"]


def test_partition_without_labels_shows_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["partition", "data=quadratic", "num_clients=4", "--out", "sizes.png"]) == 0
    assert "4 clients, 200 examples; median 50" in capsys.readouterr().out
    assert Path("sizes.png").read_bytes().startswith(b"\x89PNG")


def test_control_c_ends_a_run_with_130(place: Path) -> None:
    argv = command("run", *TINY.split(), "num_rounds=1000000", "run_dir=long")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (place / "long" / "rounds.jsonl").is_file() and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "fedscale-local: interrupted; carry on with: fedscale-local resume long"
    assert "Traceback" not in err
    assert json.loads((place / "long" / "manifest.json").read_text())["exit"] == "interrupted"
