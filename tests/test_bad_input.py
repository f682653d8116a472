"""Wrong input, one row each: exit status 2, one message with value, expectation and remedy, nothing left behind.

The command is called in this process, as the console script does it; a handful of rows again as real processes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fedscale_local import cli


class Row(NamedTuple):
    """What is typed after `fedscale-local`, and what the message has to contain."""

    argv: str
    value: str
    expectation: str
    remedy: str


SMALL = "run data=arrays num_clients=2 clients_per_round=2 num_rounds=1 partition=iid"

KEYS = [
    Row("run local_steps=5", "local_steps=5", "no such key", "did you mean client.local_steps"),
    Row("run client.locl_steps=5", "client.locl_steps=5", "no such key", "did you mean client.local_steps"),
    Row("run colour=red", "colour=red", "no such key", "leave it out"),
    Row("run modle=cnn", "modle=cnn", "no such key", "did you mean model"),
    Row("run model=cnnn", "model=cnnn", "expected one of char_gru", "did you mean model=cnn"),
    Row("run strategy=fedprox9", "strategy=fedprox9", "savic", "set strategy to one of them"),
    Row("run scaling=adamm", "scaling=adamm", "expected one of", "did you mean scaling=adam"),
    Row("run experiment=quikstart", "experiment=quikstart", "expected one of", "experiment=quickstart"),
    Row("run engine=quantum", "engine=quantum", "in_process", "set engine to one of them"),
    Row("run client=5", "client=5", "epochs, steps", "set client to one of them"),
    Row("run ++client=5", "client=5", "epochs, steps", "set client to one of them"),
    Row("run partition=iid partition.alpha=0.3", "partition.alpha=0.3", "no such key", "partition=dirichlet"),
    Row("run data.window=80", "data.window=80", "takes data.path", "data=shakespeare"),
    Row("run model.name=torchvision/resnet18", "model.hidden", "no such key", "model=mlp"),
    Row("run model.name=mpl", "model.name=mpl", "expected one of", "did you mean model.name=mlp"),
    Row("run ~seed", "seed", "a whole number", "set seed to 0 or more"),
    Row("run seed", "'seed'", "KEY=VALUE", "write it so"),
    Row("run =3", "'=3'", "KEY=VALUE", "write it so"),
    Row("run data.path=a=b", "'data.path=a=b'", "KEY=VALUE", "quotes"),
    Row("run seed=1,2", "seed=1,2", "one value for each key", "add -m"),
    Row("run seed=${nothing}", "seed", "nothing", "mend"),
    Row("run hydra.run.dir=x", "hydra.run.dir=x", "run_dir", "set run_dir"),
]
VALUES = [
    Row("run client.local_steps=0", "client.local_steps=0", "at least one local step", "to 1 or more"),
    Row("run client.local_steps=2.5", "client.local_steps=2.5", "a whole number", "to 1 or more"),
    Row("run client.local_steps=many", "client.local_steps=many", "a whole number", "to 1 or more"),
    Row("run client.local_steps=true", "client.local_steps=true", "a whole number", "to 1 or more"),
    Row("run client.local_steps='5'", "client.local_steps=5", "a whole number", "to 1 or more"),
    Row(
        "run client.local_steps=null",
        "client.local_steps=null",
        "local steps or local epochs",
        "client.local_epochs",
    ),
    Row("run client.local_epochs=2", "client.local_epochs=2", "client.local_steps=10", "client=epochs"),
    Row("run client.step_size=0", "client.step_size=0", "more than 0", "set client.step_size"),
    Row("run client.step_size=nan", "client.step_size=nan", "a number", "to more than 0"),
    Row("run client.step_size=inf", "client.step_size=inf", "a number", "to more than 0"),
    Row("run client.batch_size=0", "client.batch_size=0", "1 or more", "or full"),
    Row("run client.batch_size=all", "client.batch_size=all", "a whole number", "or full"),
    Row("run client.momentum=1", "client.momentum=1", "below 1", "set client.momentum"),
    Row(
        "run client.momentum_buffer=keep",
        "client.momentum_buffer=keep",
        "expected one of",
        "momentum_buffer=kept",
    ),
    Row("run client.momentum_every=0", "client.momentum_every=0", "1 or more", "set client.momentum_every"),
    Row(
        "run client.momentum_buffer=kept client.momentum_every=3",
        "client.momentum_every=3",
        "client.momentum_buffer=kept averages none",
        "client.momentum_buffer=averaged",
    ),
    Row(
        "run strategy=local_muon strategy.local.control_every=2",
        "strategy.local.control_every=2",
        "no such key",
        "scaffold or fedmuon",
    ),
    Row(
        "run strategy=scaffold strategy.local.control_every=0",
        "strategy.local.control_every=0",
        "1 or more",
        "to 1 or more",
    ),
    Row("run client.weight_decay=-1", "client.weight_decay=-1", "0 or more", "set client.weight_decay"),
    Row("run client.drop_last=perhaps", "client.drop_last=perhaps", "true or false", "set client.drop_last"),
    Row("run seed=-1", "seed=-1", "0 or more", "set seed"),
    Row("run dtype=float16", "dtype=float16", "float32, float64", "did you mean dtype=float"),
    Row("run num_rounds=0", "num_rounds=0", "1 or more", "set num_rounds"),
    Row("run num_rounds=1e3", "num_rounds=1000.0", "a whole number", "set num_rounds"),
    Row("run num_clients=0", "num_clients=0", "1 or more", "null for every natural client"),
    Row("run num_clients=null", "num_clients=null", "partition=dirichlet", "num_clients=200"),
    Row("run num_clients=10 clients_per_round=11", "clients_per_round=11", "10 clients", "to 10 or less"),
    Row("run eval_every=0", "eval_every=0", "1 or more", "set eval_every"),
    Row("run checkpoint_every=-1", "checkpoint_every=-1", "0 or more", "set checkpoint_every"),
    Row("run scaling.beta=1", "scaling.beta=1", "below 1", "set scaling.beta"),
    Row("run scaling.alpha=0", "scaling.alpha=0", "more than 0", "set scaling.alpha"),
    Row("run scaling.floor=min", "scaling.floor=min", "max, add", "set scaling.floor"),
    Row("run partition.alpha=0", "partition.alpha=0", "more than 0", "set partition.alpha"),
    Row(
        "run partition=main_class partition.share=2", "partition.share=2", "at most 1", "set partition.share"
    ),
    Row(
        "run strategy=fedscaled strategy.memory=sophia",
        "strategy.memory=sophia",
        "identity, adagrad, rmsprop, adam, oasis",
        "set strategy.memory",
    ),
    Row("run model.hidden=128", "model.hidden=128", "a list of whole numbers", "[128]"),
    Row("run model.hidden=[0]", "model.hidden=[0]", "each 1 or more", "[128]"),
    Row("run engine.workers=-1", "engine.workers=-1", "1 or more", "or auto"),
    Row(
        "run engine.mode=looped engine.stack_size=4", "engine.stack_size=4", "mode=looped", "stack_size=auto"
    ),
    Row("run engine.stack_size=1", "engine.stack_size=1", "mode=auto", "1 for looped"),
    Row(
        "run strategy._target_=FedAvg",
        "strategy._target_=FedAvg",
        "package.module.Name",
        "set strategy._target_",
    ),
    Row("run model=custom", "model._target_=null", "package.module.Name", "set model._target_"),
]
CONFLICTS = [
    Row(
        "run scaling=sophia scaling.statistic=gradient",
        "scaling.statistic=gradient",
        "gauss_newton",
        "scaling=adam",
    ),
    Row(
        "run scaling.statistic=displacement scaling.combine=mean_of_squares",
        "combine=mean",
        "mean",
        "square_of_mean",
    ),
    Row("run scaling.upper_bound=1e-9", "scaling.upper_bound=1e-09", "below the floor", "null for no cap"),
    Row(
        "run strategy=fedscaled strategy.upper_bound=1e-9",
        "strategy.upper_bound=1e-09",
        "below the floor strategy.alpha=0.001",
        "null for no cap",
    ),
    Row(
        "run strategy.mixing=preconditioned",
        "strategy.mixing=preconditioned",
        "of its own",
        "scaling.scope=local",
    ),
    Row("run strategy=fedavg scaling=adam", "scaling=adam", "strategy=fedavg", "choose strategy=savic"),
    Row(
        "run scaling.statistic=displacement scaling.scope=local",
        "scaling.statistic=displacement",
        "its D is global",
        "set scaling.scope=global",
    ),
    Row(
        "run scaling.scope=local scaling.local_refresh=step scaling.refresh_every=3",
        "scaling.refresh_every=3",
        "before every local step",
        "set scaling.refresh_every=1",
    ),
    Row("run scaling.local_refresh=step", "scaling.local_refresh=step", "frozen", "set scaling.scope=local"),
    Row(
        "run scaling=adahessian scaling.statistic=gradient",
        "scaling.statistic=gradient",
        "hutchinson",
        "set scaling.statistic=hutchinson",
    ),
    Row("run scaling.spatial_average=true", "scaling.spatial_average=true", "Hutchinson", "=false"),
    Row(
        "run privacy=central strategy.weighting=examples",
        "strategy.weighting=examples",
        "no client may weigh more",
        "set strategy.weighting=uniform",
    ),
    Row(
        "run privacy=central strategy=krum strategy.weighting=uniform",
        "strategy.combine.rule=krum",
        "needs a mean",
        "privacy.clip.parameters",
    ),
    Row(
        "run privacy=central scaling.combine=mean_of_squares",
        "scaling.combine=mean_of_squares",
        "no mean of squares",
        "square_of_mean",
    ),
    Row(
        "run privacy=local client=epochs",
        "client.local_epochs",
        "number of steps",
        "choose client=steps",
    ),
    Row("run privacy=local diagnostics=drift", "diagnostics=drift", "single clients", "diagnostics=none"),
    Row(
        "run privacy=central privacy.clip.statistic=null",
        "privacy.clip.statistic=null",
        "no noise hides",
        "privacy.noise_multiplier=0",
    ),
    Row("run privacy=local on_too_few=wait", "on_too_few=wait", "asked again", "skip or stop"),
    Row(
        "run privacy=central engine=superlink privacy.noise_source=seed",
        "privacy.noise_source=seed",
        "every device",
        "auto or system",
    ),
    Row(
        "run privacy=central strategy._target_=flwr.serverapp.strategy.FedAvg",
        "privacy=central",
        "no bound",
        "DifferentialPrivacy",
    ),
    Row(
        "run sampling=poisson strategy._target_=flwr.serverapp.strategy.FedAvg",
        "sampling=poisson",
        "in its own way",
        "fraction_train",
    ),
    Row("run privacy=central privacy.delta=1", "privacy.delta=1", "below 1", "set privacy.delta"),
    Row("run privacy=global", "privacy=global", "central, local, none", "set privacy"),
    Row("run data.download=true", "data.download=true", "no download", "data.path"),
    Row("run data=quadratic data.path=x.npz", "data.path=x.npz", "is generated", "data=arrays"),
]
DATA = [
    Row("run data=arrays", "data.path=null", ".npz or .parquet", "set data.path"),
    Row(f"{SMALL} data.path=none.npz", "data.path=none.npz", "no such file", "set data.path"),
    Row(f"{SMALL} data.path=text.npz", "data.path=text.npz", "arrays x and y", "numpy.savez"),
    Row(f"{SMALL} data.path=names.npz", "data.path=names.npz", "found ['features', 'labels']", "numpy.savez"),
    Row(f"{SMALL} data.path=extra.npz", "data.path=extra.npz", "unknown arrays ['z']", "keep x, y"),
    Row(f"{SMALL} data.path=shapes.npz", "data.path=shapes.npz", "(7,)", "give y the shape (8,)"),
    Row(f"{SMALL} data.path=flat.npz", "data.path=flat.npz", "shape (8,)", "(examples, features)"),
    Row(f"{SMALL} data.path=nan.npz", "data.path=nan.npz", "NaN", "remove"),
    Row(f"{SMALL} data.path=objects.npz", "data.path=objects.npz", "Python objects", "as numbers"),
    Row(f"{SMALL} data.path=floats.npz", "data.path=floats.npz", "float64, not whole numbers", "int64"),
    Row(f"{SMALL} data.path=negative.npz", "data.path=negative.npz", "-1", "from 0"),
    Row(f"{SMALL} data.path=far.npz", "data.path=far.npz", "label 100000", "0, 1, 2"),
    Row(
        f"{SMALL} data.path=good.npz partition=natural",
        "partition.scheme=natural",
        "no natural clients",
        "iid",
    ),
    Row(
        f"{SMALL} data.path=owned.npz partition=natural num_clients=9",
        "num_clients=9",
        "4 natural",
        "4 or less",
    ),
    Row(f"{SMALL} data.path=good.npz num_clients=9", "num_clients=9", "8 training examples", "8 or less"),
    Row(
        f"{SMALL} data.path=good.npz client.batch_size=32 client.drop_last=true",
        "client.batch_size=32",
        "no client has a batch",
        "client.drop_last=false",
    ),
    Row(
        f"{SMALL} data.path=owned.npz partition=natural num_clients=null clients_per_round=5",
        "clients_per_round=5",
        "4 clients",
        "lower clients_per_round",
    ),
    Row(
        f"{SMALL} data.path=good.npz model=resnet8",
        "model=resnet8",
        "examples of shape (3,)",
        "choose model=",
    ),
    Row(
        f"{SMALL} data.path=good.npz model._target_=torch.nn.Nothing",
        "torch.nn.Nothing",
        "has no",
        "correct the name",
    ),
    Row(
        f"{SMALL} data.path=good.npz model._target_=torch.nn.Linear model.width=3",
        "model._target_=torch.nn.Linear",
        "do not fit",
        "change the keys of model",
    ),
    Row(
        f"{SMALL} data.path=good.npz strategy._target_=flwr.serverapp.strategy.FedAvg strategy.colour=red",
        "strategy._target_=flwr.serverapp.strategy.FedAvg",
        "do not fit",
        "change the keys of strategy",
    ),
    Row("run data=mnist data.path=nowhere", "data.path=nowhere", "looked at", "set data.path"),
    Row("partition data=arrays data.path=none.npz", "data.path=none.npz", "no such file", "set data.path"),
]
PLACES = [
    Row(f"{SMALL} data.path=good.npz run_dir=used", "run_dir=used", "not empty", "choose another"),
    Row(f"{SMALL} data.path=good.npz run_dir=text.npz", "run_dir=text.npz", "a file", "choose another"),
    Row(
        f"{SMALL} data.path=good.npz run_dir=text.npz/run",
        "run_dir=text.npz/run",
        "nothing can be",
        "choose another",
    ),
    Row(f"{SMALL} data.path=good.npz run_dir=3", "run_dir=3", "a path", "set run_dir"),
    Row(f"{SMALL} data.path=good.npz run_dir=/proc/nothing/run", "run_dir=/proc", "", "choose another"),
    Row("show nowhere", "nowhere", "no such directory", "name the directory"),
    Row("show used", "used", "missing", "name a directory that a run wrote"),
    Row("partition --out=shards.docx", "--out=shards.docx", ".svg", "as --out=shards.svg"),
    Row("partition --out=nowhere/shards.svg", "--out=nowhere/shards.svg", "no folder nowhere", "make it"),
]
SHARDS = [
    Row(
        "shard data=synthetic num_clients=3 --client=3 --out=new", "--client=3", "there are 3 clients", "0..2"
    ),
    Row("shard data=synthetic num_clients=3 --client=-1 --out=new", "--client=-1", "3 clients", "0..2"),
    Row(
        "shard data=synthetic --client=one --out=new", "--client", "invalid int value: 'one'", "shard --help"
    ),
    Row("shard data=synthetic --client=0 --out=used", "--out=used", "not empty", "name another"),
    Row("shard data=synthetic --all --out=text.npz", "--out=text.npz", "is a file", "name another"),
    Row(
        "shard data=synthetic --all --out=/proc/nothing",
        "--out=/proc/nothing",
        "cannot be written",
        "another",
    ),
    Row("shard data=synthetic --out=new", "shard", "--client --all is required", "shard --help"),
    Row("shard data=synthetic --all --client=0 --out=new", "shard", "not allowed with", "shard --help"),
    Row("shard data=synthetic --all", "--out", "required", "shard --help"),
    Row(
        "federation keys --dir=new",
        "federation keys",
        "--host names the SuperLink",
        "keys --dir=keys --host=",
    ),
    Row(
        "federation up --dir=new --host=h",
        "federation up",
        "no other action takes it",
        "keys --dir=keys --host=",
    ),
    Row("federation keys --dir=used --host=h", "used", "the directory is not empty", "choose another --dir"),
    Row("federation up --dir=new --shards=used", "used", "no folder 0 for node 0", "shard --all"),
]
COMMANDS = [
    Row("rnu", "rnu", "expected one of run", "did you mean run"),
    Row("run --colour", "--colour", "unrecognized", "run --help"),
    Row("run --cfg hydra", "hydra", "job", "run --help"),
    Row("show", "RUN_DIR", "required", "show --help"),
    Row("list modle", "modle", "expected one of", "model"),
]
SWEEPS = [
    Row("run -m seed=0,-1", "seed=-1", "0 or more", "set seed"),
    Row("run -m model=mlp,cnnn", "model=cnnn", "expected one of", "did you mean model=cnn"),
    Row("run -m seed=0,1 run_dir=here", "run_dir=here", "a directory each", "hydra.sweep.dir"),
    Row("run -m seed=1,,2", "seed=1,,2", "KEY=VALUE", "write it so"),
    Row(
        "run -m seed=0,1 hydra.sweep.dir=good.npz",
        "hydra.sweep.dir=good.npz",
        "cannot be written",
        "choose another",
    ),
    Row("run -m seed=0,1 --force run_dir=here", "run_dir=here", "a directory each", "hydra.sweep.dir"),
    Row("run seed=0 --force", "--force", "only a sweep", "add -m"),
]
ROWS = KEYS + VALUES + CONFLICTS + DATA + PLACES + SHARDS + COMMANDS + SWEEPS


def write_inputs(folder: Path) -> None:
    """Files that are wrong in one way each, named after it; good.npz and owned.npz are not."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3)).astype(np.float32), np.arange(8) % 2
    holed = x.copy()
    holed[3, 1] = np.nan
    arrays = {
        "good": {"x": x, "y": y},
        "owned": {"x": x, "y": y, "client": np.arange(8) // 2},
        "names": {"features": x, "labels": y},
        "extra": {"x": x, "y": y, "z": y},
        "shapes": {"x": x, "y": y[:-1]},
        "flat": {"x": x[:, 0], "y": y},
        "nan": {"x": holed, "y": y},
        "objects": {"x": np.array([[1], [None]] * 4, dtype=object), "y": y},
        "floats": {"x": x, "y": y.astype(np.float64)},
        "negative": {"x": x, "y": y - 1},
        "far": {"x": x, "y": y * 100_000},
    }
    for name, content in arrays.items():
        np.savez(folder / f"{name}.npz", **content)  # type: ignore[arg-type]
    (folder / "text.npz").write_text("not an archive")
    (folder / "used").mkdir()
    (folder / "used" / "notes.txt").write_text("mine")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_inputs(folder)
    return folder


@contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    def listing() -> list[Path]:
        return sorted(folder.rglob("*"))

    before = listing()
    yield
    assert listing() == before


def check(row: Row, status: int, out: str, err: str) -> None:
    assert status == 2, err
    assert err.count("\n") == 1 and err.startswith("fedscale-local: "), err
    assert "Traceback" not in err and out == ""
    for part in row[1:]:
        assert part in err, f"{part!r} is not in: {err}"


def test_there_are_at_least_forty_wrong_inputs_all_different() -> None:
    assert len({row.argv for row in ROWS}) == len(ROWS) >= 40


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.argv.removeprefix(SMALL).strip())
def test_wrong_input(
    row: Row, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    capfd.readouterr()
    with nothing_changes(place):
        status = cli.main(row.argv.split())
    check(row, status, *capfd.readouterr())


PROCESSES = [KEYS[0], VALUES[0], CONFLICTS[1], DATA[3], DATA[8], PLACES[0], SWEEPS[0]]


@pytest.mark.parametrize("row", PROCESSES, ids=lambda row: row.argv.removeprefix(SMALL).strip())
def test_wrong_input_to_a_real_process(row: Row, place: Path) -> None:
    command = [sys.executable, "-m", "fedscale_local.cli", *row.argv.split()]
    with nothing_changes(place):
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    check(row, done.returncode, done.stdout, done.stderr)


def test_the_good_files_are_good(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rows above spoil in one place runs when it is whole: the table tests what it says."""
    monkeypatch.chdir(place)
    for name in ("good", "owned"):
        argv = (
            f"{SMALL} data.path={name}.npz client.local_steps=1 client.batch_size=2 run_dir={tmp_path / name}"
        )
        assert cli.main(argv.split()) == 0
        assert (tmp_path / name / "model.safetensors").is_file()
