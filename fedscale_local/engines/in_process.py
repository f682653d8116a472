"""The engine in this process: a Flower Grid whose nodes are function calls.

A ClientApp that offers `cohort` gets all messages of a round at once and runs them looped or stacked; any other is
called one by one, as Flower calls it. What a strategy sees does not differ.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedscale_local import dense, native
from fedscale_local import flower_adapter as adapter
from fedscale_local.client_store import OnDisk
from fedscale_local.config import CustomClient, to_json
from fedscale_local.config_engines import InProcess
from fedscale_local.engines.workers import Work, Workers
from fedscale_local.errors import ConfigError, FedscaleError, late, lost
from fedscale_local.experiment import Experiment
from fedscale_local.flower_adapter import FIRST_NODE
from fedscale_local.processes import TooLate, in_time, interrupted_after
from fedscale_local.tasks import Task

log = logging.getLogger(__name__)


class InProcessGrid(Grid):
    """Delivers messages by calling the ClientApp; between two calls of a client there is its state alone.

    states: what clients keep, by node id; a mapping on disk keeps it out of memory.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        run_config: dict[str, Any],
        seed: int = 0,
        states: MutableMapping[int, RecordDict] | None = None,
        **cohort_options: Any,
    ) -> None:
        self.client_app, self.seed = client_app, seed
        self.run_config = run_config
        self.cohort_options = cohort_options
        self.node_of_client = range(FIRST_NODE, FIRST_NODE + num_clients)
        self.states = {} if states is None else states
        self.keeps_elsewhere = states is not None
        self.num_sent = 0
        self.replies: dict[str, Message] = {}
        adapter.become_server()

    def context(self, node: int) -> Context:
        """The node's context as its last call left it."""
        node_config = {"partition-id": node - FIRST_NODE, "num-partitions": len(self.node_of_client)}
        context = adapter.new_context(node, node_config, self.run_config)
        context.state = self.states.get(node, context.state)
        return context

    def client_states(self) -> dict[int, RecordDict]:
        """What each client keeps from round to round, by node id."""
        states = {node: adapter.kept(state) for node, state in self.states.items()}
        return {node: state for node, state in states.items() if state}

    def restore_clients(self, states: Mapping[int, RecordDict]) -> None:
        """Give each client back what it kept."""
        self.states.update(states)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.node_of_client)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        stamped = []
        for message in messages:
            self.num_sent += 1
            stamped.append(adapter.stamp(message, str(self.num_sent)))
        if not stamped:
            return []
        contexts = [self.context(message.metadata.dst_node_id) for message in stamped]
        cohort = getattr(self.client_app, "cohort", None)
        if cohort is not None:
            replies: list[Message] = cohort(stamped, contexts, **self.cohort_options)
        else:
            deadline = math.inf if timeout is None else time.monotonic() + timeout
            replies = []
            with suppress(TooLate):
                for message, context in zip(stamped, contexts, strict=True):
                    replies.append(self._call(message, context, deadline - time.monotonic()))
        kept = [c for c in contexts if c.state or c.node_id in self.states]
        self.states.update({context.node_id: context.state for context in kept})
        return replies

    def _call(self, message: Message, context: Context, seconds: float) -> Message:
        """One client as Flower calls it; its state is kept only when it did not raise and was in time."""
        before = RecordDict({key: record.copy() for key, record in context.state.items()})
        try:
            with (
                adapter.seeded_globals(self.seed, adapter.round_of(message), context.node_id),
                interrupted_after(None if seconds == math.inf else seconds),
            ):
                reply = self.client_app(adapter.private_copy(message), context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__}, expected a Message")
            return reply
        except Exception as error:
            context.state = before
            return adapter.error_reply(f"{type(error).__name__}: {error}", message)
        except TooLate:
            context.state = before
            raise

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        replies = list(self.send_and_receive(messages))
        self.replies |= {reply.metadata.reply_to_message_id: reply for reply in replies}
        return [reply.metadata.reply_to_message_id for reply in replies]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(message_id) for message_id in message_ids if message_id in self.replies]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: Any) -> None:
        """There is one run."""

    @property
    def run(self) -> Any:
        return adapter.empty_run()


