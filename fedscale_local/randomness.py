"""All randomness of a run, derived from names: generator(seed, purpose, round, client).

Streams that differ in any one of the four names are independent; nothing else (order of calls, number of
workers, engine) has an influence. The names are hashed, never added up, so neighbouring seeds share nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """A 63-bit integer that belongs to these four names alone.

    >>> derive(0, "batch", 1, 2) == derive(0, "batch", 1, 2)
    True
    >>> len({derive(0, "batch", 1, 2), derive(1, "batch", 1, 2), derive(0, "probe", 1, 2),
    ...      derive(0, "batch", 2, 2), derive(0, "batch", 1, 1)})
    5
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{round}/{client}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> torch.Generator:
    """The torch generator (CPU) of these four names."""
    return torch.Generator().manual_seed(derive(seed, purpose, round, client))


def numpy_generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """The NumPy generator of these four names."""
    return np.random.default_rng(derive(seed, purpose, round, client))
