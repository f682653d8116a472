"""Which way a round is computed fastest on this machine, from a short measurement at the start of a run.

What is measured is a plain local step on the run's own examples, in each way that the model allows: one client after
the other or so many in a stack, and where images are read with either order of memory. What was found is kept for the
machine and the workload, which is model, kind of data, batch and type of number; so equal configurations have equal
bits on one machine, whoever was first. The method is no part of it: methods that are compared run the same way.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from fedscale_local import dense, native, user_cache
from fedscale_local.client_step import scaled_local_steps
from fedscale_local.config_engines import InProcess
from fedscale_local.engines.workers import apart
from fedscale_local.errors import RAISED, ConfigError, FedscaleError
from fedscale_local.experiment import Experiment, forks_beside_gpus
from fedscale_local.processes import keep_memory
from fedscale_local.scaling import Scaling
from fedscale_local.tasks import Task

log = logging.getLogger(__name__)

SIZES = {"stacked": (4, 8, 16, 32, 64), "compiled": (2, 4, 8, 16, 32, 64)}
"""Clients of a stack; what is compiled takes one after the other, and gains by the first already."""
STACK_NUMBERS = 2_000_000
"""Parameters of all clients of a stack together, beyond the smallest: what a cache may hold."""
GAIN = 1.1
"""How much faster than client after client a way must be; and a stack by torch.func that is so much slower ends the
search."""
TRIAL_SECONDS = 0.5
"""What the smallest stack may take to be tried, if it is no faster than client after client: then it is arithmetic."""
DISPATCH = 1 / 3
"""The part of a step that one of a single example must take for a stack by torch.func to be tried: it saves no more."""
EXAMPLES = 4096
"""Of the training set, which the measured steps draw from."""
REPEATS, SECONDS = 20, 0.05
"""A way is measured so often, or, after two, so long; the shortest counts, which others at work disturb least."""
STEPS = 5
"""Local steps that are measured together, if one is short: so what comes before the first and after the last counts."""
WORKER_SECONDS = 0.003
"""What a round must take that it is worth sharing out among workers."""


class Way(NamedTuple):
    """How clients are computed; stack_size 1 for looped."""

    mode: str
    stack_size: int
    memory_format: str = "channels_last"

    def __str__(self) -> str:
        return f"{self.mode} {self.stack_size} {self.memory_format}"


LOOPED = Way("looped", 1)
"""The reference."""


def choose(experiment: Experiment) -> tuple[Way, dict[str, float]]:
    """The fastest way of those that the engine's section admits, and the seconds of a client's step in each tried.

    Raises ConfigError where a model cannot be had in the mode that is asked for.
    """
    task, config = experiment.task, experiment.config.engine
    assert isinstance(config, InProcess)
    seconds: dict[Way, float] = {}
    best: Way | None = None
    with _alone():
        for way in _ways(task, config):
            if (
                best is not None
                and way.stack_size > 1
                and not _may_gain(experiment, way, best, seconds[best])
            ):
                break
            seconds[way] = _seconds(experiment, way)
            # What a stack costs beside its steps is not measured, so a larger one need not be much faster.
            if best is None or seconds[way] * (GAIN if best.stack_size == 1 else 1.0) < seconds[best]:
                best = way
            elif way.mode == "stacked" and seconds[way] > GAIN * seconds[best]:
                break  # a larger one is slower still; of what is compiled that is said by chance alone
    assert best is not None
    return best, {str(way): found for way, found in seconds.items() if found < float("inf")}


def _may_gain(experiment: Experiment, way: Way, best: Way, seconds: float) -> bool:
    """Can this stack be faster than the best way so far, by enough to be worth a trial?"""
    if seconds * way.stack_size * 3 > TRIAL_SECONDS:
        return False
    if best.stack_size > 1 or dense.layers(experiment.task) is not None:
        return True
    return _seconds(experiment, best, batch_size=1) > DISPATCH * seconds


def modes(task: Task, config: InProcess) -> list[str]:
    """What there is to choose from, the reference first."""
    mode = config.mode
    # What is taken by hand is not taken in bfloat16.
    is_dense = config.precision == "full" and dense.layers(task) is not None
    if mode == "looped" or (mode == "auto" and not task.is_stackable):
        return ["looped"]
    if mode == "stacked":
        return ["stacked"]
    try:
        if not is_dense:
            raise FedscaleError("the model is not a chain of linear layers and ReLU")
        native.library("dense", task.dtype)
        fast = "compiled"
    except FedscaleError as error:
        if mode == "compiled":
            raise ConfigError("engine.mode=compiled", str(error), "set engine.mode=auto") from None
        if is_dense:
            log.info("nothing is compiled, as %s", error)
        fast = "stacked"
    return [fast] if mode == "compiled" else ["looped", fast]


def _ways(task: Task, config: InProcess) -> Iterator[Way]:
    """Those that the section admits, the reference first, small stacks before large ones."""
    formats = [LOOPED.memory_format]
    if config.memory_format != "auto":
        formats = [config.memory_format]
    elif config.mode == "auto" and task.reads_images:  # looped is the reference of all engines
        formats = ["channels_last", "contiguous"]
    for mode in modes(task, config):
        if mode == "looped":
            yield from (Way(mode, 1, format) for format in formats)
            continue
        smallest, *larger = SIZES[mode] if config.stack_size == "auto" else [config.stack_size]
        fitting = (size for size in larger if size * task.layout.size <= STACK_NUMBERS)
        yield from (Way(mode, size, formats[0]) for size in (smallest, *fitting))


def _seconds(experiment: Experiment, way: Way, batch_size: int | None = None) -> float:
    """Of a client's step; infinite where the model cannot be computed so, or at all, as its clients will tell."""
    task, config, batch = experiment.task, experiment.config, batch_size or _batch_size(experiment)
    module, shape = repr(task.module), repr(task.layout.shapes)
    data = f"{task.dataset.kind} {task.dataset.input_shape} {task.dataset.num_classes} {task.dataset.x.dtype}"
    machine = user_cache.key(user_cache.processor(), torch.__version__)
    precision = getattr(config.engine, "precision", "full")
    workload = user_cache.key(repr(config.model), module, shape, data, f"{batch} {task.dtype} {precision}")
    name = f"steps/{machine[:16]}-{workload[:16]}/{str(way).replace(' ', '-')}"
    measure = partial(measured, way=way, batch_size=batch, precision=precision)
    try:
        if forks_beside_gpus(config):
            return user_cache.number(name, lambda: float(apart(measure, task)))
        return user_cache.number(name, lambda: measure(task))
    except RAISED as error:
        log.info("%s is not possible: %s: %s", way, type(error).__name__, error)
        return float("inf")