def choose(experiment: Experiment) -> dict[str, Any]:
    """Mode and stack size: a rule on the model and not a measurement, so that equal configs give equal bits.

    Stacking pays for fully connected networks, whose gradient is taken by hand, and more so with a C compiler at hand;
    elsewhere it is for the asking (docs/explanation-engines.md has the measurements). A stack is as large as a cache
    likes, and no larger.
    """
    task, config = experiment.task, experiment.config.engine
    assert isinstance(config, InProcess)
    if config.device == "cuda":
        return _on_gpus(experiment, config)
    mode: str = config.mode
    # What is taken by hand is not taken in bfloat16.
    workers, is_dense = config.workers, config.precision == "full" and dense.layers(task) is not None
    if mode == "compiled" or (mode == "auto" and is_dense):
        mode = _compiled(task, is_wish=mode == "auto")
    elif mode == "auto":
        mode = "looped"
    stack_size = max(4, min(32, STACK_NUMBERS // task.layout.size)) if mode != "looped" else 1
    workers = _num_cores() if workers == "auto" else workers
    return _chosen(config, mode, stack_size, workers)


def _chosen(config: InProcess, mode: str, stack_size: int, workers: int) -> dict[str, Any]:
    told = {"device": config.device, "precision": config.precision}
    return {"name": "in_process", "mode": mode, "stack_size": stack_size, "workers": workers, **told}


def _on_gpus(experiment: Experiment, config: InProcess) -> dict[str, Any]:
    """As `choose`, on GPUs: one worker each, and stacks as large as fit wherever the model can be stacked."""
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
    mode = "stacked" if config.mode != "looped" and experiment.task.is_stackable else "looped"
    stack_size = 1
    if mode == "stacked":
        fit = DEVICE_NUMBERS // _numbers(experiment)
        stack_size = max(1, min(fit, -(-experiment.clients_per_round // workers)))
    return _chosen(config, mode, stack_size, workers)


def _numbers(experiment: Experiment) -> int:
    """What a client of a stack takes: its vectors, and what its mini-batch leaves for the backward pass."""
    task, client, rule = experiment.task, experiment.config.client, experiment.local_rule
    num_examples = int(experiment.partition.sizes.max())
    takes_all = rule.wants_full_gradient or rule.wants_mean_gradient
    takes_all = takes_all or experiment.config.scaling.statistic == "full_gradient"
    if client.batch_size != "full" and not takes_all:
        num_examples = min(client.batch_size, num_examples)
    return DEVICE_VECTORS * task.layout.size + num_examples * task.numbers_per_example


def _compiled(task: Task, is_wish: bool) -> str:
    """The mode "compiled"; where it cannot be had "stacked" if it is but a wish, else a ConfigError."""
    try:
        if dense.layers(task) is None:
            raise FedscaleError("the model is not a chain of linear layers and ReLU")
        native.library("dense", task.dtype)
        return "compiled"
    except FedscaleError as error:
        if is_wish:
            log.info("engine.mode=stacked, as %s", error)
            return "stacked"
        raise ConfigError("engine.mode=compiled", str(error), "set engine.mode=auto") from None


STACK_NUMBERS = 250_000
"""Parameters of all clients of a stack together."""

DEVICE_NUMBERS = 2**31
"""Numbers of all clients of a stack on a GPU, 8 GiB in float32; a stack that does not fit is done one by one."""

DEVICE_VECTORS = 8
"""Of d numbers, for each client: its model, gradient, statistic, and what a local rule holds."""


def _num_cores() -> int:
    """The cores this process may use; one where processes cannot safely be forked.

    FEDSCALE_CORES is this run's share where several runs are at work, as in a sweep.
    """
    if sys.platform != "linux":
        return 1
    cores = len(os.sched_getaffinity(0))
    return min(cores, int(os.environ.get("FEDSCALE_CORES", cores)))


def run(experiment: Experiment, chosen: dict[str, Any], server_app: ServerApp, client_app: ClientApp) -> None:
    """All rounds, each process on one thread: more threads would change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    adapter.quiet_flower()
    config = experiment.config
    task, workers = experiment.task, chosen["workers"]
    task.is_compiled, task.precision = chosen["mode"] == "compiled", chosen["precision"]
    # Several GPUs are their workers' alone. This process evaluates on the processor and never touches CUDA, so that a
    # worker can be forked again at any time: it takes the GPU of the one that ended.
    task.to(_device(chosen, 0) if workers == 1 else torch.device("cpu"))
    run_config: dict[str, Any] = {"config": to_json(config)}
    if isinstance(config.client, CustomClient):
        run_config = config.client.run_config | run_config
    runner = _Runner(workers, config.round_timeout, lambda number: task.to(_device(chosen, number)))
    options = {"stack_size": chosen["stack_size"], "run": runner}
    engine, kept = config.engine, Path(str(config.run_dir)) / "client_state"
    states = OnDisk(kept) if isinstance(engine, InProcess) and engine.client_state == "disk" else None
    try:
        grid = InProcessGrid(
            client_app, len(experiment.partition), run_config, config.seed, states, **options
        )
        server_app(grid, adapter.new_context(1, {}, run_config))
    finally:
        runner.close()
        torch.set_num_threads(threads)
        shutil.rmtree(kept, ignore_errors=True)  # checkpoints have it


def _device(chosen: dict[str, Any], number: int) -> torch.device:
    """Where the worker of this number computes."""
    return torch.device("cuda", number) if chosen["device"] == "cuda" else torch.device("cpu")


class _Runner:
    """Runs cohorts on workers that are forked when the first round asks for them; one worker is this process.

    begin: what a worker does first, given its number.
    """

    def __init__(
        self,
        num_workers: int,
        round_timeout: float | None,
        begin: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.num_workers, self.round_timeout, self.begin = num_workers, round_timeout, begin
        self.workers: Workers | None = None

    def __call__(self, train: Work, experiment: Experiment, cohorts: Sequence[Sequence[Any]]) -> list[Any]:
        if self.num_workers == 1:
            return in_time(partial(train, experiment), cohorts, late, self.round_timeout)
        if self.workers is None:
            self._ready(experiment)
            self.workers = Workers(self.num_workers, train, experiment, self.begin)
        costs = [sum(cost(experiment, order.client) for order in cohort) for cohort in cohorts]
        return self.workers.map(cohorts, costs, lost, self.round_timeout)

    def _ready(self, experiment: Experiment) -> None:
        if torch.cuda.is_initialized():
            raise FedscaleError(
                "this process has used a GPU, and what is forked from it cannot: start another"
            )
        engine = experiment.config.engine
        if isinstance(engine, InProcess) and engine.device == "cpu":
            _ = experiment.task.resident  # made here, it is one copy for all of them

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()


def cost(experiment: Experiment, client: int) -> float:
    """Examples that the client will work through in a round."""
    config, size = experiment.config.client, int(experiment.partition.sizes[client])
    if config.local_epochs is not None:
        return size * config.local_epochs
    batch = size if config.batch_size == "full" else min(size, config.batch_size)
    return batch * (config.local_steps or 0)
