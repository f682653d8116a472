"""The way a round is computed: measured once, kept, the same for every run of a workload, and no part of the result."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from compiler import needs_compiler
from torch import Tensor, nn
from whole_runs import NATURAL, Run, configured, run, save_arrays

from fedscale_local import dense, experiment, lifecycle, user_cache
from fedscale_local.engines import cost_model
from fedscale_local.errors import ConfigError

SMALL = (
    "data=synthetic",
    "model=mlp",
    "model.hidden=[6]",
    "num_clients=8",
    "clients_per_round=6",
    "num_rounds=3",
)
Seconds = dict[str, float]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine on which nothing was measured yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "fedscale-local" / "steps"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Seconds], list[str]]:
    """Make this a machine on which a client's step takes so long in each way; returns the ways as they are tried."""

    def make(seconds: Seconds) -> list[str]:
        tried: list[str] = []

        def measured(task: object, way: cost_model.Way, batch_size: int, precision: str) -> float:
            name = str(way).removesuffix(" channels_last")
            name += " on one example" if batch_size == 1 else ""
            tried.append(name)
            return seconds[name]

        monkeypatch.setattr(cost_model, "measured", measured)
        return tried

    return make


def engine(found: Run) -> dict[str, object]:
    engine: dict[str, object] = json.loads((found.run_dir / "manifest.json").read_text())["engine"]
    return engine


def chosen(*overrides: str, **settings: Any) -> cost_model.Way:
    return cost_model.choose(experiment.build(configured(*SMALL, *overrides, settings=settings)))[0]


def test_the_stack_is_the_fastest_before_one_is_a_tenth_slower(
    machine: Callable[[Seconds], list[str]],
) -> None:
    stacks = {"stacked 4": 2e-4, "stacked 8": 1.9e-4, "stacked 16": 2.3e-4}
    tried = machine({"stacked 32": 1e-4, **stacks})
    assert chosen("engine.mode=stacked") == ("stacked", 8, "channels_last")
    assert tried == [*stacks]


@needs_compiler
def test_of_what_is_compiled_every_stack_is_tried(machine: Callable[[Seconds], list[str]]) -> None:
    """A larger one is no slower by itself: if it seems so, others were at work meanwhile."""
    times = zip(cost_model.SIZES["compiled"], (4e-4, 3e-4, 3.4e-4, 2e-4, 2.3e-4, 2.1e-4), strict=True)
    stacks = {f"compiled {size}": seconds for size, seconds in times}
    tried = machine({"looped 1": 9e-4, **stacks})
    assert chosen() == ("compiled", 16, "channels_last")
    assert tried == ["looped 1", *stacks]


@needs_compiler
def test_a_step_is_measured_with_all_its_products() -> None:
    """Libraries leave out a product whose factor is 0, and a step of size 0 would take half of its time."""
    sizes: list[float] = []
    walk = dense.Compiled.descend_all

    def descend_all(self: Any, x: Any, batches: Any, losses: Any, step_size: float, d_hat: Any = None) -> Any:
        sizes.append(step_size)
        return walk(self, x, batches, losses, step_size, d_hat)

    with patch.object(dense.Compiled, "descend_all", descend_all):
        built = experiment.build(configured(*SMALL))
        cost_model.measured(built.task, cost_model.Way("compiled", 4), 2)
    assert sizes and 0 not in sizes


@needs_compiler
def test_client_after_client_where_a_stack_gains_nothing(machine: Callable[[Seconds], list[str]]) -> None:
    machine({"looped 1": 3.0e-4, "compiled 2": 2.9e-4})
    assert chosen() == cost_model.LOOPED


def test_a_stack_that_would_take_too_long_is_not_tried(machine: Callable[[Seconds], list[str]]) -> None:
    tried = machine({"looped 1": 0.1})
    assert chosen() == cost_model.LOOPED and tried == ["looped 1"]


def test_the_mode_that_is_asked_for_is_the_only_one_tried(machine: Callable[[Seconds], list[str]]) -> None:
    tried = machine({"stacked 4": 0.3, "looped 1": 1e-6})
    assert chosen("engine.mode=stacked") == ("stacked", 4, "channels_last") and tried == ["stacked 4"]


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, ...]:
    """Overrides for six clients with random images."""
    rng = np.random.default_rng(3)
    path = save_arrays(
        tmp_path / "images.npz", [rng.normal(size=(9, 3, 8, 8))] * 6, [rng.integers(0, 3, 9)] * 6
    )
    return (*NATURAL, f"data.path={path}", "num_rounds=2")


