"""Codecs of one small code per entry, with one or two float32 per block: linear, logarithmic, signs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedscale_local.codecs.wire import Codec, checked, expect, finite, numbers, octets, pack, refusal, unpack

TINY = torch.finfo(torch.float32).tiny

Write = Callable[[Tensor, int, torch.Generator], tuple[list[Tensor], Tensor]]
"""rows (blocks, block), d, stream -> float heads, each (blocks, 1), and codes (blocks, block) from 0."""
Read = Callable[[list[Tensor], Tensor, torch.dtype], Tensor]
"""heads, each (blocks, 1) and finite, codes (blocks, block), dtype -> rows; ValueError for impossible heads."""


def _coded(
    name: str, block: int, num_heads: int, num_codes: int, write: Write, read: Read, biased: bool
) -> Codec:
    """A message of `num_heads` float32 per block, then one code below `num_codes` per entry, packed."""
    width = max(1, (num_codes - 1).bit_length())

    def encode(x: Tensor, stream: torch.Generator) -> Tensor:
        heads, codes = write(_rows(checked(name, x), block), len(x), stream)
        head = finite(name, torch.cat(heads).view(-1).float())
        return torch.cat([octets(head), pack(codes.to(torch.uint8).view(-1)[: len(x)], width)])

    def decode(data: Tensor, d: int, dtype: torch.dtype, stream: torch.Generator) -> Tensor:
        blocks = -(-d // max(1, min(block, d)))
        size = 4 * num_heads * blocks
        expect(name, data, size + -(-d * width // 8))
        heads = finite(name, numbers(data[:size], torch.float32)).view(num_heads, blocks, 1)
        codes = unpack(data[size:], width, d)
        if d and int(codes.max()) >= num_codes:
            raise refusal(f"{name}: code {codes.max()}", f"codes are below {num_codes}", "drop the message")
        values = read([head.to(dtype) for head in heads], _rows(codes, block), dtype)
        return finite(name, values.view(-1)[:d])

    return Codec(name, encode, decode, biased)


def _scale(size: Tensor, levels: int) -> Tensor:
    """size / levels as float32, 0 where that is no normal number (its few bits would break the error bound)."""
    scale = (size.double() / levels).float()
    return scale.masked_fill(scale < TINY, 0.0)


def nearest(ratio: Tensor, stream: torch.Generator) -> Tensor:
    return ratio.round()


def either_side(ratio: Tensor, stream: torch.Generator) -> Tensor:
    """One of the two whole numbers around each ratio, at random, so that the mean is the ratio."""
    low = ratio.floor()
    return low + (torch.rand(ratio.shape, dtype=ratio.dtype, generator=stream) < ratio - low)


def linear(
    name: str,
    block: int,
    levels: int,
    size_of: Callable[[Tensor], Tensor],
    rounded: Callable[[Tensor, torch.Generator], Tensor],
) -> Codec:
    """Whole multiples, -levels to levels, of the scale size_of(block) / levels."""

    def write(rows: Tensor, d: int, stream: torch.Generator) -> tuple[list[Tensor], Tensor]:
        scale = _scale(size_of(rows), levels)
        whole = rounded(rows / scale.clamp(min=TINY), stream)
        return [scale], whole.clamp_(-levels, levels) + levels

    def read(heads: list[Tensor], codes: Tensor, dtype: torch.dtype) -> Tensor:
        return (codes.to(dtype) - levels) * heads[0]

    return _coded(name, block, 1, 2 * levels + 1, write, read, biased=False)


def largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(1, keepdim=True)


def norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)


def sign(name: str, block: int) -> Codec:
    """Seide et al. 2014, Bernstein et al. 2018 with the scale of Karimireddy et al. 2019; a zero counts as positive."""

    def write(rows: Tensor, d: int, stream: torch.Generator) -> tuple[list[Tensor], Tensor]:
        blocks, size = rows.shape
        counts = (d - size * torch.arange(blocks)).clamp(max=size)[:, None]
        return [rows.abs().sum(1, keepdim=True, dtype=torch.float64) / counts], rows >= 0

    def read(heads: list[Tensor], codes: Tensor, dtype: torch.dtype) -> Tensor:
        return (2 * codes.to(dtype) - 1) * heads[0]

    return _coded(name, block, 1, 2, write, read, biased=True)


def log(name: str, block: int, bits: int, signed: bool) -> Codec:
    """Levels between the ends of log2 |x| in a block; magnitudes below the dtype's normal numbers count as the least.

    Codes: 0 to 2^bits - 1 for x > 0; signed, `zero` is an exact 0 and `zero` + 1 + level the level, - for negatives.
    """
    zero = 2 ** (bits - 1) - 1
    top = zero - 1 if signed else 2**bits - 1

    def write(rows: Tensor, d: int, stream: torch.Generator) -> tuple[list[Tensor], Tensor]:
        if not signed and (rows > 0).sum() < d:
            raise refusal(name, "only numbers above 0 have a logarithm", f"use signed_{name}")
        logs, none = rows.abs().log2().clamp_(*_log_ends(rows.dtype)), rows == 0
        low = logs.masked_fill(none, torch.inf).amin(1, keepdim=True).float()
        high = logs.masked_fill(none, -torch.inf).amax(1, keepdim=True).float()
        low, high = (end.masked_fill(none.all(1, keepdim=True), 0.0) for end in (low, high))
        level = ((logs - low) / (high - low).clamp(min=TINY) * top).round().clamp_(0, top)
        return [low, high], rows.sign() * (level + 1) + zero if signed else level

    def read(heads: list[Tensor], codes: Tensor, dtype: torch.dtype) -> Tensor:
        low, high = heads
        bottom, ceiling = _log_ends(dtype)
        if ((low < bottom) | (high > ceiling) | (low > high)).any():
            raise refusal(
                f"{name}: ends of a range", f"they rise within [{bottom}, {ceiling}]", "drop the message"
            )
        if not signed:
            return torch.lerp(low, high, codes.to(dtype) / top).exp2()
        codes = codes.to(dtype) - zero
        return codes.sign() * torch.lerp(low, high, (codes.abs() - 1).clamp_(min=0) / top).exp2()

    return _coded(name, block, 2, 2 * zero + 1 if signed else 2**bits, write, read, biased=False)


def _log_ends(dtype: torch.dtype) -> tuple[float, float]:
    """log2 of the least and (rounded down to float32) the greatest normal number, so that exp2 neither is 0 nor inf."""
    limits = torch.finfo(dtype)
    ceiling = torch.nextafter(
        torch.tensor(math.ceil(math.log2(limits.max)), dtype=torch.float32), torch.zeros(())
    )
    return math.log2(limits.tiny), float(ceiling)


def _rows(x: Tensor, block: int) -> Tensor:
    """(d,) as (blocks, block), zeros after the end; one row of d where the block is longer than that."""
    size = max(1, min(block, len(x)))
    return pad(x, (0, -len(x) % size)).view(-1, size)
