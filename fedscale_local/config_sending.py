"""The section sending: in which codec each group of vectors travels, up (client to server) and down."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from fedscale_local.config_base import Count, Section
from fedscale_local.config_messages import Is

Numbers = Literal[
    "none", "float16", "bfloat16", "int8", "int4", "signed_log_int8", "signed_log_int4", "qsgd"
]  # fmt: skip
"""Codecs that are right on the mean, or nearly."""
Biased = Literal["sign", "top_k", "random_k"]
BIASED: tuple[str, ...] = get_args(Biased)
Anything = Literal[Numbers, Biased]
"""And those that are not: what they leave out, the client keeps and adds to its next message."""
Scales = Literal["none", "bfloat16", "log_int8", "log_int4"]
"""What is divided by must not come out as zero."""
Moments = Literal["none", "bfloat16", "signed_log_int8", "signed_log_int4"]
"""A second moment that is zero stays zero, and no other becomes it."""


class Vectors(Section):
    """Parameters, momentum and whatever else a local rule exchanges."""

    up: Anything
    down: Numbers


class Measured(Section):
    """The statistic that D is refreshed from, which only ever goes up."""

    up: Anything
    down: Literal["none"]


class Preconditioner(Section):
    """D-hat, and the memory behind it."""

    up: Scales
    down: Scales


class AdamMoments(Section):
    """The first and second moments of a local rule, and their clocks, which are too short to be encoded."""

    up: Moments
    down: Moments


class Sending(Section):
    """One codec per group and direction; the hyper-parameters are shared by all of them."""

    parameters: Vectors
    statistic: Measured
    preconditioner: Preconditioner
    momentum: Vectors
    control: Vectors
    """Every vector of a local rule that is in no other group."""
    moments: AdamMoments
    block: Count
    share: Annotated[float, Field(gt=0, le=1), Is("a number", "more than 0, at most 1")]
    levels: Annotated[int, Field(ge=1, le=127), Is("a whole number", "1 to 127")]

    @property
    def codecs(self) -> dict[str, dict[str, str]]:
        """{group: {"up": name, "down": name}}"""
        return self.model_dump(exclude={"block", "share", "levels"})

    @property
    def is_plain(self) -> bool:
        """Does everything travel as it is?"""
        return all(name == "none" for ways in self.codecs.values() for name in ways.values())

    @property
    def leaves_residuals(self) -> bool:
        """Does a client keep what its messages failed to say?"""
        return any(ways["up"] in BIASED for ways in self.codecs.values())
