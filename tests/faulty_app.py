"""Two ClientApps: in one some clients misbehave in some rounds, in the other they are just absent then."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import foreign_app
import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp


def _raise(reply: Message) -> Message:
    raise OSError("disk full")


def _arrays(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Message], Message]:
    def changed(reply: Message) -> Message:
        arrays = reply.content["arrays"].to_numpy_ndarrays()  # type: ignore[union-attr]
        named = zip(reply.content["arrays"], arrays, strict=True)
        reply.content["arrays"] = ArrayRecord({key: Array(change(array)) for key, array in named})
        return reply

    return changed


def _metrics(**metrics: int | float | list[float]) -> Callable[[Message], Message]:
    def changed(reply: Message) -> Message:
        told = {key.replace("_", "-"): value for key, value in metrics.items()}
        reply.content["metrics"].update(told)  # type: ignore[union-attr]
        return reply

    return changed


def _history(reply: Message) -> Message:
    return _metrics(history=[0.5] * 12_500_000)(reply)


def _hang(reply: Message) -> Message:
    time.sleep(100_000)
    return reply


DIED = ("no reply in time", "ClientApp stopped responding")
"""Of a client that died: where the round lasts long enough, its node notices."""

FAULTS: dict[tuple[int, int], tuple[Callable[[Message], Message | None], str | tuple[str, ...]]] = {
    (1, 1): (_raise, "OSError: disk full"),
    (1, 2): (_arrays(lambda array: array * np.nan), "arrays: not all numbers are finite"),
    (1, 3): (_arrays(lambda array: array.ravel()[:1]), "arrays: array 'weight' is float64 (1,), expected"),
    (2, 1): (_arrays(lambda array: array.astype(np.float16)), "arrays: array 'weight' is float16"),
    (2, 2): (_metrics(num_examples=10**15), "num-examples=1000000000000000: expected"),
    (2, 3): (_arrays(lambda array: array + 1e300), "arrays: a number of size 1e+300, expected less than"),
    (3, 1): (_history, "its metrics hold 1000000"),
    (3, 2): (lambda reply: os._exit(3), DIED),
    (3, 3): (_hang, "no reply in time"),
    (4, 1): (lambda reply: None, "TypeError: the ClientApp returned NoneType, expected a Message"),
}
"""(round, client) -> what it does to its reply, and what the records say of it."""

app = ClientApp()
absent = ClientApp()


@app.train()
def misbehave(message: Message, context: Context) -> Message | None:
    reply = foreign_app.train(message, context)
    fault = FAULTS.get(_who(message, context))
    return reply if fault is None else fault[0](reply)


@absent.train()
def stay_away(message: Message, context: Context) -> Message:
    if _who(message, context) in FAULTS:
        raise OSError("away")
    return foreign_app.train(message, context)


def _who(message: Message, context: Context) -> tuple[int, int]:
    round = message.content["config"]["server-round"]  # type: ignore[index]
    return int(round), int(context.node_config["partition-id"])  # type: ignore[arg-type]
