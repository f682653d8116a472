"""The section secure: does the server see each client's reply, or their sum alone?"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fedscale_local.config_base import Positive, Section
from fedscale_local.config_messages import Is


class Seen(Section):
    """Each reply reaches the server as it is."""

    name: Literal["none"]


class Range(Section):
    """The largest size of a single number, by what a vector says."""

    parameters: Positive
    statistic: Positive
    preconditioner: Positive
    momentum: Positive
    control: Positive
    first: Positive
    second: Positive
    loss: Positive


def _even(number: int | None) -> int | None:
    if number is not None and number % 2:
        raise ValueError("odd")
    return number


class SecureAggregation(Section):
    """Masks that cancel in the sum, after SecAgg+."""

    name: Literal["secagg"]
    neighbours: Annotated[
        int | None,
        Field(ge=2),
        AfterValidator(_even),
        Is("an even number", "2 or more, or null for all others"),
    ]
    threshold: Annotated[float, Field(gt=0.5, le=1), Is("a number", "more than 0.5, at most 1")]
    bits: Annotated[int, Field(ge=2, le=32), Is("a whole number", "2 to 32")]
    modulus_bits: Annotated[int, Field(ge=32, le=64, multiple_of=32), Is("a number of bits", "32 or 64")]
    range: Range


SecureConfig = Annotated[Seen | SecureAggregation, Field(discriminator="name")]
