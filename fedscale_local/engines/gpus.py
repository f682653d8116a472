"""Which way a round is computed on the GPUs of this machine: a rule, as stacks are as large as fit."""

from __future__ import annotations

import sys

import torch

from fedscale_local.config_engines import InProcess
from fedscale_local.engines.cost_model import LOOPED, Way
from fedscale_local.errors import ConfigError
from fedscale_local.experiment import Experiment

NUMBERS = 2**31
"""Of all clients of a stack, 8 GiB in float32; a stack that does not fit is done one by one."""
VECTORS = 8
"""Of d numbers, for each client: its model, gradient, statistic, and what a local rule holds."""


def choose(experiment: Experiment, config: InProcess) -> tuple[Way, int]:
    """The way, and how many workers, which take a GPU each: stacked wherever the model can be.

    Raises ConfigError where there is no GPU, or more workers are wanted than there are.
    """
    # By NVML, which leaves CUDA alone: where workers are to be forked, their parent must not have touched it.
    found = torch.cuda.device_count()
    if not found:
        expectation = f"torch {torch.__version__} finds no GPU on this machine"
        raise ConfigError("engine.device=cuda", expectation, "set engine.device=cpu")
    if config.workers != "auto" and config.workers > found:
        expectation = f"each worker takes a GPU, and there are {found}"
        raise ConfigError(f"engine.workers={config.workers}", expectation, "set engine.workers=auto")
    most = min(found, experiment.clients_per_round) if sys.platform == "linux" else 1
    workers = most if config.workers == "auto" else config.workers
    memory_format = LOOPED.memory_format if config.memory_format == "auto" else config.memory_format
    if config.mode == "looped" or not experiment.task.is_stackable:
        return Way("looped", 1, memory_format), workers
    fit = max(1, min(NUMBERS // _numbers(experiment), -(-experiment.clients_per_round // workers)))
    return Way("stacked", fit if config.stack_size == "auto" else config.stack_size, memory_format), workers


def _numbers(experiment: Experiment) -> int:
    """What a client of a stack takes: its vectors, and what its mini-batch leaves for the backward pass."""
    task, client, rule = experiment.task, experiment.config.client, experiment.local_rule
    num_examples = int(experiment.partition.sizes.max())
    takes_all = rule.wants_full_gradient or rule.wants_mean_gradient
    takes_all = takes_all or experiment.config.scaling.statistic == "full_gradient"
    if client.batch_size != "full" and not takes_all:
        num_examples = min(client.batch_size, num_examples)
    return VECTORS * task.layout.size + num_examples * task.numbers_per_example