def _batch_size(experiment: Experiment) -> int:
    """Of the largest shard, or of the mean one where a batch is all that a client has."""
    batch, sizes = experiment.config.client.batch_size, experiment.partition.sizes
    return max(1, round(sizes.mean())) if batch == "full" else min(int(batch), int(sizes.max()))


def measured(task: Task, way: Way, batch_size: int, precision: str = "full") -> float:
    """Seconds of one client's plain step of this batch, on a model of its own."""
    few = dataclasses.replace(task.dataset, x=task.dataset.x[:EXAMPLES], y=task.dataset.y[:EXAMPLES])
    own = Task(copy.deepcopy(task.module), few, task.dtype, task.weight_decay)
    own.become(way.mode == "compiled", way.memory_format, precision)
    own.module.train()
    oracle = own.looped if way.mode == "looped" else own.stacked
    stream, began, shortest, steps = torch.Generator().manual_seed(0), time.perf_counter(), float("inf"), 1
    x = oracle.gather([own.initial_params] * way.stack_size)
    for repeat in range(REPEATS + 1):
        rows = [
            torch.randint(len(few.x), (steps, batch_size), generator=stream).unbind()
            for _ in range(way.stack_size)
        ]
        start = time.perf_counter()
        batches = oracle.batches(rows, [None] * way.stack_size)
        # A step of size 0 would be measured as none: products are left out where their factor is 0.
        scaled_local_steps(oracle, x, batches, Scaling("identity"), step_size=1e-6)
        end = time.perf_counter()
        if repeat:  # the first prepares what is kept
            shortest = min(shortest, (end - start) / steps)
        if repeat > 1 and end - began > SECONDS:
            break
        steps = STEPS if end - start < SECONDS / STEPS else 1
    return shortest / way.stack_size


@contextmanager
def _alone() -> Iterator[None]:
    """As a run computes: on one thread, keeping memory; and with random numbers that nobody else sees."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_memory()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def num_workers(experiment: Experiment, seconds_per_step: float | None) -> int:
    """As many as there are cores; one where a round is known to be too short to be shared out. It changes no result."""
    if seconds_per_step is None:
        return num_cores()
    examples = float(np.mean(costs(experiment, experiment.eligible))) * experiment.clients_per_round
    seconds = examples / _batch_size(experiment) * seconds_per_step
    return num_cores() if seconds > WORKER_SECONDS else 1


def costs(experiment: Experiment, clients: ArrayLike) -> list[float]:
    """Examples that each of these clients will work through in a round."""
    config, sizes = experiment.config.client, experiment.partition.sizes[np.asarray(clients, dtype=np.int64)]
    if config.local_epochs is not None:
        return (sizes * config.local_epochs).tolist()
    batches = sizes if config.batch_size == "full" else np.minimum(sizes, config.batch_size)
    return (batches * (config.local_steps or 0)).tolist()


def num_cores() -> int:
    """The cores this process may use; one where processes cannot safely be forked.

    FEDSCALE_CORES is this run's share where several runs are at work, as in a sweep.
    """
    if sys.platform != "linux":
        return 1
    cores = len(os.sched_getaffinity(0))
    return min(cores, int(os.environ.get("FEDSCALE_CORES", cores)))
