"""Codecs: what comes back and how far off, in closed form; how many bytes; what hostile bytes do; error feedback."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedscale_local.codecs import CODECS, Codec, make, with_feedback
from fedscale_local.randomness import derive, generator

NAMES = sorted(CODECS)
DTYPES = (torch.float32, torch.float64)
EPS = 2.0**-24
"""Half a unit in the last place of float32, relative: what scales and ends of a range are off by."""


def stream(seed: int = 0) -> torch.Generator:
    return generator(seed, "codec", 1, 2)


def there_and_back(codec: Codec, x: Tensor, seed: int = 0) -> Tensor:
    data = codec.encode(x, stream(seed))
    assert data.dtype == torch.uint8 and data.dim() == 1
    back = codec.decode(data, len(x), x.dtype, stream(seed))
    assert back.shape == x.shape and back.dtype == x.dtype and back.isfinite().all()
    return back


def draw(d: int, dtype: torch.dtype = torch.float32, seed: int = 0, decades: float = 4) -> Tensor:
    """Normal numbers times powers of ten, `decades` decades in all."""
    source = generator(seed, "test")
    x = torch.randn(d, generator=source, dtype=dtype)
    return x * 10 ** (decades * (torch.rand(d, generator=source, dtype=dtype) - 0.5))


def fit(name: str, x: Tensor) -> Tensor:
    """x, or for codecs of positive numbers |x|, with its zeros replaced."""
    return x.abs().masked_fill(x == 0, 1.0) if name.startswith("log_") else x


def blocks(x: Tensor, block: int) -> Iterator[Tensor]:
    return iter(x.split(block))


vectors = st.builds(
    lambda d, dtype, seed, decades, zeros: draw(d, dtype, seed, decades) * (torch.arange(d) % 7 >= zeros),
    d=st.integers(1, 600), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 10**6),
    decades=st.integers(0, 60), zeros=st.integers(0, 7),
)  # fmt: skip
"""Vectors (1 to 600,) of up to 60 decades, zeros in up to all places."""
sizes = st.sampled_from([1, 5, 32, 256, 10**12])


# ---------------------------------------------------------------- bytes


def num_bytes(name: str, d: int, itemsize: int, block: int, share: float, levels: int) -> int:
    heads = 4 * math.ceil(d / block)
    k = max(1, math.ceil(share * d)) if d else 0
    return {
        "none": d * itemsize, "float16": 2 * d, "bfloat16": 2 * d,
        "int8": heads + d, "int4": heads + math.ceil(d / 2),
        "log_int8": 2 * heads + d, "log_int4": 2 * heads + math.ceil(d / 2),
        "signed_log_int8": 2 * heads + d, "signed_log_int4": 2 * heads + math.ceil(d / 2),
        "qsgd": heads + math.ceil(d * math.ceil(math.log2(2 * levels + 1)) / 8),
        "sign": heads + math.ceil(d / 8),
        "top_k": k * (4 + itemsize), "random_k": k * itemsize,
    }[name]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_bytes(name: str, dtype: torch.dtype) -> None:
    for d in (0, 1, 2, 7, 8, 9, 255, 256, 257, 1000):
        for block, share, levels in ((256, 0.0625, 15), (3, 1.0, 1), (5000, 0.25, 127), (8, 0.5, 4)):
            codec = make(name, block=block, share=share, levels=levels)
            data = codec.encode(fit(name, draw(d, dtype)), stream())
            assert len(data) == num_bytes(name, d, dtype.itemsize, block, share, levels), (d, block)


def test_a_share_is_what_it_says_in_decimals() -> None:
    """0.07 * 100 is 7.000000000000001 in binary: still seven entries."""
    assert len(make("random_k", share=0.07).encode(draw(100), stream())) == 4 * 7


def test_how_many_times_fewer_bytes_than_float32() -> None:
    d = 256 * 400
    x = draw(d).abs()
    ratio = {name: 4 * d / len(make(name).encode(x, stream())) for name in NAMES}
    assert round(ratio["log_int4"], 2) == 7.53 and round(ratio["int4"], 2) == 7.76
    assert round(ratio["sign"], 1) == 28.4 and ratio["top_k"] == 50 and ratio["random_k"] == 100
    assert 3 * ratio["log_int4"] > 20  # sent every third round


@pytest.mark.parametrize("name", NAMES)
def test_same_stream_same_bytes(name: str) -> None:
    codec, x = make(name, share=0.1), fit(name, draw(500))
    data = codec.encode(x, stream())
    assert torch.equal(data, codec.encode(x.clone(), stream()))
    assert torch.equal(there_and_back(codec, x), there_and_back(codec, x))
    other = codec.encode(x, stream(1))
    assert torch.equal(data, other) == (name not in ("qsgd", "random_k"))


# ---------------------------------------------------------------- how far off


def test_none_is_exact_bit_for_bit() -> None:
    for dtype in DTYPES:
        x = torch.cat([draw(100, dtype), torch.tensor([-0.0, torch.finfo(dtype).max, 5e-324], dtype=dtype)])
        assert torch.equal(there_and_back(make("none"), x).view(torch.uint8), x.view(torch.uint8))


@given(x=vectors)
@settings(max_examples=40, deadline=None)
def test_short_floats_are_the_nearest(x: Tensor) -> None:
    """p significant bits: half a unit is 2^-p of the number, or half the least subnormal. float64 is rounded twice."""
    for name, bits, least in (("float16", 11, 2.0**-24), ("bfloat16", 8, 2.0**-133)):
        small = x.clamp(-6e4, 6e4)
        error = (there_and_back(make(name), small) - small).abs().double()
        assert (error <= (small.abs().double() * 2.0**-bits).clamp(min=least / 2) * (1 + 2.0**-10)).all()


@given(x=vectors, block=sizes)
@settings(max_examples=60, deadline=None)
def test_int_is_off_by_half_a_step_of_its_block(x: Tensor, block: int) -> None:
    """A step is max|x| / levels. float32 is off by 2^-24 of max|x| at the scale, the ratio and the product each."""
    for name, levels in (("int8", 127), ("int4", 7)):
        back = there_and_back(make(name, block=block), x)
        for part, read in zip(blocks(x.double(), block), blocks(back.double(), block), strict=True):
            most = part.abs().max()
            assert ((read - part).abs() <= most * (0.5 / levels + 3 * EPS)).all()
            assert (read[part == 0] == 0).all()


@given(x=vectors, block=sizes)
@settings(max_examples=60, deadline=None)
def test_log_is_off_by_half_a_level_of_its_block(x: Tensor, block: int) -> None:
    """|log2(read / x)| <= range / levels / 2, positive and never zero; signed: the sign and the zeros are exact."""
    for name, levels in (
        ("log_int8", 255),
        ("log_int4", 15),
        ("signed_log_int8", 126),
        ("signed_log_int4", 6),
    ):
        sent = fit(name, x)
        back = there_and_back(make(name, block=block), sent)
        assert torch.equal(back.sign(), sent.sign())
        for part, read in zip(blocks(sent.double(), block), blocks(back.double(), block), strict=True):
            logs = part[part != 0].abs().log2()
            if len(logs):
                off = (read[part != 0].abs().log2() - logs).abs()
                rounding = 8 * EPS * (1 + logs.abs().max())
                assert (off <= (logs.max() - logs.min()) / levels / 2 + rounding).all()


def test_log_at_the_ends_of_the_range() -> None:
    """Subnormal numbers count as the least normal one, and the greatest number stays finite."""
    for dtype in DTYPES:
        limits = torch.finfo(dtype)
        x = torch.tensor([limits.smallest_normal / 8, limits.smallest_normal, 1.0, limits.max], dtype=dtype)
        for name in ("log_int8", "log_int4", "signed_log_int8"):
            back = there_and_back(make(name), x).double()
            assert (back > 0).all() and back[0] == back[1]
            assert math.isclose(math.log2(back[1]), math.log2(limits.tiny), rel_tol=1e-6)
            assert math.isclose(math.log2(back[3]), math.log2(limits.max), rel_tol=1e-6)


def test_a_scale_that_is_no_normal_number_counts_as_zero() -> None:
    assert there_and_back(make("int8"), torch.tensor([1e-37, -1e-38])).tolist() == [0, 0]
    assert there_and_back(make("int8"), torch.tensor([2e-36, -2e-36])).ne(0).all()


def test_sign_by_hand() -> None:
    """Blocks (3, -1, 0, -4) and (-6, 2): mean magnitudes 2 and 4; the short last block counts its own two."""
    x = torch.tensor([3.0, -1.0, 0.0, -4.0, -6.0, 2.0])
    assert there_and_back(make("sign", block=4), x).tolist() == [2, -2, 2, -2, -4, 4]
    data = make("sign", block=4).encode(x, stream())
    assert data.tolist() == [0, 0, 0, 64, 0, 0, 128, 64, 0b100101]


def test_codes_by_hand() -> None:
    """int4: scale 1, then (7 + 7) + 16 (-1 + 7) and 2 + 7; log_int4: ends 0 and 15, one level an octave."""
    assert make("int4").encode(torch.tensor([7.0, -1.0, 2.0]), stream()).tolist() == [
        0,
        0,
        128,
        63,
        14 + 16 * 6,
        9,
    ]
    x = torch.tensor([1.0, 2.0**15, 2.0**4])
    assert make("log_int4").encode(x, stream()).tolist() == [0, 0, 0, 0, 0, 0, 112, 65, 15 * 16, 4]
    assert there_and_back(make("log_int4"), x).tolist() == x.tolist()


@given(x=vectors, share=st.sampled_from([0.01, 0.1, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_top_k_keeps_the_largest_and_only_those(x: Tensor, share: float) -> None:
    back = there_and_back(make("top_k", share=share), x)
    k = max(1, math.ceil(share * len(x)))
    kept = back != 0
    assert torch.equal(back[kept], x[kept])
    assert torch.equal(back.abs().sort(descending=True).values[:k], x.abs().sort(descending=True).values[:k])
    assert kept.sum() <= k


def test_random_k_keeps_k_entries_bit_for_bit() -> None:
    x = draw(1000)
    back = there_and_back(make("random_k", share=0.05), x)
    assert (back != 0).sum() == 50 and torch.equal(back[back != 0], x[back != 0])


# ---------------------------------------------------------------- the mean over streams

NUM_STREAMS = 2000
SIGMAS = 5.0
"""Each mean is normal enough over 2000 streams: 64 entries all lie within 5 standard errors but 1 time in 27000."""


def mean_and_deviation(codec: Codec, x: Tensor) -> tuple[Tensor, Tensor]:
    reads = torch.stack([there_and_back(codec, x, seed) for seed in range(NUM_STREAMS)])
    return reads.mean(0), reads.std(0)


def test_qsgd_is_unbiased_and_its_variance_is_that_of_the_paper() -> None:
    """At a ratio r = |x| s / norm between two levels the draw is Bernoulli(frac r): variance step^2 f (1 - f)."""
    x = draw(64, torch.float64, decades=1)
    mean, deviation = mean_and_deviation(make("qsgd", levels=4, block=64), x)
    step = x.norm() / 4
    fraction = (x / step) % 1
    exact = step * (fraction * (1 - fraction)).sqrt()
    assert ((mean - x).abs() <= SIGMAS * exact / NUM_STREAMS**0.5 + 4 * EPS * x.norm()).all()
    # The sum over entries of the squared error: relative spread below 2 / sqrt(streams) for Bernoulli draws.
    assert math.isclose(float((deviation**2).sum()), float((exact**2).sum()), rel_tol=0.1)
    assert (exact**2).sum() <= min(64 / 4**2, 64**0.5 / 4) * x.norm() ** 2  # Alistarh et al., Lemma 3.1


def test_random_k_times_d_over_k_is_unbiased() -> None:
    """An entry is kept with probability p = k/d: the mean is p x, the deviation |x| sqrt(p (1 - p))."""
    x, p = draw(64, torch.float64), 0.25
    mean, _ = mean_and_deviation(make("random_k", share=p), x)
    assert ((mean / p - x).abs() <= SIGMAS * x.abs() * ((1 - p) / p / NUM_STREAMS) ** 0.5).all()


# ---------------------------------------------------------------- feedback


@pytest.mark.parametrize("name", ["top_k", "random_k", "sign", "qsgd", "int4"])
def test_messages_and_the_last_residual_are_the_sum_of_all_vectors_exactly(name: str) -> None:
    """Whole numbers in float64, scales in float32: no sum below needs more than 53 bits, so equality is exact."""
    codec, d = make(name, share=0.1, block=64), 200
    residual, read, told = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64), 0
    for round in range(30):
        x = torch.randint(-100, 100, (d,), generator=generator(0, "test", round)).double()
        told = told + x
        data, residual = with_feedback(codec, x, residual, generator(0, "codec", round))
        read += codec.decode(data, d, x.dtype, generator(0, "codec", round))
        assert torch.equal(read + residual, told)


@pytest.mark.parametrize("name", ["top_k", "random_k", "sign", "qsgd"])
def test_the_mean_of_messages_approaches_the_vector_as_one_over_rounds(name: str) -> None:
    """The residual of one and the same x stays within |x| / (1 - sqrt(1 - delta)), so the mean is off by that / rounds.

    delta: the share kept, twice as far allowed for random_k, where it holds in the mean; sign |x|_1^2 / (d |x|_2^2)
    of what is really encoded; qsgd 1 - block / (4 levels^2).
    """
    codec, x, rounds = make(name, share=0.1, block=64), draw(256, torch.float64, decades=1), 200
    residual, read, delta = torch.zeros_like(x), torch.zeros_like(x), 1.0
    for round in range(rounds):
        for part in blocks(x + residual, 64):
            delta = min(delta, float(part.abs().sum() ** 2 / part.square().sum() / len(part)))
        data, residual = with_feedback(codec, x, residual, stream(round))
        read += codec.decode(data, len(x), x.dtype, stream(round))
    delta = {"top_k": 26 / 256, "random_k": 26 / 256 / 2, "sign": delta, "qsgd": 1 - 64 / (4 * 15**2)}[name]
    bound = x.norm() / (1 - math.sqrt(1 - delta))
    assert residual.norm() <= bound
    assert (read / rounds - x).norm() <= bound / rounds * (1 + 1e-9)
    alone = codec.decode(codec.encode(x, stream()), len(x), x.dtype, stream())
    assert (read / rounds - x).norm() < (alone - x).norm()


@given(x=vectors, block=sizes, share=st.sampled_from([0.01, 0.1, 0.5]))
@settings(max_examples=40, deadline=None)
def test_biased_codecs_are_contractions(x: Tensor, block: int, share: float) -> None:
    """|x - decoded|^2 <= (1 - delta) |x|^2, with equality for sign: 1 - delta = 1 - |x|_1^2 / (d |x|_2^2)."""
    whole = x.double().square().sum()
    for name in NAMES:
        codec = make(name, share=share, block=block)
        if codec.biased:
            assert (there_and_back(codec, x).double() - x).square().sum() <= whole * (1 + 1e-6), name
    kept = max(1, math.ceil(share * len(x)))
    error = (there_and_back(make("top_k", share=share), x).double() - x).square().sum()
    assert error <= (1 - kept / len(x)) * whole * (1 + 1e-6)
    error = (there_and_back(make("sign", block=10**12), x).double() - x).square().sum()
    exact = whole - x.double().abs().sum() ** 2 / len(x)
    assert math.isclose(error, exact, rel_tol=1e-6, abs_tol=float(1e-6 * whole))


def test_feedback_leaves_its_arguments_alone_and_uses_one_stream() -> None:
    x, residual, codec = draw(50), draw(50, seed=1), make("random_k", share=0.2)
    before = x.clone(), residual.clone()
    data, left = with_feedback(codec, x, residual, stream())
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])
    assert torch.equal(left, x + residual - codec.decode(data, 50, x.dtype, stream()))


def test_who_wants_feedback() -> None:
    assert {name for name in NAMES if make(name).biased} == {"top_k", "random_k", "sign"}


# ---------------------------------------------------------------- edges, wrong input, hostile bytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_short_vectors(name: str, dtype: torch.dtype) -> None:
    for d in (0, 1, 300):
        zeros = torch.zeros(d, dtype=dtype)
        if name.startswith("log_") and d:
            with pytest.raises(ValueError, match=f"use signed_{name}"):
                make(name).encode(zeros, stream())
            assert torch.allclose(there_and_back(make(name), zeros + 0.1), zeros + 0.1, rtol=1e-6)
        else:
            assert torch.equal(there_and_back(make(name), zeros), zeros)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_carried_is_refused(name: str) -> None:
    for strange in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"{name}.*not finite"):
            make(name).encode(torch.tensor([1.0, strange]), stream())
    with pytest.raises(ValueError, match="flatten or cast"):
        make(name).encode(torch.ones(2, 2), stream())
    with pytest.raises(ValueError, match="flatten or cast"):
        make(name).encode(torch.ones(2, dtype=torch.float16), stream())


def test_numbers_beyond_the_target_are_refused() -> None:
    for name, x in (("float16", 1e5), ("bfloat16", 1e39), ("int8", 1e300), ("qsgd", 1e300), ("sign", 1e300)):
        with pytest.raises(ValueError, match="not finite"):
            make(name).encode(torch.tensor([1.0, x], dtype=torch.float64), stream())


@pytest.mark.parametrize(
    "hyper",
    [{"block": 0}, {"share": 0.0}, {"share": 1.5}, {"share": math.nan}, {"levels": 0}, {"levels": 128}],
)
def test_wrong_hyper_parameters_are_refused(hyper: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(hyper))):
        make("qsgd", **hyper)
    with pytest.raises(ValueError, match="codec='zip': not a codec; choose one of none, float16"):
        make("zip")


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_another_length_or_kind_are_refused(name: str) -> None:
    codec, x = make(name, block=32), fit(name, draw(100))
    data = codec.encode(x, stream())
    for wrong in (data[:-1], torch.cat([data, data[:1]]), data[:0], data.float(), data[None]):
        with pytest.raises(ValueError, match="this message has uint8"):
            codec.decode(wrong, 100, x.dtype, stream())
    with pytest.raises(ValueError, match="this message has uint8"):
        codec.decode(data, 10**12, x.dtype, stream())  # before anything of that size is made


def test_hostile_heads_codes_and_positions_are_refused() -> None:
    def forged(name: str, at: int, part: Tensor, d: int = 8) -> None:
        codec = make(name, share=0.5)
        data = codec.encode(torch.arange(1.0, d + 1), stream())
        data[at : at + part.nbytes] = part.view(torch.uint8)
        codec.decode(data, d, torch.float32, stream())

    forged("int8", 0, torch.tensor([1.0]))
    with pytest.raises(ValueError, match="not finite"):
        forged("int8", 0, torch.tensor([3e38]))  # finite, but not 127 times it
    for name in ("int8", "int4", "qsgd", "sign", "log_int8", "signed_log_int4"):
        for number in (math.nan, math.inf):
            with pytest.raises(ValueError, match="not finite"):
                forged(name, 0, torch.tensor([number]))
    for name, low, high in (
        ("log_int8", 1.0, 0.0),
        ("log_int4", 0.0, 128.0),
        ("signed_log_int8", -127.0, 0.0),
    ):
        with pytest.raises(ValueError, match="ends of a range"):
            forged(name, 0, torch.tensor([low, high]))
    for name, at in (("int8", 4), ("int4", 4), ("qsgd", 4), ("signed_log_int8", 8)):
        with pytest.raises(ValueError, match="codes are below"):
            forged(name, at, torch.tensor([255], dtype=torch.uint8))
    for positions in ([0, 1, 2, 8], [-1, 0, 1, 2], [0, 1, 1, 2], [3, 2, 1, 0], [0, 2**31 - 1, -(2**31), 4]):
        with pytest.raises(ValueError, match="positions"):
            forged("top_k", 0, torch.tensor(positions, dtype=torch.int32))


@given(seed=st.integers(0, 10**9), d=st.integers(0, 40), dtype=st.sampled_from(DTYPES), few=st.booleans())
@settings(max_examples=300, deadline=None)
def test_whatever_the_bytes_decoding_gives_finite_numbers_or_value_error(
    seed: int, d: int, dtype: torch.dtype, few: bool
) -> None:
    """Random bytes of the right length, or a true message with two bytes overwritten."""
    for name in NAMES:
        codec, source = make(name, block=16, share=0.2), generator(derive(seed, name), "test")
        data = codec.encode(fit(name, draw(d, dtype)), stream())
        noise = torch.randint(0, 256, data.shape, dtype=torch.uint8, generator=source)
        if few and len(data):
            where = torch.randint(0, len(data), (2,), generator=source)
            data[where] = noise[where]
        else:
            data = noise
        try:
            read = codec.decode(data, d, dtype, stream())
        except ValueError:
            continue
        assert read.shape == (d,) and read.dtype == dtype and read.isfinite().all(), name
        assert not name.startswith("log_") or (read > 0).all()
