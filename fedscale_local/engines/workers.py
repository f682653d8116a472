"""Processes that share this one's memory and live for the whole run.

They are forked once, when everything is loaded, so data, partition and model are theirs without a copy. A round's
cohorts are divided among them by predicted cost; which worker computes a cohort has no influence on its result.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

Work = Callable[[Any, Any], Any]
"""(shared, item) -> result; for the in-process engine (experiment, cohort) -> outcomes."""


PATIENCE = 2.0
"""Seconds that all workers together have to end by themselves; one in the middle of a cohort is ended then."""


class _Pickler(pickle.Pickler):
    """Tensors travel as NumPy arrays, their numbers beside the pickle; one that occurs twice travels once."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.detach().numpy(),)
        return NotImplemented


def _send(connection: Connection, message: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(message)
    raw = [buffer.raw() for buffer in buffers]
    connection.send([stream.getvalue(), [len(part) for part in raw]])
    for part in raw:
        connection.send_bytes(part)


def _receive(connection: Connection) -> Any:
    """What `_send` sent; both ends are this program, forked from one process."""
    body, sizes = connection.recv()
    buffers = []
    for size in sizes:
        part = np.empty(size, dtype=np.uint8)
        connection.recv_bytes_into(part)
        buffers.append(part)
    return pickle.loads(body, buffers=buffers)


class Workers:
    """A fixed number of forked processes that run `work(shared, item)` for lists of items."""

    def __init__(self, count: int, work: Work, shared: Any) -> None:
        self.count, self.work, self.shared = count, work, shared
        self.processes = [self._start() for _ in range(count)]

    def _start(self) -> tuple[Any, Connection]:
        context = get_context("fork")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, here, self.work, self.shared), daemon=True)
        process.start()
        there.close()
        return process, here

    def map(
        self,
        items: Sequence[Any],
        costs: Sequence[float],
        died: Callable[[Any, str], Any],
        seconds: float | None = None,
    ) -> list[Any]:
        """One result per item, in their order.

        `died(item, reason)` stands for those of a worker that ended, or was ended because it took longer.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        shares = divide(costs, self.count)
        for number, share in enumerate(shares):
            if share:
                self._give(number, [items[i] for i in share])
        results: dict[int, Any] = {}
        for number, share in enumerate(shares):
            if not share:
                continue
            process, connection = self.processes[number]
            try:
                if not connection.poll(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    process.kill()
                    raise TimeoutError
                results |= zip(share, _receive(connection), strict=True)
            except (EOFError, OSError) as error:
                process.join()
                reason = f"the worker process ended with exit code {process.exitcode}"
                reason = "no reply in time" if isinstance(error, TimeoutError) else reason
                results |= {i: died(items[i], reason) for i in share}
                self.processes[number] = self._start()
        return [results[i] for i in range(len(items))]

    def _give(self, number: int, items: list[Any]) -> None:
        try:
            _send(self.processes[number][1], items)
        except OSError:  # it ended while it waited: nothing of this round is lost
            self.processes[number] = self._start()
            _send(self.processes[number][1], items)

    def close(self) -> None:
        """End all workers; they also end by themselves when this process does."""
        # A worker holds the ends of those forked before it: only when all are closed does the last one see its end.
        for _, connection in self.processes:
            connection.close()
        deadline = time.monotonic() + PATIENCE
        for process, _ in self.processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def _serve(connection: Connection, other_end: Connection, work: Work, shared: Any) -> None:
    other_end.close()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            sign, signal.SIG_IGN
        )  # an interrupt is the parent's to handle, which then ends this process
    torch.set_num_threads(1)
    try:
        while True:
            _send(connection, [work(shared, item) for item in _receive(connection)])
    except (EOFError, OSError):
        os._exit(0)


def divide(costs: Sequence[float], count: int) -> list[list[int]]:
    """Items to workers: the costliest first, each to the worker with the least so far.

    >>> divide([1.0, 5.0, 2.0, 2.0], 2)
    [[1], [2, 3, 0]]
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        least = loads.index(min(loads))
        shares[least].append(item)
        loads[least] += costs[item]
    return shares