def test_images_are_tried_in_both_orders_of_memory(
    machine: Callable[[Seconds], list[str]], images: tuple[str, ...]
) -> None:
    """But not where looped is asked for, which is the reference of every engine, nor where one is asked for."""
    tried = machine({"looped 1": 0.3, "looped 1 contiguous": 0.2})

    def found(*more: str) -> cost_model.Way:
        return cost_model.choose(experiment.build(configured(*images, "model=cnn", *more)))[0]

    assert found() == ("looped", 1, "contiguous") and len(tried) == 2
    assert found("engine.mode=looped") == cost_model.LOOPED
    assert found("engine.mode=looped", "engine.memory_format=contiguous").memory_format == "contiguous"
    assert found("engine.memory_format=channels_last") == cost_model.LOOPED


@pytest.mark.parametrize(("one_example", "is_tried"), [(0.9e-4, False), (1.1e-4, True)])
def test_a_network_with_convolutions_is_stacked_only_where_a_step_is_not_its_examples(
    machine: Callable[[Seconds], list[str]], images: tuple[str, ...], one_example: float, is_tried: bool
) -> None:
    tried = machine(
        {"looped 1": 3e-4, "looped 1 on one example": one_example, "stacked 4": 1e-4, "stacked 8": 2e-4}
    )
    built = experiment.build(configured(*images, "model=cnn", "engine.memory_format=channels_last"))
    assert cost_model.choose(built)[0] == (("stacked", 4, "channels_last") if is_tried else cost_model.LOOPED)
    assert tried == ["looped 1", "looped 1 on one example", *(["stacked 4", "stacked 8"] if is_tried else [])]


def test_a_size_that_is_asked_for_is_taken(machine: Callable[[Seconds], list[str]]) -> None:
    tried = machine({"stacked 5": 1e-4})
    assert chosen("engine.mode=stacked", "engine.stack_size=5").stack_size == 5 and tried == ["stacked 5"]


def test_a_model_with_dropout_runs_looped(machine: Callable[[Seconds], list[str]]) -> None:
    tried = machine({"looped 1": 1e-4})
    built = experiment.build(configured(*SMALL))
    with patch.object(type(built.task), "is_stackable", False):
        assert cost_model.choose(built)[0] == cost_model.LOOPED
    assert tried == ["looped 1"]


