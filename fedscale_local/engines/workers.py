"""Processes that share this one's memory and live for the whole run.

They are forked once, when everything is loaded, so data, partition and model are theirs without a copy. A round's
cohorts are divided among them by predicted cost; which worker computes a cohort has no influence on its result.

What they exchange goes through a pipe, but for its numbers: those lie in memory that both ends see, and are read where
they lie.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import signal
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedscale_local import outbox
from fedscale_local.errors import FedscaleError

Work = Callable[[Any, Any], Any]
"""(shared, item) -> result; for the in-process engine (experiment, cohort) -> outcomes."""


PATIENCE = 2.0
"""Seconds that all workers together have to end by themselves; one in the middle of a cohort is ended then."""


SHARED_BYTES = 8 << 30
"""Of addresses for each direction; memory is taken for what is written there, once, and used again."""

ALIGNED = 64


class _Pickler(pickle.Pickler):
    """Tensors travel as NumPy arrays, their numbers beside the pickle; one that occurs twice travels once."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.detach().numpy(),)
        return NotImplemented


class _End:
    """One end of a line between this process and one that was forked when both ends were made.

    Each end writes numbers into a memory of its own that the other reads. A message tells from where on nothing that
    came before is still in use at the end that sends it: there the other end may write its next.
    """

    def __init__(self, connection: Connection, mine: mmap.mmap, theirs: mmap.mmap) -> None:
        self.connection, self.theirs = connection, theirs
        self.mine = np.frombuffer(mine, dtype=np.uint8)
        self.start = 0
        self.received: list[tuple[int, weakref.ref[np.ndarray]]] = []

    def send(self, messages: Iterable[Any]) -> None:
        """All of them at once; the numbers of each are written as soon as it is made, while they are in the cache."""
        rest: list[memoryview] = []
        parcels = list(
            map(partial(self._written, rest=rest), messages)
        )  # none is held while the next is made
        self.connection.send((parcels, self._in_use()))
        for raw in rest:
            self.connection.send_bytes(raw)

    def _written(self, message: Any, rest: list[memoryview]) -> tuple[bytes, list[tuple[int | None, int]]]:
        """A pickle, and where its numbers are: what goes through the pipe. Numbers without room are added to rest."""
        buffers: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(message)
        places: list[tuple[int | None, int]] = []  # start and end, or none and how many bytes follow
        for raw in (buffer.raw() for buffer in buffers):
            numbers = np.frombuffer(raw, dtype=np.uint8)
            start = _address(numbers) - _address(self.mine)
            if not 0 <= start < self.start:  # it was not made there
                start = self.start
                if (room := self._taken(raw.nbytes)) is None:
                    places.append((None, raw.nbytes))
                    rest.append(raw)
                    continue
                room[:] = numbers
            places.append((start, start + raw.nbytes))
        return stream.getvalue(), places

    def _taken(self, num_bytes: int) -> np.ndarray | None:
        """So much of this end's memory from its start on, which goes behind it; None where there is not so much."""
        end = self.start + num_bytes
        if end > len(self.mine):
            return None
        room, self.start = self.mine[self.start : end], _aligned(end)
        return room

    def room(self, num_bytes: int) -> Tensor | None:
        """Memory to make numbers in that are to be sent (outbox.py)."""
        found = self._taken(num_bytes)
        return None if found is None else torch.from_numpy(found)

    def receive(self) -> list[Any]:
        """What the other end sent: this program too, forked from one process."""
        parcels, self.start = self.connection.recv()
        places = [place for _, places in parcels for place in places]
        used = max((end for start, end in places if start is not None), default=0)
        shared = np.frombuffer(self.theirs, dtype=np.uint8, count=used)
        self.received.append((used, weakref.ref(shared)))
        messages = []
        for body, places in parcels:
            buffers = []
            for start, end in places:
                if start is None:
                    buffers.append(np.empty(end, dtype=np.uint8))
                    self.connection.recv_bytes_into(buffers[-1])
                else:
                    buffers.append(shared[start:end])
            messages.append(pickle.loads(body, buffers=buffers))
        return messages

    def _in_use(self) -> int:
        self.received = [(end, shared) for end, shared in self.received if shared() is not None]
        return _aligned(max((end for end, _ in self.received), default=0))


def _line() -> tuple[_End, _End]:
    """Its two ends; where addresses count as memory, numbers go through the pipe."""
    here, there = get_context("fork").Pipe()
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        down, up = (mmap.mmap(-1, SHARED_BYTES, flags=flags) for _ in range(2))
    except OSError:
        down, up = (mmap.mmap(-1, mmap.PAGESIZE, flags=flags) for _ in range(2))
    return _End(here, down, up), _End(there, up, down)


def _address(numbers: np.ndarray) -> int:
    return int(numbers.__array_interface__["data"][0])


def _aligned(end: int) -> int:
    return -(-end // ALIGNED) * ALIGNED


class Workers:
    """A fixed number of forked processes that run `work(shared, item)` for lists of items.

    begin: what each does first, given its number; also one that is started again.
    """

    def __init__(
        self, count: int, work: Work, shared: Any, begin: Callable[[int], None] = lambda number: None
    ) -> None:
        self.count, self.work, self.shared, self.begin = count, work, shared, begin
        self.processes = [self._start(number) for number in range(count)]

    def _start(self, number: int) -> tuple[Any, _End]:
        here, there = _line()
        process = get_context("fork").Process(
            target=_serve,
            args=(there, here, partial(self.begin, number), self.work, self.shared),
            daemon=True,
        )
        process.start()
        there.connection.close()
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
            process, end = self.processes[number]
            try:
                if not end.connection.poll(
                    None if deadline is None else max(0.0, deadline - time.monotonic())
                ):
                    process.kill()
                    raise TimeoutError
                results |= zip(share, end.receive(), strict=True)
            except (EOFError, OSError) as error:
                process.join()
                reason = f"the worker process ended with exit code {process.exitcode}"
                reason = "no reply in time" if isinstance(error, TimeoutError) else reason
                results |= {i: died(items[i], reason) for i in share}
                self.processes[number] = self._start(number)
        return [results[i] for i in range(len(items))]

    def _give(self, number: int, items: list[Any]) -> None:
        try:
            self.processes[number][1].send([items])
        except OSError:  # it ended while it waited: nothing of this round is lost
            self.processes[number] = self._start(number)
            self.processes[number][1].send([items])

    def close(self) -> None:
        """End all workers; they also end by themselves when this process does."""
        # A worker holds the ends of those forked before it: only when all are closed does the last one see its end.
        for _, end in self.processes:
            end.connection.close()
        deadline = time.monotonic() + PATIENCE
        for process, _ in self.processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def apart(work: Callable[[Any], Any], shared: Any) -> Any:
    """work(shared) in a process of its own; a FedscaleError if that ends without an answer."""
    child = Workers(1, lambda shared, item: work(shared), shared)
    try:
        (answer,) = child.map([None], [1.0], lambda item, reason: FedscaleError(reason))
    finally:
        child.close()
    if isinstance(answer, FedscaleError):
        raise answer
    return answer


def _serve(end: _End, other_end: _End, begin: Callable[[], None], work: Work, shared: Any) -> None:
    other_end.connection.close()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(
            sign, signal.SIG_IGN
        )  # an interrupt is the parent's to handle, which then ends this process
    torch.set_num_threads(1)
    outbox.use(end.room)
    begin()
    try:
        while True:
            (items,) = end.receive()
            results = (work(shared, item) for item in items)
            del items  # what was received is in use until the last result is there
            end.send(results)
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
