"""What every codec is made of: the interface, the checks at both ends, and codes packed into bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

Encode = Callable[[Tensor, torch.Generator], Tensor]
Decode = Callable[[Tensor, int, torch.dtype, torch.Generator], Tensor]


@dataclass(frozen=True)
class Codec:
    """A way to write vectors: `encode(x, stream)` gives uint8 (n,), `decode(bytes, d, dtype, stream)` gives (d,).

    `stream` is fedscale_local.randomness.generator(...) of the message's names; the reader makes the same one anew.
    `biased`: the mean over streams is not the vector, far from it; use `with_feedback`.
    """

    name: str
    encode: Encode
    decode: Decode
    biased: bool


def refusal(where: str, expectation: str, remedy: str) -> ValueError:
    return ValueError(f"{where}: {expectation}; {remedy}.")


def octets(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(torch.uint8)


def numbers(data: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that these bytes are; the copy is aligned, as a slice need not be."""
    return data.clone().view(dtype)


def checked(name: str, x: Tensor) -> Tensor:
    if x.dim() != 1 or x.dtype not in (torch.float32, torch.float64):
        what = f"{x.dtype} {tuple(x.shape)}"
        raise refusal(f"{name}: {what}", "a codec writes float32 or float64 (d,)", "flatten or cast it")
    return finite(name, x)


def finite(name: str, x: Tensor) -> Tensor:
    if not x.isfinite().all():
        count = int((~x.isfinite()).sum())
        raise refusal(f"{name}: {count} of {x.numel()} numbers", "not finite here", "drop the message")
    return x


def expect(name: str, data: Tensor, size: int) -> None:
    if data.dtype != torch.uint8 or data.shape != (size,):
        what = f"{data.dtype} {tuple(data.shape)}"
        raise refusal(f"{name}: {what}", f"this message has uint8 ({size},)", "drop the message")


def pack(codes: Tensor, width: int) -> Tensor:
    """uint8 (d,), each below 2^width, into ceil(d * width / 8) bytes: eight codes are `width` bytes, low bits first."""
    if width == 8:
        return codes
    eights = pad(codes, (0, -len(codes) % 8)).view(-1, 8)
    words = torch.zeros(len(eights), dtype=torch.int64)
    for i in range(8):
        words |= eights[:, i].long() << (width * i)
    octets = words.view(torch.uint8).view(-1, 8)[:, :width]
    return octets.reshape(-1)[: -(-len(codes) * width // 8)]


def unpack(data: Tensor, width: int, d: int) -> Tensor:
    """The d codes, uint8, that `pack` wrote."""
    if width == 8:
        return data
    octets = pad(data, (0, -len(data) % width)).view(-1, width)
    words = pad(octets, (0, 8 - width)).view(torch.int64).view(-1)
    codes = torch.empty(len(words), 8, dtype=torch.uint8)
    for i in range(8):
        codes[:, i] = (words >> (width * i)) & (2**width - 1)
    return codes.view(-1)[:d]