def test_a_model_that_fails_is_left_to_its_clients(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """In a stack alone: it is not stacked. In every way: looped, with as many workers as there are, nothing kept."""
    real = cost_model.measured

    def measured(task: Any, way: cost_model.Way, batch_size: int, precision: str) -> float:
        if way.mode != "looped":
            raise RuntimeError("no batching rule")
        return real(task, way, batch_size, precision)

    monkeypatch.setattr(cost_model, "measured", measured)
    assert chosen() == cost_model.LOOPED
    assert len(list(cache.rglob("looped*"))) == len(list(cache.rglob("*-*-*"))) == 1
    built = experiment.build(configured(*SMALL, "client.batch_size=3"))
    monkeypatch.setattr(cost_model, "measured", lambda *_, **__: 1 / 0)
    assert cost_model.choose(built) == (cost_model.LOOPED, {})
    assert cost_model.num_workers(built, None) == cost_model.num_cores()


def test_what_was_measured_is_kept_for_the_workload_and_no_other(cache: Path) -> None:
    """Method, seed, rounds and clients are no part of it; model, batch and type of number are."""
    for same in ((), ("strategy=scaffold",), ("scaling=adam",), ("seed=3",), ("num_rounds=9",)):
        chosen("engine.mode=looped", *same)
        assert len(list(cache.iterdir())) == 1
    for count, other in enumerate(("model.hidden=[7]", "client.batch_size=3", "dtype=float64"), start=2):
        chosen("engine.mode=looped", other)
        assert len(list(cache.iterdir())) == count


class Normed(nn.Module):
    """Running statistics and dropout: a forward pass changes buffers and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.out = nn.BatchNorm2d(3), nn.Dropout(0.3), nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.norm(x)).flatten(1))  # type: ignore[no-any-return]


def test_measuring_leaves_no_trace_in_a_run(tmp_path: Path, images: tuple[str, ...]) -> None:
    """The first run measures, the second finds it kept; nor does it matter who computes what."""
    overrides = (*images, "model._target_=test_cost_model.Normed")
    with patch.object(cost_model, "measured", wraps=cost_model.measured) as measured:
        first = run(tmp_path / "first", *overrides)
        assert measured.called
        measured.reset_mock()
        second = run(tmp_path / "second", *overrides)
        assert not measured.called and first.bytes == second.bytes
    assert first.bytes == run(tmp_path / "third", *overrides, settings={"engine.workers": 2}).bytes


def test_a_run_goes_on_in_the_way_it_began(
    tmp_path: Path, cache: Path, machine: Callable[[Seconds], list[str]]
) -> None:
    """Where looped is fastest it begins, and is carried on where a stack would be."""
    machine({"looped 1": 1e-4, "compiled 2": 1.0, "stacked 4": 1.0})
    whole = run(tmp_path / "whole", *SMALL)
    begun = run(tmp_path / "begun", *SMALL, settings={"num_rounds": 1})
    for kept in cache.rglob("*"):
        kept.unlink() if kept.is_file() else None
    tried = machine({"looped 1": 1.0, "compiled 2": 1e-4, "stacked 4": 1e-4} | dict.fromkeys(_LARGER, 1.0))
    config = configured(*SMALL, settings={"run_dir": str(begun.run_dir)})
    with patch("fedscale_local.reports.write"):
        lifecycle.resume(begun.run_dir, config)
    assert engine(begun)["mode"] == "looped" and not tried
    assert Run(begun.run_dir, [], {}).bytes == whole.bytes


_LARGER = [f"{mode} {size}" for mode, (_, *larger) in cost_model.SIZES.items() for size in larger]


def test_the_manifest_says_what_was_chosen_and_why(tmp_path: Path) -> None:
    told = engine(run(tmp_path / "run", *SMALL))
    seconds = told["seconds_of_a_step"]
    assert isinstance(seconds, dict) and all(0 < value < 10 for value in seconds.values())
    assert f"{told['mode']} {told['stack_size']} {told['memory_format']}" in seconds


def test_beside_gpus_it_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient in this one would start a thread for each GPU, and the workers could take none."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cost_model, "measured", lambda *_, **__: 1000.0 + os.getpid())
    workers = {"engine.mode": "looped", "engine.workers": 2}
    _, seconds = cost_model.choose(experiment.build(configured(*SMALL, settings=workers)))
    assert list(seconds.values()) != [1000.0 + os.getpid()] and min(seconds.values()) > 1000


def test_few_and_short_steps_need_no_workers(machine: Callable[[Seconds], list[str]]) -> None:
    """6 clients with 10 steps each: at 10 us a step 0.6 ms a round, at 10 ms 0.6 s."""
    built = experiment.build(configured(*SMALL, "client.local_steps=10", "client.batch_size=1"))
    with patch.object(cost_model, "num_cores", return_value=7):
        assert cost_model.num_workers(built, 1e-5) == 1
        assert cost_model.num_workers(built, 1e-2) == 7


def test_costs_are_examples_worked_through() -> None:
    built = experiment.build(configured(*SMALL, "client.local_steps=10", "client.batch_size=8"))
    sizes = built.partition.sizes
    assert cost_model.costs(built, [3, 1]) == [min(8, sizes[3]) * 10, min(8, sizes[1]) * 10]
    epochs = experiment.build(configured(*SMALL, "client.local_steps=null", "client.local_epochs=2"))
    assert cost_model.costs(epochs, np.array([4])) == [2 * epochs.partition.sizes[4]]


def test_of_many_that_measure_at_once_the_first_is_right_for_all(cache: Path) -> None:
    barrier = threading.Barrier(8)

    def measure(number: int) -> float:
        def wait() -> float:
            barrier.wait()
            return float(number)

        return user_cache.number("steps/one", wait)

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(measure, range(8)))
    assert len(found) == 1 and [path.name for path in cache.iterdir()] == ["one"]


@pytest.mark.parametrize("content", ["", "no number", "1.0 2.0"])
def test_what_is_no_number_is_measured_anew(content: str, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "one").write_text(content)
    assert user_cache.number("steps/one", lambda: 2.5) == 2.5
    assert user_cache.number("steps/one", lambda: 3.5) == 2.5


def test_where_nothing_can_be_kept_each_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [user_cache.number("steps/one", lambda x=x: x) for x in (1.5, 2.5)] == [1.5, 2.5]  # type: ignore[misc]


def test_compiled_is_refused_where_it_cannot_be_had(images: tuple[str, ...]) -> None:
    built = experiment.build(configured(*images, "model=cnn", "engine.mode=compiled"))
    with pytest.raises(ConfigError, match=r"engine\.mode=compiled.*chain of linear layers"):
        cost_model.choose(built)
