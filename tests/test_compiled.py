"""What is compiled: equal to torch on every shape, honest about numbers that are none, never required."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compiler import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy_data import dataset
from whole_runs import NATURAL, run, save_arrays

from fedscale_local import native
from fedscale_local.cli import main
from fedscale_local.dense import Compiled, Dense, Regression, layers, make
from fedscale_local.errors import FedscaleError
from fedscale_local.tasks import Batch, Stacked, Task

SMALL = ("data=synthetic", "model=logistic", "num_clients=4", "num_rounds=2", "engine.workers=1")


TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def both(
    module: nn.Module, dtype: torch.dtype, num_classes: int = 3, weight_decay: float = 0.0
) -> tuple[Dense, Compiled]:
    task = Task(module, dataset(shape=(5,), num_classes=num_classes), dtype, weight_decay)
    linear = layers(task)
    assert linear is not None
    return Dense(task, linear), Compiled(task, linear)


def network(hidden: list[int], bias: bool, outputs: int = 3) -> nn.Module:
    parts: list[nn.Module] = []
    for inputs, units in zip([5, *hidden], [*hidden, outputs], strict=True):
        parts += [nn.Linear(inputs, units, bias=bias), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def batch(clients: int, size: int, dtype: torch.dtype, is_ragged: bool, outputs: int = 3) -> Batch:
    stream = torch.Generator().manual_seed(clients * 100 + size)
    x = torch.randn(clients, size, 5, generator=stream, dtype=dtype)
    y = torch.randint(outputs, (clients, size), generator=stream)
    mask = None
    if is_ragged:
        held = torch.randint(1, size + 1, (clients, 1), generator=stream)
        mask = (torch.arange(size) < held).to(dtype)
    return Batch(x, y, mask, rows=slice(0, clients))


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 9), max_size=2),
    bias=st.booleans(),
    clients=st.integers(1, 4),
    size=st.integers(1, 6),
    is_ragged=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_loss_gradient_and_step_are_those_of_torch(
    hidden: list[int],
    bias: bool,
    clients: int,
    size: int,
    is_ragged: bool,
    dtype: torch.dtype,
    weight_decay: float,
) -> None:
    torch.manual_seed(0)
    slow, fast = both(network(hidden, bias), dtype, weight_decay=weight_decay)
    # More clients than step: what C is given begins at a place of its own in a larger stack.
    stack = slow.task.initial_params + 0.3 * torch.randn(clients + 2, slow.task.layout.size, dtype=dtype)
    v, given_batch = stack[1:-1], batch(clients, size, dtype, is_ragged)
    before = v.clone()
    (loss, gradient), (fast_loss, fast_gradient) = (
        oracle.gradient(v, given_batch) for oracle in (slow, fast)
    )
    close = partial(torch.testing.assert_close, **dict.fromkeys(("rtol", "atol"), TOLERANCE[dtype]))
    close(fast_loss, loss)
    close(fast_gradient, gradient)
    z = torch.randn(slow.task.layout.size, dtype=dtype)
    close(slow.hessian_vector(v, given_batch, z), Stacked(slow.task).hessian_vector(v, given_batch, z))
    assert torch.equal(v, before)

    around = stack[:: clients + 1].clone()
    own = 0.5 + torch.rand(v.shape, dtype=dtype)
    for oracle in (slow, fast):
        for d_hat in (None, own[0], own):
            close(oracle.descend(v, given_batch, 0.3, d_hat), loss)
            close(v, before - 0.3 * (gradient if d_hat is None else gradient / d_hat))
            v.copy_(before)
    assert torch.equal(stack[:: clients + 1], around)  # the stack's other clients do not move


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    inputs=st.integers(1, 40),
    outputs=st.integers(2, 12),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_one_linear_layer_steps_on_examples_where_they_lie(
    inputs: int, outputs: int, sizes: list[int], dtype: torch.dtype, weight_decay: float
) -> None:
    """Whatever is left over of registers and of pairs of examples; with shares where the batches are ragged."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))
    task = Task(module, dataset(shape=(1, inputs), num_classes=outputs, n=9), dtype, weight_decay)
    linear = layers(task)
    assert linear is not None
    slow, fast = make(task, linear, False), make(task, linear, True)
    assert (type(slow), type(fast)) == (Dense, Regression)
    rows = [torch.randint(9, (size,)) for size in sizes]
    read, lying = slow.batch(rows, []), fast.batch(rows, [])
    v = task.initial_params + 0.3 * torch.randn(len(sizes), task.layout.size, dtype=dtype)
    close = partial(torch.testing.assert_close, **dict.fromkeys(("rtol", "atol"), TOLERANCE[dtype]))
    loss, gradient = slow.gradient(v, read)
    for found, wanted in zip(fast.gradient(v, lying), (loss, gradient), strict=True):
        close(found, wanted)
    z = torch.randn(task.layout.size, dtype=dtype)
    close(fast.hessian_vector(v, lying, z), slow.hessian_vector(v, read, z))
    own = 0.5 + torch.rand(v.shape, dtype=dtype)
    for d_hat in (None, own[0], own):
        moved = v.clone()
        close(fast.descend(moved, lying, 0.3, d_hat), loss)
        close(moved, v - 0.3 * (gradient if d_hat is None else gradient / d_hat))


