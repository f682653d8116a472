"""What is compiled: equal to torch on every shape, honest about numbers that are none, never required."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from fedscale_local.dense import LINE, Compiled, Dense, layers, make
from fedscale_local.errors import FedscaleError
from fedscale_local.tasks import Batch, Stacked, Task

SMALL = ("data=synthetic", "model=logistic", "num_clients=4", "num_rounds=2", "engine.workers=1")


def network(inputs: int, hidden: list[int], outputs: int, bias: bool) -> nn.Module:
    parts: list[nn.Module] = [nn.Flatten()]
    for before, units in zip([inputs, *hidden], [*hidden, outputs], strict=True):
        parts += [nn.Linear(before, units, bias=bias), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def both(
    module: nn.Module, dtype: torch.dtype, kind: str = "classification", weight_decay: float = 0.0
) -> tuple[Dense, Compiled]:
    first, last = (part for part in (module[1], module[-1]))  # type: ignore[index]
    num_classes = last.out_features if kind == "classification" else 0
    examples = dataset(kind, (1, first.in_features), num_classes, n=12)
    task = Task(module, examples, dtype, weight_decay)
    linear = layers(task)
    assert linear is not None
    slow, fast = make(task, linear, False), make(task, linear, True)
    assert type(slow) is Dense and isinstance(fast, Compiled)
    return slow, fast


def batch(clients: int, size: int) -> Batch:
    stream = torch.Generator().manual_seed(clients * 100 + size)
    x = torch.randn(clients, size, 5, generator=stream)
    return Batch(x, torch.randint(3, (clients, size), generator=stream), rows=slice(0, clients))


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(
    inputs=st.one_of(st.integers(1, 150), st.integers(1020, 1050)),
    hidden=st.lists(st.integers(1, 80), max_size=2),
    outputs=st.integers(2, 15),
    bias=st.booleans(),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    kind=st.sampled_from(["classification", "regression"]),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_loss_gradient_and_step_are_those_of_torch(
    inputs: int,
    hidden: list[int],
    outputs: int,
    bias: bool,
    sizes: list[int],
    dtype: torch.dtype,
    kind: str,
    weight_decay: float,
) -> None:
    """Whatever is left over of registers, of blocks and of what a cache holds; with shares where batches are ragged."""
    torch.manual_seed(0)
    outputs = outputs if kind == "classification" else 1
    slow, fast = both(network(inputs, hidden, outputs, bias), dtype, kind, weight_decay)
    task = slow.task
    rows = [torch.randint(12, (size,)) for size in sizes]
    read, lying = slow.batch(rows, []), fast.batch(rows, [])
    assert read.x.is_floating_point() and not lying.x.is_floating_point()
    # More clients than step: what C is given begins at a place of its own in a larger stack.
    stack = task.initial_params + 0.1 * torch.randn(len(sizes) + 2, task.layout.size, dtype=dtype)
    v = stack[1:-1]
    before = v.clone()

    def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
        # Each of the products that a sum has may round by so much of what is summed, of which the largest result is a
        # measure, and not what is left of it.
        allowed = torch.finfo(dtype).eps * (80 + inputs) * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=allowed)

    loss, gradient = slow.gradient(v, read)
    for given_batch in (read, lying):
        for found, wanted in zip(fast.gradient(v, given_batch), (loss, gradient), strict=True):
            close(found, wanted)
    z = torch.randn(task.layout.size, dtype=dtype)
    product = slow.hessian_vector(v, read, z)
    close(fast.hessian_vector(v, lying, z), product)
    close(product, Stacked(task).hessian_vector(v, read, z))
    assert torch.equal(v, before)

    around = stack[:: len(sizes) + 1].clone()
    own = 0.5 + torch.rand(v.shape, dtype=dtype)
    for oracle, given_batch in ((slow, read), (fast, lying)):
        for d_hat in (None, own[0], own):
            close(oracle.descend(v, given_batch, 0.3, d_hat), loss)
            close(v, before - 0.3 * (gradient if d_hat is None else gradient / d_hat))
            v.copy_(before)
    assert torch.equal(stack[:: len(sizes) + 1], around)  # the stack's other clients do not move

    for d_hat in (None, own[0], own):
        ends = []
        for oracle in (slow, fast):  # clients that have fewer steps come last
            losses = v.new_zeros(len(v))
            batches = [oracle.batch(some, []) for some in (rows, rows[: 1 + len(rows) // 2], rows[:1])]
            first = torch.empty_like(v)
            small = 1e-4  # so that rounding does not grow
            moved = oracle.descend_all(v, batches, losses, small, d_hat, first)
            close(first, gradient)
            ends.append((moved, losses))
        for found, wanted in zip(*ends, strict=True):
            close(found, wanted)
        losses = v.new_zeros(len(v))
        moved = fast.descend_all(v, [lying], losses, 0.3, d_hat)
        close(losses, loss)
        close(moved, before - 0.3 * (gradient if d_hat is None else gradient / d_hat))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_client_of_a_stack_begins_at_a_line_of_the_cache(dtype: torch.dtype) -> None:
    _, fast = both(network(5, [3], 2, True), dtype)
    x = torch.arange(fast.task.layout.size).to(dtype).expand(7, -1)
    v = fast.start(x)
    assert torch.equal(v, x) and all(row.data_ptr() % LINE == 0 for row in v)


@needs_compiler
@pytest.mark.parametrize("num_classes", [3, 7])
def test_what_has_a_label_without_an_output_is_not_compiled(num_classes: int) -> None:
    """C would write beside its place, where torch raises."""
    task = Task(nn.Linear(5, 3), dataset(shape=(5,), num_classes=num_classes), torch.float32)
    oracle = make(task, layers(task) or [], True)
    assert isinstance(oracle, Compiled) == (num_classes == 3)
    if num_classes == 7:
        given_batch = Batch(torch.randn(2, 50, 5), torch.arange(100).reshape(2, 50) % 7, rows=slice(0, 2))
        with pytest.raises(RuntimeError, match="out of bounds"):
            oracle.gradient(task.initial_params.repeat(2, 1), given_batch)


@needs_compiler
@pytest.mark.parametrize("where", [0, 17, -1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_stays_none(where: int, value: float) -> None:
    """In the first weight, in the middle, or in the last bias: only that client's loss and gradient are lost."""
    oracles = both(network(5, [4], 3, bias=True), torch.float32)
    v = oracles[0].task.initial_params.repeat(2, 1)
    v[1, where] = value
    for oracle in oracles:
        loss, gradient = oracle.gradient(v, batch(2, 6))
        assert loss[0].isfinite() and gradient[0].isfinite().all()
        assert not (loss[1].isfinite() and gradient[1].isfinite().all())


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
    assert native.library("dense", torch.float64).steps


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
