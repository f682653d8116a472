"""The server's side of chunks on Ray: a round's clients in a few messages, each to one worker.

To strategies it is the in-process grid: it keeps what clients keep, and the cohort that it calls runs elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedscale_local import chunk
from fedscale_local import flower_adapter as adapter
from fedscale_local.config import CustomClient
from fedscale_local.config_engines import Ray
from fedscale_local.engines import cost_model
from fedscale_local.engines.in_process import InProcessGrid
from fedscale_local.engines.workers import divide
from fedscale_local.errors import FedscaleError
from fedscale_local.experiment import Experiment

WAIT_SECONDS = 300.0
"""How long the start of a run waits for Ray."""


def chunked(experiment: Experiment, grid: Grid) -> Grid:
    """A grid that sends chunks through `grid`, where the engine is Ray and the clients are ours; else `grid` itself."""
    config, engine = experiment.config, experiment.config.engine
    if not isinstance(engine, Ray):
        return grid
    adapter.renew_ray_workers()
    if isinstance(config.client, CustomClient):
        return grid
    _wait(lambda: bool(list(grid.get_node_ids())), "Flower has no nodes")
    num_chunks = num_workers(engine) if engine.chunks == "auto" else engine.chunks
    far = SimpleNamespace(cohort=partial(far_cohort, experiment, grid, num_chunks))
    return InProcessGrid(far, len(experiment.partition), {}, config.seed)  # type: ignore[arg-type]


def far_cohort(
    experiment: Experiment,
    grid: Grid,
    num_chunks: int,
    messages: Sequence[Message],
    contexts: Sequence[Context],
) -> list[Message]:
    """The replies of these clients, from the chunks in which they were sent; contexts get their new states.

    Chunks are made alike in predicted cost. One that fails is a failure of all its clients, with its reason; to one
    that does not come back in time there are no replies.
    """
    clients = [context.node_id - adapter.FIRST_NODE for context in contexts]
    nodes = sorted(grid.get_node_ids())
    shares = divide(cost_model.costs(experiment, clients), min(num_chunks, len(nodes)))
    shares = [sorted(share) for share in shares if share]
    sent = []
    for node, share in zip(nodes, shares, strict=False):
        parts = [chunk.Part(clients[i], messages[i].content, contexts[i].state) for i in share]
        sent.append(adapter.message_to(node, chunk.pack(parts), adapter.CHUNK))
    seconds = experiment.config.round_timeout
    patience = None if seconds is None else seconds + chunk.GRACE_SECONDS
    received = {r.metadata.reply_to_message_id: r for r in grid.send_and_receive(sent, timeout=patience)}
    replies = []
    for message, share in zip(sent, shares, strict=True):
        reply = received.get(message.metadata.message_id)
        told = {} if reply is None else _told(reply, [clients[i] for i in share])
        for i in share:
            if clients[i] not in told:
                continue
            part = told[clients[i]]
            if isinstance(part.said, str):
                replies.append(adapter.error_reply(part.said, messages[i]))
            else:
                contexts[i].state = part.state
                replies.append(Message(part.said, reply_to=messages[i]))
    return replies


def _told(reply: Message, clients: Sequence[int]) -> dict[int, chunk.Part]:
    """What a chunk's reply says of each of its clients."""
    try:
        if not reply.has_error():
            return {part.client: part for part in chunk.unpack(reply.content)}
        reason = str(reply.error.reason)
    except Exception as error:
        reason = f"the reply of its chunk cannot be read ({type(error).__name__}: {error})"
    return {client: chunk.Part(client, reason, RecordDict()) for client in clients}


def num_workers(engine: Ray) -> int:
    """How many workers fit on the nodes of Ray, which runs in this process and may be about to start."""
    import ray

    _wait(ray.is_initialized, "Ray has not started")
    needs = {"CPU": engine.num_cpus, "GPU": engine.num_gpus}
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = [min(int(node.get(key, 0) / need) for key, need in needs.items() if need) for node in resources]
    return max(1, sum(fits))


def _wait(is_there: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            raise FedscaleError(f"{otherwise} after {WAIT_SECONDS:.0f} seconds")
        time.sleep(0.1)
