"""Codecs of numbers as they are or in a shorter format: all of them, the largest, or some at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedscale_local.codecs.wire import Codec, checked, expect, finite, numbers, octets, refusal


def cast(name: str, target: torch.dtype | None) -> Codec:
    """Every number in the target dtype; None: in its own."""

    def encode(x: Tensor, stream: torch.Generator) -> Tensor:
        return octets(finite(name, checked(name, x).to(target or x.dtype))).clone()

    def decode(data: Tensor, d: int, dtype: torch.dtype, stream: torch.Generator) -> Tensor:
        expect(name, data, d * (target or dtype).itemsize)
        return finite(name, numbers(data, target or dtype).to(dtype))

    return Codec(name, encode, decode, biased=False)


def _num_kept(d: int, share: float) -> int:
    """ceil(share * d), of the share as it is written: 0.01 of 300 is 3, though 0.01 * 300 is a little more."""
    return min(d, math.ceil(round(share * d, 6)) or 1)


def top_k(name: str, share: float) -> Codec:
    """int32 positions, rising, then their numbers (Stich et al. 2018); d is below 2^31."""

    def encode(x: Tensor, stream: torch.Generator) -> Tensor:
        top = checked(name, x).abs().topk(_num_kept(len(x), share), sorted=False).indices.sort().values
        return torch.cat([octets(top.int()), octets(x[top])])

    def decode(data: Tensor, d: int, dtype: torch.dtype, stream: torch.Generator) -> Tensor:
        k = _num_kept(d, share)
        expect(name, data, k * (4 + dtype.itemsize))
        where = numbers(data[: 4 * k], torch.int32).long()
        if k and (where[0] < 0 or where[-1] >= d or (where.diff() <= 0).any()):
            raise refusal(f"{name}: positions", f"they rise from 0 to at most {d - 1}", "drop the message")
        kept = finite(name, numbers(data[4 * k :], dtype))
        return torch.zeros(d, dtype=dtype).index_copy_(0, where, kept)

    return Codec(name, encode, decode, biased=True)


def random_k(name: str, share: float) -> Codec:
    """k positions without replacement, from the stream at both ends; the mean decoded is k/d times the vector.

    Not scaled up by d/k: that would be unbiased, but no contraction, and feedback would blow it up.
    """

    def drawn(d: int, stream: torch.Generator) -> Tensor:
        return torch.randperm(d, generator=stream)[: _num_kept(d, share)]

    def encode(x: Tensor, stream: torch.Generator) -> Tensor:
        return octets(checked(name, x)[drawn(len(x), stream)])

    def decode(data: Tensor, d: int, dtype: torch.dtype, stream: torch.Generator) -> Tensor:
        expect(name, data, _num_kept(d, share) * dtype.itemsize)
        kept = finite(name, numbers(data, dtype))
        return torch.zeros(d, dtype=dtype).index_copy_(0, drawn(d, stream), kept)

    return Codec(name, encode, decode, biased=True)
