"""What every framework is given, and what it gives back. Imported by each peer in its own environment: NumPy alone.

A work is a folder: data.npz (x, y, client of each training example; x_test, y_test), initial.npz (the model's start, by
PyTorch's names) and work.json (the numbers below). Every client holds exactly local_steps batches, so a local epoch and
local_steps steps are the same, in frameworks that count one or the other.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Work:
    """One federated workload of plain Local SGD, clients of equal size, drawn anew each round."""

    model: str
    data: str
    num_clients: int
    clients_per_round: int
    local_steps: int
    batch_size: int
    step_size: float
    num_rounds: int


WORKS = {
    "W0": Work("logistic", "fashion_mnist_12k", 200, 100, 10, 10, 0.05, 22),
    "W1": Work("mlp", "fashion_mnist_12k", 200, 100, 10, 32, 0.05, 12),
    "W2": Work("cnn", "fashion_mnist_12k", 200, 100, 10, 32, 0.05, 4),
    "W3": Work("resnet8", "cifar10", 10, 10, 10, 32, 0.05, 4),
}


def save(work: Work, folder: Path, data: dict[str, np.ndarray], initial: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "data.npz", **data)
    np.savez(folder / "initial.npz", **initial)
    (folder / "work.json").write_text(json.dumps(asdict(work)))


class Given:
    """A work as a peer reads it: `x` (examples, ...) float32, `y` int64, `shards` one index array a client."""

    def __init__(self, folder: str) -> None:
        self.work = Work(**json.loads((Path(folder) / "work.json").read_text()))
        with np.load(Path(folder) / "data.npz") as data:
            self.x, self.y, client = data["x"], data["y"], data["client"]
            self.x_test, self.y_test = data["x_test"], data["y_test"]
        self.shards = np.argsort(client, kind="stable").reshape(self.work.num_clients, -1)
        with np.load(Path(folder) / "initial.npz") as initial:
            self.initial = dict(initial)

    def sampled(self, generator: np.random.Generator) -> np.ndarray:
        """A round's clients."""
        return generator.choice(self.work.num_clients, self.work.clients_per_round, replace=False)

    def batches(self, clients: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Indices (clients, local_steps, batch_size): each client's shard, shuffled."""
        shuffled = generator.permuted(self.shards[clients], axis=1)
        return shuffled.reshape(len(clients), self.work.local_steps, self.work.batch_size)


class Stamps:
    """The clock times at which rounds ended, and the result that the driver reads."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def round_ended(self) -> None:
        self.ends.append(time.time())

    def report(self, test_loss: float) -> None:
        out = Path(os.environ["PEER_RESULT"])
        out.write_text(json.dumps({"ends": self.ends, "test_loss": test_loss}))
