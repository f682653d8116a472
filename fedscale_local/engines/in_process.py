"""The engine in this process: a Flower Grid whose nodes are function calls.

A ClientApp that offers `cohort` gets all messages of a round at once and runs them looped or stacked; any other is
called one by one, as Flower calls it. What a strategy sees does not differ.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedscale_local import flower_adapter as adapter
from fedscale_local.client_store import InMemory, Kept, OnDisk
from fedscale_local.config import CustomClient, to_json
from fedscale_local.config_engines import InProcess
from fedscale_local.engines import cost_model, gpus
from fedscale_local.engines.workers import Work, Workers
from fedscale_local.errors import RAISED, FedscaleError, late, lost
from fedscale_local.experiment import Experiment
from fedscale_local.flower_adapter import FIRST_NODE
from fedscale_local.processes import TooLate, in_time, interrupted_after, keep_memory
from fedscale_local.tasks import Task


class InProcessGrid(Grid):
    """Delivers messages by calling the ClientApp; between two calls of a client there is its state alone.

    states: what clients keep, by node id.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        run_config: dict[str, Any],
        seed: int = 0,
        states: InMemory | OnDisk | None = None,
        **cohort_options: Any,
    ) -> None:
        self.client_app, self.seed = client_app, seed
        self.run_config = run_config
        self.cohort_options = cohort_options
        self.node_of_client = range(FIRST_NODE, FIRST_NODE + num_clients)
        self.states = InMemory() if states is None else states
        self.num_sent = 0
        self.replies: dict[str, Message] = {}
        adapter.become_server()

    def context(self, node: int) -> Context:
        """The node's context as its last call left it."""
        node_config = {"partition-id": node - FIRST_NODE, "num-partitions": len(self.node_of_client)}
        context = adapter.new_context(node, node_config, self.run_config)
        context.state = self.states.get(node, context.state)
        return context

    def settle_clients(self, round: int, is_due: bool) -> Kept:
        """What each client keeps now that this round is done, whether or not a checkpoint is due."""
        return self.states.settle(round)

    def restore_clients(self, states: Mapping[int, RecordDict]) -> None:
        """Give each client back what it kept."""
        self.states.restore(states)

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
        except RAISED as error:
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


def choose(experiment: Experiment, before: Mapping[str, Any]) -> dict[str, Any]:
    """How clients are computed, and by how many workers: as `before`, where a run goes on, else as measured.

    A run goes on in the way it began, wherever: other kernels round otherwise. Somebody else's ClientApp is called.
    """
    task, config = experiment.task, experiment.config.engine
    assert isinstance(config, InProcess)
    if isinstance(experiment.config.client, CustomClient):
        return _chosen(config, cost_model.LOOPED, 1)
    if config.device == "cuda":
        return _chosen(config, *gpus.choose(experiment, config))
    way, seconds = _before(task, config, before) or cost_model.choose(experiment)
    workers = config.workers
    if workers == "auto":
        workers = cost_model.num_workers(experiment, seconds.get(str(way)))
    return _chosen(config, way, workers) | {"seconds_of_a_step": seconds}


def _chosen(config: InProcess, way: cost_model.Way, workers: int) -> dict[str, Any]:
    told = {"workers": workers, "device": config.device, "precision": config.precision}
    return {"name": "in_process", **way._asdict(), **told}


def _before(
    task: Task, config: InProcess, before: Mapping[str, Any]
) -> tuple[cost_model.Way, dict[str, float]] | None:
    """The way of the run so far, unless another is asked for or it cannot be had here."""
    try:
        way = cost_model.Way(before["mode"], before["stack_size"], before["memory_format"])
        seconds = before["seconds_of_a_step"]
    except KeyError:
        return None
    asked = (config.mode, config.stack_size, config.memory_format)
    is_asked_for = all(wish in ("auto", found) for wish, found in zip(asked, way, strict=True))
    return (way, seconds) if is_asked_for and way.mode in cost_model.modes(task, config) else None


def run(experiment: Experiment, chosen: dict[str, Any], server_app: ServerApp, client_app: ClientApp) -> None:
    """All rounds, each process on one thread: more threads would change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_memory()
    adapter.quiet_flower()
    config = experiment.config
    task, workers = experiment.task, chosen["workers"]
    task.become(chosen["mode"] == "compiled", chosen["memory_format"], chosen["precision"])
    # Several GPUs are their workers' alone. This process evaluates on the processor and never touches CUDA, so that a
    # worker can be forked again at any time: it takes the GPU of the one that ended.
    task.to(_device(chosen, 0) if workers == 1 else torch.device("cpu"))
    run_config: dict[str, Any] = {"config": to_json(config)}
    if isinstance(config.client, CustomClient):
        run_config = config.client.run_config | run_config
    runner = _Runner(workers, config.round_timeout, lambda number: task.to(_device(chosen, number)))
    options = {"stack_size": chosen["stack_size"], "run": runner}
    gc.freeze()  # whatever is there outlives the rounds: no collection goes through it, here or in workers
    engine = config.engine
    is_on_disk = isinstance(engine, InProcess) and engine.client_state == "disk"
    states = OnDisk(Path(str(config.run_dir))) if is_on_disk else None
    try:
        grid = InProcessGrid(
            client_app, len(experiment.partition), run_config, config.seed, states, **options
        )
        server_app(grid, adapter.new_context(1, {}, run_config))
    finally:
        runner.close()
        gc.unfreeze()
        torch.set_num_threads(threads)
        if states is not None:
            states.close()


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
        predicted = [sum(cost_model.costs(experiment, [o.client for o in cohort])) for cohort in cohorts]
        return self.workers.map(cohorts, predicted, lost, self.round_timeout)

    def _ready(self, experiment: Experiment) -> None:
        if torch.cuda.is_initialized():
            raise FedscaleError("this process has used a GPU, and what it forks cannot: start another")
        engine = experiment.config.engine
        if isinstance(engine, InProcess) and engine.device == "cpu":
            _ = experiment.task.resident  # made here, it is one copy for all of them

    def close(self) -> None:
        if self.workers is not None:
            self.workers.close()
