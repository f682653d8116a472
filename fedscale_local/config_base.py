"""The kinds of values that keys of the configuration hold, and the section that they stand in."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from fedscale_local.config_messages import Is

Count = Annotated[int, Field(ge=1), Is("a whole number", "1 or more")]
NonNegative = Annotated[int, Field(ge=0), Is("a whole number", "0 or more")]
Positive = Annotated[float, Field(gt=0), Is("a number", "more than 0")]
Size = Annotated[float, Field(ge=0), Is("a number", "0 or more")]
Decay = Annotated[float, Field(ge=0, lt=1), Is("a number", "0 or more, below 1")]
Share = Annotated[float, Field(ge=0, le=1), Is("a number", "0 or more, at most 1")]
Cap = Annotated[float | None, Field(gt=0), Is("a number", "alpha or more, or null for no cap")]
Clip = Annotated[float | None, Field(gt=0), Is("a number", "more than 0, or null for no clipping")]
Flag = Annotated[bool, Is("true or false")]
Widths = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    Field(strict=False),
    Is("a list of whole numbers, each 1 or more, like [128]"),
]


class Section(BaseModel):
    """One group of keys: frozen, no other keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