@needs_compiler
@pytest.mark.parametrize("num_classes", [3, 7])
def test_one_linear_layer_is_walked_only_where_every_label_has_an_output(num_classes: int) -> None:
    task = Task(nn.Linear(5, 3), dataset(shape=(5,), num_classes=num_classes), torch.float32)
    assert type(make(task, layers(task) or [], True)) is (Regression if num_classes == 3 else Compiled)


@needs_compiler
@pytest.mark.parametrize("where", [0, 17, -1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_stays_none(where: int, value: float) -> None:
    """In the first weight, in the middle, or in the last bias: only that client's loss and gradient are lost."""
    oracles = both(network([4], bias=True), torch.float32)
    v = oracles[0].task.initial_params.repeat(2, 1)
    v[1, where] = value
    for oracle in oracles:
        loss, gradient = oracle.gradient(v, batch(2, 6, torch.float32, is_ragged=False))
        assert loss[0].isfinite() and gradient[0].isfinite().all()
        assert not (loss[1].isfinite() and gradient[1].isfinite().all())


@needs_compiler
def test_a_label_without_an_output_is_refused_and_not_written_to() -> None:
    """Labels 0 to 6 and three outputs: torch raises, and so does what is compiled, which would not notice."""
    _, fast = both(network([4], bias=True), torch.float32, num_classes=7)
    v = fast.task.initial_params.repeat(2, 1)
    with pytest.raises(RuntimeError, match="out of bounds"):
        fast.gradient(v, batch(2, 50, torch.float32, is_ragged=False, outputs=7))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache directory, and nothing of it in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.library.cache_clear()
    yield tmp_path / "cache" / "fedscale-local"
    native.library.cache_clear()


@needs_compiler
def test_it_is_built_once_for_each_type_of_numbers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.float64, torch.float32):
        native.library("dense", dtype)
    assert len(list(cache.iterdir())) == 2
    native.library.cache_clear()
    monkeypatch.setattr(native, "_build", lambda *_: pytest.fail("built again"))
    assert native.library("dense", torch.float64).cross_entropy


@needs_compiler
def test_many_may_build_it_at_the_same_time(cache: Path) -> None:
    def built(_: int) -> Any:
        native.library.cache_clear()
        return native.library("dense", torch.float32)

    with ThreadPoolExecutor(6) as pool:
        assert len(list(pool.map(built, range(6)))) == 6
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_without_a_compiler_runs_are_stacked(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    found = run(tmp_path / "auto", *SMALL)
    assert json.loads((tmp_path / "auto" / "manifest.json").read_text())["engine"]["mode"] == "stacked"
    assert found.bytes == run(tmp_path / "stacked", *SMALL, "engine.mode=stacked").bytes


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_compiler_that_is_not_there_or_fails_is_named(
    compiler: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert main(["run", *SMALL, "engine.mode=compiled", f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "engine.mode=compiled" in said and "set engine.mode=auto" in said
    with pytest.raises(FedscaleError):
        native.library("dense", torch.float32)


def test_only_what_is_fully_connected_can_be_compiled(tmp_path: Path, capsys: Any) -> None:
    save_arrays(tmp_path / "images.npz", [np.zeros((6, 1, 8, 8))], [np.arange(6) % 2])
    overrides = [*NATURAL, f"data.path={tmp_path / 'images.npz'}", "model=cnn", "engine.mode=compiled"]
    assert main(["run", *overrides, f"run_dir={tmp_path / 'run'}"]) == 2
    assert "not a chain of linear layers" in capsys.readouterr().err


@needs_compiler
def test_a_stack_that_is_compiled_has_the_same_bits_on_any_number_of_workers(tmp_path: Path) -> None:
    one, two = (
        run(tmp_path / str(n), *SMALL, f"engine.workers={n}", "engine.mode=compiled", "num_clients=9")
        for n in (1, 2)
    )
    assert one.bytes == two.bytes
