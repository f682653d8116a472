"""ClientApps as other people write them: they know Flower, torch and their own data, and nothing of this project."""

from __future__ import annotations

import time

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import (
    LocalDpMod,
    adaptiveclipping_mod,
    arrays_size_mod,
    fixedclipping_mod,
    message_size_mod,
)
from flwr.clientapp.typing import ClientAppCallable
from torch import nn

app = ClientApp()
clipped = ClientApp()
adaptive = ClientApp()
noisy = ClientApp()
measured = ClientApp()
not_an_app = len


@app.train()
@clipped.train(mods=[fixedclipping_mod])
@adaptive.train(mods=[adaptiveclipping_mod])
@noisy.train(mods=[LocalDpMod(clipping_norm=0.5, sensitivity=0.01, epsilon=1.0, delta=0.1)])
@measured.train(mods=[message_size_mod, arrays_size_mod])
def train(message: Message, context: Context) -> Message:
    """Some steps of SGD on all of the client's examples, as a tutorial has it."""
    settings, me = context.run_config, int(context.node_config["partition-id"])
    with np.load(str(settings["file"])) as file:
        mine = file["client"] == me
        x, y = torch.from_numpy(file["x"][mine]), torch.from_numpy(file["y"][mine])
    state = message.content["arrays"].to_torch_state_dict()  # type: ignore[union-attr]
    model = nn.Linear(state["weight"].shape[1], state["weight"].shape[0]).to(x.dtype)
    model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=float(settings["learning-rate"]))
    for _ in range(int(settings["local_steps"])):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(x), "train-loss": loss.item()})
    return Message(
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message
    )


def counting(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod of one's own: counts in the client's state; client 1 fails at its second and third call, having counted."""
    before = context.state.get("calls", ConfigRecord({"count": 0}))
    count = int(before["count"]) + 1  # type: ignore[index]
    context.state["calls"] = ConfigRecord({"count": count})
    attempts.append((int(context.node_config["partition-id"]), count))
    if attempts.count((1, 2)) in (1, 2) and attempts[-1] == (1, 2):
        raise RuntimeError("out of memory")
    reply = call_next(message, context)
    reply.content["metrics"]["calls"] = count  # type: ignore[index]
    return reply


attempts: list[tuple[int, int]] = []
counted = ClientApp()
counted.train(mods=[counting])(train)

careless = ClientApp()


@careless.train()
def change_everything(message: Message, context: Context) -> Message | None:
    """Client 0 spoils what it was sent and returns nothing."""
    if context.node_config["partition-id"] == 0:
        for array in message.content["arrays"].values():  # type: ignore[union-attr]
            array.numpy()[...] = np.nan
        message.content["arrays"].clear()  # type: ignore[union-attr]
        message.content["config"]["server-round"] = -1  # type: ignore[index]
        return None
    return train(message, context)


dropping_out = ClientApp()


@dropping_out.train()
def draw(message: Message, context: Context) -> Message:
    """Draws from the global generator, as torch's DataLoader and dropout do."""
    reply = train(message, context)
    arrays = reply.content["arrays"].to_torch_state_dict()  # type: ignore[union-attr]
    reply.content["arrays"] = ArrayRecord({k: v + 0.1 * torch.randn_like(v) for k, v in arrays.items()})
    return reply


confused = ClientApp()


@confused.train()
def answer_in_many_ways(message: Message, context: Context) -> Message:
    """Clients 0, 1 and 2 each answer with something that Flower's strategies cannot take."""
    me, reply = context.node_config["partition-id"], train(message, context)
    arrays = reply.content["arrays"].to_torch_state_dict()  # type: ignore[union-attr]
    if me == 0:
        reply.content["metrics"]["mood"] = 3  # type: ignore[index]
    if me == 1:
        reply.content["more"] = ArrayRecord(arrays)
    if me == 2:
        reply.content["arrays"] = ArrayRecord({"weight": arrays["weight"].T, "bias": arrays["bias"]})
    return reply


telling = ClientApp()


@telling.train()
def tell_a_history(message: Message, context: Context) -> Message:
    """Each client tells a list of numbers, client 0 a longer one and client 1 more examples than there are."""
    me, reply = context.node_config["partition-id"], train(message, context)
    metrics = reply.content["metrics"]
    metrics["history"] = [1.0, np.nan] + [2.0] * (me == 0)  # type: ignore[index]
    if me == 1:
        metrics["num-examples"] = 10**9  # type: ignore[index]
    return reply


sleeping = ClientApp()


@sleeping.train()
def sleep_through_round_2(message: Message, context: Context) -> Message:
    """Client 2 hangs in round 2, and takes no exception for an answer; the others agree with what they got."""
    if (context.node_config["partition-id"], message.content["config"]["server-round"]) == (2, 2):  # type: ignore[index]
        while True:
            try:
                time.sleep(100_000)
            except Exception:
                continue
    records = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(records), reply_to=message)  # type: ignore[arg-type]
