"""From real numbers to whole ones modulo 2^R and back: what is masked, and what its sum means.

    q = floor(clip(y, -c, c) / step + u),   u uniform in [0, 1),   step = c / M,   M = 2^(bits - 1) - 1

which is y on the mean, and exactly y where y is a multiple of the step, as 0 is. A sum of w_m q_m is exact while it
stays within half the modulus.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def most(bits: int) -> int:
    """M, the largest whole number of a quantised vector.

    >>> most(8)
    127
    """
    return 2 ** (bits - 1) - 1


def unsigned(modulus_bits: int) -> np.dtype:
    """The type whose arithmetic is modulo 2^R."""
    return np.dtype(f"uint{modulus_bits}")


def signed(modulus_bits: int) -> torch.dtype:
    """The type in which numbers modulo 2^R travel, as torch counts with no unsigned ones."""
    return {32: torch.int32, 64: torch.int64}[modulus_bits]


def quantised(vector: Tensor, largest: float, bits: int, stream: torch.Generator) -> tuple[Tensor, int]:
    """The vector in whole steps, (d,) int64, and how many of its numbers were clipped to `largest`.

    Raises ValueError where a number is not finite.
    """
    limit, exact = most(bits), vector.to(torch.float64)
    if not bool(exact.isfinite().all()):
        raise ValueError("not all numbers are finite")
    steps = exact.clamp(-largest, largest) * (limit / largest)
    u = torch.rand(steps.shape, generator=stream, dtype=torch.float64)
    return (steps + u).floor_().clamp_(-limit, limit).to(torch.int64), int((exact.abs() > largest).sum())


def restored(total: Tensor, largest: float, bits: int, dtype: torch.dtype) -> Tensor:
    """The real numbers that a sum of whole steps stands for."""
    return (total.to(torch.float64) * (largest / most(bits))).to(dtype)


def to_residues(numbers: Tensor, modulus_bits: int) -> np.ndarray:
    """Whole numbers (n,) int64 modulo 2^R."""
    return numbers.numpy().astype(unsigned(modulus_bits))


def from_residues(residues: np.ndarray) -> Tensor:
    """The whole numbers of least size with these residues, (n,) int64."""
    kind = residues.dtype
    return torch.from_numpy(residues.view(f"int{8 * kind.itemsize}").astype(np.int64))
