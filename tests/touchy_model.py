"""A linear model that fails, exits, dies, or does not come back, on examples that say so by a large first feature."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from whole_runs import save_arrays

RAISE, SPOIL, SLEEP, EXIT, DIE = 1e6, 2e6, 3e6, 4e6, 5e6


class Touchy(nn.Module):
    """Raises, exits, dies, answers NaN or sleeps for the examples that say so; linear for all others.

    once: a file that says that it has died, and does so no more; without one it always does.
    """

    def __init__(self, features: int = 4, classes: int = 3, once: str = "") -> None:
        super().__init__()
        self.once = once
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        asked = set(x[:, 0].tolist())
        if RAISE in asked:
            raise ArithmeticError("no convergence")
        if EXIT in asked:
            sys.exit(0)
        if DIE in asked and not Path(self.once or "never").exists():
            Path(self.once or os.devnull).write_text("died")
            os._exit(3)
        if SLEEP in asked:
            time.sleep(100_000)
        out: Tensor = self.linear(x.clamp(-10, 10))
        return out * torch.nan if SPOIL in asked else out


def save(path: Path, sizes: Sequence[int], faults: Mapping[int, float]) -> Path:
    """Arrays of clients with so many examples each, of which some have an example that says so."""
    rng = np.random.default_rng(3)
    x = [rng.normal(size=(n, 4)) for n in sizes]
    for client, fault in faults.items():
        x[client][1, 0] = fault
    return save_arrays(path, x, [rng.integers(0, 3, n) for n in sizes])
