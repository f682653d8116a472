"""Codecs: one flat vector (d,) written into real bytes, and read back.

B = ceil(d / block) blocks, k = ceil(share * d) entries, s = levels, w bits a code, itemsize 4 or 8, |x| elementwise.

| name | bytes | what comes back |
|---|---|---|
| none | d * itemsize | the vector, bit for bit |
| float16, bfloat16 | 2d | the nearest such number; a normal one is off by a factor 1 +- 2^-11, 2^-8 at most |
| int8, int4 | 4B + ceil(d w / 8) | the nearest multiple of max|x| / (127, 7) of its block |
| log_int8, log_int4 | 8B + ceil(d w / 8) | x > 0 on 256, 16 levels: off by 2^(range / (255, 15) / 2) at most |
| signed_log_int8, signed_log_int4 | 8B + ceil(d w / 8) | its sign and |x| on 127, 7 levels; a zero is exact |
| qsgd | 4B + ceil(d w / 8), w bits hold 2s | a multiple of norm(x) / s of its block, drawn; unbiased |
| sign | 4B + ceil(d / 8) | the sign times the mean |x| of its block |
| top_k | k (4 + itemsize) | the k largest magnitudes, bit for bit; the others are 0 |
| random_k | k * itemsize | k entries that are drawn, bit for bit and not scaled up; the others are 0 |

Levels lie evenly in log2 |x| between the ends of a block, `range` = max - min apart (of what is not 0). A block of d
entries or more is the whole vector. With blocks of 256, log_int4 takes 4 / (1/2 + 8/256) = 7.53 times fewer bytes than
float32, int4 7.76 and sign 28.4 times fewer.

Precision: everything beside the codes (scales, ends of a range) is float32 whatever the vector is, and what lies below
float32's smallest normal number in a scale counts as 0; the factors above hold up to the rounding of that float32. The
arithmetic is done in the vector's dtype. In `none`, `top_k` and `random_k` the numbers keep that dtype: both ends must
agree on it, as they do on d, the hyper-parameters and the stream. Bytes are little-endian; tensors are on the CPU.

Whatever the bytes are, `decode` returns d finite numbers or raises ValueError. `encode` refuses what it cannot carry
(NaN, infinity, a number beyond the range of the target) in the same way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedscale_local.codecs.blocks import either_side, largest, linear, log, nearest, norm, sign
from fedscale_local.codecs.entries import cast, random_k, top_k
from fedscale_local.codecs.wire import Codec, refusal

CODECS: dict[str, Callable[[str, int, float, int], Codec]] = {
    "none": lambda name, block, share, levels: cast(name, None),
    "float16": lambda name, block, share, levels: cast(name, torch.float16),
    "bfloat16": lambda name, block, share, levels: cast(name, torch.bfloat16),
    "int8": lambda name, block, share, levels: linear(name, block, 127, largest, nearest),
    "int4": lambda name, block, share, levels: linear(name, block, 7, largest, nearest),
    "log_int8": lambda name, block, share, levels: log(name, block, 8, signed=False),
    "log_int4": lambda name, block, share, levels: log(name, block, 4, signed=False),
    "signed_log_int8": lambda name, block, share, levels: log(name, block, 8, signed=True),
    "signed_log_int4": lambda name, block, share, levels: log(name, block, 4, signed=True),
    # Alistarh et al. 2017; codes of one width where the paper packs them with Elias' code.
    "qsgd": lambda name, block, share, levels: linear(name, block, levels, norm, either_side),
    "sign": lambda name, block, share, levels: sign(name, block),
    "top_k": lambda name, block, share, levels: top_k(name, share),
    "random_k": lambda name, block, share, levels: random_k(name, share),
}
"""The table of names: hyper-parameters -> codec (use `make`, which checks them)."""


def make(name: str, *, block: int = 256, share: float = 0.01, levels: int = 15) -> Codec:
    """The codec of this name; each takes the hyper-parameters that its row of the module's table speaks of.

    Raises ValueError for an unknown name, block < 1, share outside (0, 1] or levels outside 1 to 127.

    >>> x, stream = torch.tensor([0.5, -2.0, 0.0, 8.0]), torch.Generator()
    >>> codec = make("int4", block=2)
    >>> data = codec.encode(x, stream)
    >>> len(data), codec.decode(data, 4, torch.float32, stream)
    (10, tensor([ 0.5714, -2.0000,  0.0000,  8.0000]))
    """
    if name not in CODECS:
        raise refusal(f"codec={name!r}", "not a codec", f"choose one of {', '.join(CODECS)}")
    if block < 1:
        raise refusal(f"block={block}", "a block has at least one entry", "give 1 or more")
    if not 0 < share <= 1:
        raise refusal(f"share={share}", "the share of entries sent is above 0", "give at most 1")
    if not 1 <= levels <= 127:
        raise refusal(f"levels={levels}", "a level and its sign fit into one byte", "give 1 to 127")
    return CODECS[name](name, block, share, levels)


def with_feedback(
    codec: Codec, vector: Tensor, residual: Tensor, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Bytes of vector + residual, and what they fail to say: the residual of the next message (zeros at the start).

    Source: Seide et al. 2014; Karimireddy et al. 2019, Algorithm 2 (the step size is in the vector). All messages so
    far, decoded and added up, plus the last residual are the sum of all vectors. The residual stays bounded where
    the codec is a contraction, |x - decoded|^2 <= (1 - delta) |x|^2 with delta > 0: top_k and random_k have
    delta = share at least (random_k in the mean), sign |x|_1^2 / (d |x|_2^2) in each block, qsgd
    1 - block / (4 levels^2) in the mean, so keep block below 4 levels^2.

    >>> codec, zeros = make("top_k", share=0.5), torch.zeros(2)
    >>> with_feedback(codec, torch.tensor([3.0, -1.0]), zeros, torch.Generator())[1]
    tensor([ 0., -1.])
    """
    replay = torch.Generator().set_state(stream.get_state())
    wanted = vector + residual
    data = codec.encode(wanted, stream)
    return data, wanted - codec.decode(data, wanted.numel(), wanted.dtype, replay)
