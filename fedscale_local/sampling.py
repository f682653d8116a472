"""Who takes part in a round."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch


def choose(
    clients: Sequence[int] | np.ndarray, count: int, sampler: str, stream: torch.Generator | None
) -> list[int]:
    """A round's clients, ascending: `count` of them ("fixed"), or each with probability count / len ("poisson").

    stream: seeded; None: the operating system's generator, so that nobody who knows the seed knows who takes part.
    """
    if count == len(clients):
        return [int(client) for client in clients]
    if sampler == "poisson":
        if stream is None:
            system = random.SystemRandom()
            draws = [system.random() for _ in clients]
        else:
            draws = torch.rand(len(clients), generator=stream, dtype=torch.float64).tolist()
        share = count / len(clients)
        return [int(client) for client, draw in zip(clients, draws, strict=True) if draw < share]
    if stream is None:
        return sorted(int(client) for client in random.SystemRandom().sample(list(clients), count))
    chosen = torch.randperm(len(clients), generator=stream)[:count].tolist()
    return sorted(int(clients[place]) for place in chosen)
