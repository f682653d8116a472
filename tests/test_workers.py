"""Forked workers: results in order and bit for bit; one that dies costs its own items and nobody else's.

And the memory that they compute in, which stays theirs from step to step.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fedscale_local import outbox
from fedscale_local.engines.workers import Workers
from fedscale_local.processes import KEEPS_MEMORY


def work(shared: torch.Tensor, item: Any) -> Any:
    """What the workers do: an item is a number to add, "die", a size to fill with ones, or a tensor to double."""
    if item == "die":
        os._exit(9)
    if item == "hang":
        time.sleep(100_000)
    if isinstance(item, tuple):
        rows = outbox.empty(item, torch.float32).fill_(1.0)
        return {"beside": torch.full(item[1:], 2.0), "rows": list(rows), "place": rows.data_ptr()}
    if isinstance(item, dict):
        return {"doubled": item["tensor"] * 2, "same": [item["tensor"]] * 3, "empty": torch.zeros(0)}
    return shared + item, os.getpid()


def died(item: Any, reason: str) -> str:
    return f"{item}: {reason}"


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(3, work, torch.arange(4.0))
    yield made
    made.close()


def values(results: list[Any]) -> list[float]:
    return [float(result[0][0]) for result in results]


def test_results_come_in_the_order_of_the_items(workers: Workers) -> None:
    costs = [1.0, 9.0, 2.0, 9.0, 3.0, 1.0, 1.0]
    results = workers.map(range(7), costs, died)
    assert values(results) == list(range(7))
    processes = {result[1] for result in results}
    assert len(processes) == 3 and os.getpid() not in processes
    assert values(workers.map([5], [1.0], died)) == [5]
    assert workers.map([], [], died) == []


def doubled(workers: Workers, *numbers: float) -> list[torch.Tensor]:
    items = [{"tensor": torch.full((50_000,), number)} for number in numbers]
    return [result["doubled"] for result in workers.map(items, [1.0] * len(items), died)]


def test_what_was_received_stays_as_it_was_for_as_long_as_somebody_has_it(workers: Workers) -> None:
    """Numbers are read where the worker wrote them: what it writes next must lie elsewhere, or after they are gone."""
    kept = [doubled(workers, 1.0, 2.0, 3.0)[1][7:9]]  # a part of one is enough
    for number in range(4, 20):
        kept.append(doubled(workers, number, number, number, number)[number % 4])
    assert [float(part.min()) for part in kept] == [float(part.max()) for part in kept]
    assert [float(part[0]) for part in kept] == [4.0, *(2.0 * number for number in range(4, 20))]


def test_memory_is_used_again_when_nobody_has_what_was_in_it(workers: Workers) -> None:
    def places(*numbers: float) -> set[int]:
        return {result.data_ptr() for result in doubled(workers, *numbers)}

    assert places(1.0, 2.0, 3.0) == places(4.0, 5.0, 6.0)
    held = doubled(workers, 7.0, 8.0, 9.0)
    assert not places(1.0, 2.0, 3.0) & {result.data_ptr() for result in held}


@pytest.mark.parametrize("size", [4096, 300_000])
def test_what_does_not_fit_in_the_memory_goes_through_the_pipe(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedscale_local.engines.workers.SHARED_BYTES", size)
    small = Workers(1, work, torch.arange(4.0))
    try:
        for _ in range(2):
            results = doubled(small, *range(5))
            assert all(torch.equal(got, torch.full((50_000,), 2.0 * n)) for n, got in enumerate(results))
    finally:
        small.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_tensors_cross_without_a_change(workers: Workers, dtype: torch.dtype) -> None:
    tensor = (torch.randn(3_000_000, generator=torch.Generator().manual_seed(0)) * 1000).to(dtype)
    (result,) = workers.map([{"tensor": tensor}], [1.0], died)
    assert torch.equal(result["doubled"], tensor * 2) and result["doubled"].dtype == dtype
    assert all(torch.equal(part, tensor) for part in result["same"])
    assert result["empty"].shape == (0,)
    result["doubled"].add_(1)  # what came over is writable


@pytest.mark.parametrize("size", [1 << 30, 4096, 60_000])
def test_what_is_made_in_the_outbox_crosses_without_a_copy(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both processes have the memory at one address: there it is read. Where there is no room, it crosses as ever."""
    monkeypatch.setattr("fedscale_local.engines.workers.SHARED_BYTES", size)
    workers, held = Workers(1, work, torch.arange(4.0)), []
    try:
        for _ in range(3):
            first, second = workers.map([(3, 1024), (2, 2048)], [1.0, 1.0], died)
            held += [*first["rows"], *second["rows"]]
            for result, (count, length) in ((first, (3, 1024)), (second, (2, 2048))):
                assert torch.equal(torch.stack(result["rows"]), torch.ones(count, length))
                assert torch.equal(result["beside"], torch.full((length,), 2.0))
                places = [row.data_ptr() - result["place"] for row in result["rows"]]
                if size == 1 << 30:
                    assert places == [4 * length * row for row in range(count)]
    finally:
        workers.close()
    assert all(bool((row == 1).all()) for row in held)


def test_a_worker_that_dies_costs_its_own_items(workers: Workers) -> None:
    first, second, third = workers.map([1, "die", 3], [1.0, 1.0, 1.0], died)
    assert second == "die: the worker process ended with exit code 9"
    assert values([first, third]) == [1, 3]
    assert values(workers.map([1, 2, 3], [1.0, 1.0, 1.0], died)) == [1, 2, 3]


def test_workers_that_die_while_they_wait_cost_nothing(workers: Workers) -> None:
    before = [process.pid for process, _ in workers.processes]
    for pid in before[:2]:
        os.kill(pid, signal.SIGKILL)
    for process, _ in workers.processes[:2]:
        process.join()
    assert values(workers.map([1, 2, 3], [1.0, 1.0, 1.0], died)) == [1, 2, 3]
    assert [process.pid for process, _ in workers.processes][2] == before[2]


def test_they_end_by_themselves(workers: Workers) -> None:
    workers.map([1, "die", 3], [1.0, 1.0, 1.0], died)  # one of them is a late one
    workers.close()
    assert [process.exitcode for process, _ in workers.processes] == [0, 0, 0]


def test_one_that_hangs_is_ended_when_the_time_is_over(workers: Workers) -> None:
    results = workers.map([1, "hang", 2], [1.0] * 3, died, seconds=1.0)
    assert results[1] == "hang: no reply in time"
    assert values([results[0], results[2]]) == [1.0, 2.0]
    assert values(workers.map([3, 4, 5], [1.0] * 3, died, seconds=60.0)) == [3.0, 4.0, 5.0]


FAULTS = """
import resource, sys
import torch
from torch import nn
from fedscale_local.processes import keep_memory

torch.set_num_threads(1)
first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
model = nn.Sequential(first, nn.MaxPool2d(2), nn.ReLU(), second, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1568, 10))
x = torch.zeros(32, 1, 28, 28).contiguous(memory_format=torch.channels_last)

if sys.argv[1] == "keep":
    keep_memory()
for step in range(25):
    if step == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(x).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is told")
def test_what_a_step_frees_the_next_one_finds() -> None:
    """Pages that the kernel clears in twenty steps of a small network of convolutions: few.

    Left alone they are more than 3,000, unless the kernel happens to clear a huge page at once.
    """

    def faults(*arguments: str, **environment: str) -> int:
        command = [sys.executable, "-c", FAULTS, *arguments]
        env = {**os.environ, **environment}
        return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < 2_000 and faults("leave", **KEEPS_MEMORY) < 2_000
