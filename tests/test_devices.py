"""Where tensors are: on a GPU everything that a cohort computes with, in host memory everything that travels.

No GPU is needed to tell. `Elsewhere` makes of torch's meta device, whose tensors have no numbers, a second device as
strict as CUDA, and stricter: no operation may mix devices, not even an index, and nothing may ask a tensor for its
numbers, as that makes the processor wait. Only what goes over the border as a whole comes back, as ones.

That the numbers are right as well is told where there is a GPU, by the last tests.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_data import dataset
from whole_runs import NATURAL, Run, configured, run, save_arrays

from clients.client_app import cohort
from fedscale_local import experiment, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local.cli import main
from fedscale_local.config import to_json
from fedscale_local.curvature import rademacher
from fedscale_local.dense import Dense
from fedscale_local.engines import cost_model, in_process
from fedscale_local.engines.workers import Workers
from fedscale_local.models import convolutional
from fedscale_local.tasks import Looped, Stacked, Task

SIZES = (13, 3, 7, 1, 5, 10)
META, CPU = torch.device("meta"), torch.device("cpu")


class Elsewhere(TorchDispatchMode):
    """No operation has tensors of two devices, but for single numbers of the host's.

    crossed: each copy over the border, "there" or "back", and how many numbers it held.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crossed: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten._to_copy.default and args[0].device == META:
            target = torch.device(kwargs.get("device") or META)
            if target == CPU:
                self.crossed.append(("back", args[0].numel()))
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        elif func is torch.ops.aten._to_copy.default and kwargs.get("device") == META:
            self.crossed.append(("there", args[0].numel()))
        elif func is not torch.ops.aten.copy_.default or args[0].device == CPU:
            devices = {tensor.device for tensor in tensors if tensor.dim() > 0 or tensor.device != CPU}
            assert len(devices) < 2, f"{func} of tensors on {sorted(map(str, devices))}"
        return func(*args, **kwargs)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """Runs compute on the second device, though their configuration says that they do not."""
    monkeypatch.setattr(in_process, "_device", lambda chosen, number: META)
    with Elsewhere() as mode:
        yield mode


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, ...]], Path]:
    """Ragged shards of random examples of one shape."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(5)

    def made(shape: tuple[int, ...]) -> Path:
        path = folder / f"{len(shape)}.npz"
        if not path.exists():
            save_arrays(
                path, [rng.normal(size=(n, *shape)) for n in SIZES], [rng.integers(0, 5, n) for n in SIZES]
            )
        return path

    return made


MODELS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "mlp": ((7,), {"model.hidden": [9]}),
    "cnn": ((1, 8, 8), {"model.channels": [4, 6]}),
}
"""Stacked by hand, and by torch.func; shape of an example, and a small size."""

METHODS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "fedavg": (("strategy=fedavg",), {}),
    "momentum kept": (("scaling=adam",), {"client.momentum": 0.8, "client.momentum_buffer": "kept"}),
    "adam": (("scaling=adam",), {}),
    "oasis": (("scaling=oasis",), {"scaling.spatial_average": True}),
    "sophia": (("scaling=sophia",), {}),
    "full gradient": (("scaling=rmsprop",), {"scaling.statistic": "full_gradient"}),
    "displacement": (("scaling=adam",), {"scaling.statistic": "displacement"}),
    "local D": (("scaling=adam",), {"scaling.scope": "local", "strategy.mixing": "preconditioned"}),
    "D of each step": (("scaling=oasis",), {"scaling.scope": "local", "scaling.local_refresh": "step"}),
    "scaffold": (("strategy=scaffold",), {}),
    "scaffold, momentum": (("strategy=scaffold",), {"client.momentum": 0.5}),
    "scaffold, option 1": (("strategy=scaffold",), {"strategy.local.option": 1}),
    "weight decay": (("strategy=fedavg",), {"client.weight_decay": 0.1}),
    "personal": (("strategy=fedavg",), {"eval_clients": True, "eval_personal_steps": 2}),
}
CONVOLUTIONAL = ("fedavg", "oasis", "sophia", "local_muon")
OWN_RULES = (
    *("fedprox", "feddyn", "mime", "mimelite", "local_adamw", "local_adam_kept", "local_adam_averaged"),
    *("des_loc", "fedlada", "fedpac", "fedadamw", "fafed", "local_muon", "fedmuon", "fednova", "diloco"),
)
METHODS |= {name: ((f"strategy={name}",), {}) for name in OWN_RULES}


def small(run_dir: Path, path: Path, model: str, method: str, *more: str, **settings: Any) -> Run:
    """Two rounds over ragged shards, batches of four."""
    overrides, own = METHODS[method]
    _, size = MODELS[model]
    told = {"data.path": str(path), "num_rounds": 2, "client.batch_size": 4, "scaling.alpha": 0.1}
    choices = (*NATURAL, f"model={model}", *overrides, *more, "client=epochs")
    return run(run_dir, *choices, settings=told | {"eval_clients": False} | size | own | settings)


@pytest.mark.parametrize("mode", ["looped", "stacked"])
@pytest.mark.parametrize(
    ("model", "method"),
    [*(("mlp", method) for method in METHODS), *(("cnn", method) for method in CONVOLUTIONAL)],
)
def test_a_run_computes_on_its_device_and_tells_in_host_memory(
    model: str, method: str, mode: str, data: Any, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """Whole runs: each vector comes back as ones, so they end, and what they end with says nothing."""
    asked: list[str] = []
    gradient = Looped.gradient
    with patch.object(Looped, "gradient", lambda *a: asked.append("looped") or gradient(*a)):
        done = small(tmp_path / "run", data(MODELS[model][0]), model, method, **{"engine.mode": mode})
    failures = [failure for line in done.lines for failure in line["failures"]]
    assert not failures
    assert bool(asked) == (mode == "looped")  # no stack had to be done again one by one
    assert elsewhere.crossed


def test_a_stack_crosses_once_each_way(data: Any, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Six clients are two stacks of three: the model goes there once, and three come back together."""
    done = small(tmp_path / "run", data((7,)), "mlp", "fedavg", **{"engine.mode": "stacked"})
    d, rounds = len(done.model), len(done.lines)
    crossed = [(way, number // d) for way, number in elsewhere.crossed if number % d == 0]
    assert crossed == [("there", 1), ("back", 3)] * 2 * rounds


def test_data_too_large_to_be_kept_as_numbers_are_on_the_device_as_they_are_stored(
    elsewhere: Elsewhere,
) -> None:
    task = Task(nn.Linear(7, 5), dataset(shape=(7,)), torch.float32)
    with patch("fedscale_local.tasks.RESIDENT_BYTES", 0):
        task.to(META)
        x, y = task.examples(torch.tensor([0, 2]))
        assert task.resident is None and (x.device, y.device, task.stored.device) == (META,) * 3


def test_with_several_workers_each_has_its_device_and_the_parent_none(
    data: Any, elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """What the workers computed comes back as ones, which is what the parent, on the CPU, then evaluates."""
    seen: list[torch.device] = []
    evaluate = Task.evaluate

    def watched(self: Task, *args: Any) -> Any:
        seen.append(self.device)
        return evaluate(self, *args)

    with patch.object(Task, "evaluate", watched):
        settings = {"engine.mode": "stacked", "engine.workers": 2}
        done = small(tmp_path / "run", data((7,)), "mlp", "fedavg", **settings)
    assert not any(line["failures"] for line in done.lines)
    assert np.array_equal(done.model, np.ones_like(done.model))
    assert set(seen) <= {CPU} and not elsewhere.crossed


NUMBER: list[int] = []


def number_or_end(shared: Any, item: Any) -> Any:
    if item == "die":
        os._exit(9)
    return os.getpid(), list(NUMBER)


def test_a_worker_that_is_started_again_begins_as_the_one_that_ended() -> None:
    workers = Workers(2, number_or_end, None, NUMBER.append)
    try:
        before = workers.map([0, 1], [1.0, 1.0], lambda item, reason: reason)
        workers.map([0, "die"], [1.0, 1.0], lambda item, reason: reason)
        after = workers.map([0, 1], [1.0, 1.0], lambda item, reason: reason)
    finally:
        workers.close()
    assert [numbers for _, numbers in before] == [numbers for _, numbers in after] == [[0], [1]]
    assert before[1][0] != after[1][0] and not NUMBER


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many GPUs torch will find."""
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def chosen(*overrides: str, **settings: Any) -> dict[str, Any]:
    built = experiment.build(
        configured("data=synthetic", *overrides, "engine.device=cuda", settings=settings)
    )
    return in_process.choose(built, {})


def test_what_is_chosen_on_gpus(gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker a GPU; stacks as large as fit, but one for each GPU; looped what cannot be stacked."""
    gpus(1)
    one = chosen("model=mlp", "num_clients=40", "clients_per_round=40")
    assert {"mode": "stacked", "stack_size": 40, "workers": 1, "device": "cuda"}.items() <= one.items()
    gpus(4)
    several = chosen("model=mlp", "num_clients=40", "clients_per_round=40")
    assert (several["stack_size"], several["workers"]) == (10, 4)
    assert chosen("model=mlp", "num_clients=40", "clients_per_round=3")["workers"] == 3
    looped = chosen("model=mlp", "num_clients=40", "engine.mode=looped", "engine.workers=2")
    assert (looped["mode"], looped["stack_size"], looped["workers"]) == ("looped", 1, 2)
    built = experiment.build(
        configured("data=synthetic", "model=mlp", "engine.device=cuda", "num_clients=40")
    )
    task = built.task
    a_client = 8 * task.layout.size + 10 * task.numbers_per_example
    monkeypatch.setattr("fedscale_local.engines.gpus.NUMBERS", 3 * a_client)
    few = chosen("model=mlp", "num_clients=40", "client.batch_size=10", "partition=iid")
    assert few["stack_size"] == 3


def test_what_a_forward_pass_leaves_is_counted() -> None:
    """Linear keeps its input, ReLU its output: 784 + 128 and 128 again for the second layer."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    assert Task(module, dataset(shape=(784,)), torch.float32).numbers_per_example == 784 + 128 + 128


@pytest.mark.parametrize(
    ("overrides", "found", "words"),
    [
        (("engine.device=cuda",), 0, ("engine.device=cuda", "finds no GPU", "set engine.device=cpu")),
        (
            ("engine.device=cuda", "engine.workers=3"),
            2,
            ("engine.workers=3", "there are 2", "set engine.workers=auto"),
        ),
        (
            ("engine.device=cuda", "engine.mode=compiled"),
            1,
            ("engine.device=cuda", "compiled", "engine.mode=auto"),
        ),
        (
            ("engine.precision=bfloat16", "engine.mode=compiled"),
            0,
            ("precision=bfloat16", "set engine.mode=auto"),
        ),
        (
            ("engine.precision=bfloat16", "dtype=float64"),
            0,
            ("precision=bfloat16", "dtype=float64", "set dtype"),
        ),
        (("engine.device=gpu",), 1, ("engine.device=gpu", "cpu, cuda", "engine.device=")),
    ],
)
def test_what_does_not_go_together_is_refused(
    overrides: tuple[str, ...], found: int, words: Sequence[str], gpus: Any, tmp_path: Path, capsys: Any
) -> None:
    gpus(found)
    assert main(["run", "data=synthetic", *overrides, f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words) and not (tmp_path / "run").exists()


def test_a_run_cannot_be_carried_on_with_another_precision(data: Any, tmp_path: Path, capsys: Any) -> None:
    small(tmp_path / "run", data((7,)), "mlp", "fedavg", **{"engine.mode": "looped"})
    assert main(["resume", str(tmp_path / "run"), "num_rounds=3", "engine.precision=bfloat16"]) == 2
    assert "engine.precision was full, is bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_worker_of_ray_computes_on_the_gpu_that_it_was_given(share: float) -> None:
    config = configured("data=synthetic", "num_clients=20", "engine=ray", settings={"engine.num_gpus": share})
    adapter.become_server()
    message = adapter.message_to(adapter.FIRST_NODE, wire.content({}, ConfigRecord({wire.ROUND: 1})))
    context = adapter.new_context(adapter.FIRST_NODE, {wire.PARTITION: 0}, {"config": to_json(config)})
    with patch.object(Task, "to") as to:
        cohort([message], [context])
    assert [call.args for call in to.mock_calls] == ([(torch.device("cuda"),)] if share else [])


class Once(torch.autograd.Function):
    """A product with two whose gradient has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class OnceModel(nn.Linear):
    def __init__(self) -> None:
        super().__init__(60, 10)

    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(super().forward(x))  # type: ignore[no-any-return]


def test_beside_gpus_the_parent_of_workers_takes_no_gradient(gpus: Any, capsys: Any, tmp_path: Path) -> None:
    """torch then starts a thread for each GPU, and processes that are forked later can take none."""
    gpus(1)
    overrides = ("data=synthetic", "scaling=oasis", "num_clients=7", "engine.workers=2")
    assert "looped" not in vars(experiment.build(configured(*overrides)).task)
    assert "looped" in vars(experiment.build(configured(*overrides[:-1], "engine.workers=1")).task)
    own = ("model=custom", "model._target_=test_devices.OnceModel")
    assert main(["run", *overrides, *own, f"run_dir={tmp_path / 'run'}"]) == 2
    assert "does not give Hessian-vector products" in capsys.readouterr().err


def test_a_process_that_has_used_a_gpu_forks_no_worker(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    overrides = [
        *NATURAL,
        "model=mlp",
        f"data.path={data((7,))}",
        "engine.workers=2",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert main(["run", *overrides]) == 1
    assert "has used a GPU" in capsys.readouterr().err


COARSE = 2.0**-4
"""Relative, of norms: bfloat16 has eight bits, and a few roundings add up over layers and examples; found: 2^-4.9."""


@pytest.mark.parametrize("kind", [Looped, Stacked])
@pytest.mark.parametrize("model", MODELS)
def test_in_bfloat16_products_are_coarse_and_everything_else_is_as_it_was(
    model: str, kind: type[Stacked]
) -> None:
    shape, _ = MODELS[model]
    torch.manual_seed(0)
    module = (
        convolutional.cnn(shape, 5, channels=[4, 6])
        if model == "cnn"
        else nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 5))
    )
    full, coarse = (Task(copy.deepcopy(module), dataset(shape=shape, n=40), torch.float32) for _ in range(2))
    coarse.precision = "bfloat16"
    count = 1 if kind is Looped else 2
    found: list[list[Tensor]] = []
    for task in (full, coarse):
        oracle: Any = task.looped if kind is Looped else Stacked(task)
        v = oracle.start(oracle.gather([full.initial_params] * count))
        noise = torch.rand(40, generator=torch.Generator().manual_seed(1))
        batch = oracle.batch([torch.arange(40)] * count, [noise] * count)
        z = rademacher(torch.Generator().manual_seed(2), full.layout.size, torch.float32)
        loss, gradient = oracle.gradient(v, batch)
        found.append(
            [loss, gradient.clone(), oracle.hessian_vector(v, batch, z), oracle.gauss_newton(v, batch)]
        )
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < (exact - rounded).norm() < COARSE * exact.norm()
    test = dataset(shape=shape, n=40)
    assert full.evaluate(full.initial_params, full.initial_buffers, test.x, test.y) == coarse.evaluate(
        full.initial_params, full.initial_buffers, test.x, test.y
    )
    assert not isinstance(coarse.stacked, Dense)  # which has no such products


@pytest.mark.parametrize("mode", ["auto", "stacked"])
def test_a_run_in_bfloat16_trains(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here what is compiled is fastest and a stack by torch.func slowest: but in bfloat16 nothing is taken by hand."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # nothing was measured before
    seconds = {"compiled": 1e-5, "looped": 1e-4, "stacked": 1e-3}
    monkeypatch.setattr(cost_model, "measured", lambda task, way, batch_size, precision: seconds[way.mode])
    overrides = (
        "data=synthetic",
        "model=mlp",
        "num_clients=8",
        "num_rounds=6",
        "engine.workers=1",
        f"engine.mode={mode}",
    )
    full, coarse = (
        run(tmp_path / precision, *overrides, settings={"engine.precision": precision, "eval_clients": False})
        for precision in ("full", "bfloat16")
    )
    assert all(tensor.dtype == np.float32 for tensor in coarse.tensors.values())
    assert not np.array_equal(full.model, coarse.model)
    first, last = (coarse.lines[i]["train_loss"] for i in (0, -1))
    assert last < 0.9 * first
    assert abs(last - full.lines[-1]["train_loss"]) < 0.02 * full.lines[-1]["train_loss"]
    manifest = json.loads((tmp_path / "bfloat16" / "manifest.json").read_text())
    assert manifest["engine"]["precision"] == "bfloat16"
    assert manifest["engine"]["mode"] == ("looped" if mode == "auto" else mode)


def test_the_benchmark_of_gpus_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Next to no work on the CPU; where there is no GPU it says so."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent))  # benchmarks are not installed
    from benchmarks import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert "finds no GPU" in capsys.readouterr().err
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(
        sys,
        "argv",
        [*["gpu", "--small", "--device", "cpu", "--passes", "1", "--work", "W1", "--out"], str(out)],
    )
    assert gpu.main() == 0
    told = json.loads(out.read_text())
    rows = told["W1"]["rows"]
    assert set(rows) == {*gpu.OURS, gpu.PLAIN} and all(row["round_seconds"] > 0 for row in rows.values())
    assert rows[gpu.PLAIN]["ratio"] == 1 and told["gpu"] is None
    # Two steps of six clients: 4 examples, two layers forward, the last one's inputs and both weights' gradients back.
    assert told["W1"]["gflop"] == pytest.approx(2 * 6 * 4 * 2 * (2 * 784 * 128 + 3 * 128 * 10) / 1e9)


needs_gpu = pytest.mark.skipif(not torch.cuda.device_count(), reason="there is no GPU here")


def in_a_process_of_its_own(run_dir: Path, path: Path, model: str, method: str, *more: str) -> Run:
    """As `small`: a process that has used a GPU forks no workers, and the tests after these do."""
    (_, size), (overrides, own) = MODELS[model], METHODS[method]
    settings = {
        "data.path": path,
        "num_rounds": 2,
        "client.batch_size": 4,
        "scaling.alpha": 0.1,
        **size,
        **own,
    }
    told = [f"{key}={value}".replace(" ", "") for key, value in settings.items()]
    command = [*NATURAL, f"model={model}", *overrides, "client=epochs", *told, *more, f"run_dir={run_dir}"]
    code = "import sys; from fedscale_local.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, "run", *command], check=True)
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    assert not any(line["failures"] for line in lines)
    return Run(run_dir, lines, load_file(run_dir / "model.safetensors"))


def distance(one: Run, other: Run) -> float:
    return float(np.abs(one.model - other.model).max() / np.abs(one.model).max())


@needs_gpu
@pytest.mark.parametrize(
    "method", ["fedavg", "momentum kept", "oasis", "sophia", "local D", "scaffold", "local_adamw"]
)
@pytest.mark.parametrize("model", MODELS)
def test_a_gpu_computes_what_the_processor_does(model: str, method: str, data: Any, tmp_path: Path) -> None:
    path = data(MODELS[model][0])
    for dtype, bound in (("float64", 1e-10), ("float32", 1e-2)):
        told = [f"dtype={dtype}"]
        looped = in_a_process_of_its_own(
            tmp_path / dtype / "cpu", path, model, method, *told, "engine.mode=looped"
        )
        for mode in ("looped", "stacked"):
            there = [*told, "engine.device=cuda", f"engine.mode={mode}", "engine.workers=1"]
            assert (
                distance(
                    looped, in_a_process_of_its_own(tmp_path / dtype / mode, path, model, method, *there)
                )
                < bound
            )


@needs_gpu
def test_a_gpu_trains_in_bfloat16(data: Any, tmp_path: Path) -> None:
    there = ["engine.device=cuda", "engine.workers=1"]
    full, coarse = (
        in_a_process_of_its_own(tmp_path / p, data((7,)), "mlp", "fedavg", *there, f"engine.precision={p}")
        for p in ("full", "bfloat16")
    )
    assert 0 < distance(full, coarse) < 0.05


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs here")
def test_workers_on_several_gpus(data: Any, tmp_path: Path) -> None:
    one, two = (
        in_a_process_of_its_own(
            tmp_path / str(n),
            data((7,)),
            "mlp",
            "oasis",
            "dtype=float64",
            "engine.device=cuda",
            f"engine.workers={n}",
        )
        for n in (1, 2)
    )
    assert distance(one, two) < 1e-10
