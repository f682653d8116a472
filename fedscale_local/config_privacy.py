"""The section privacy: nobody's, a trusted server's (central), or each client's own (local)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedscale_local.config_base import Section, Size
from fedscale_local.config_messages import Is

Bound = Annotated[float | None, Field(gt=0), Is("a number", "more than 0, or null for no clipping")]


class NoPrivacy(Section):
    """Everything is used as it was sent."""

    name: Literal["none"]


class Clip(Section):
    """The largest Euclidean norm of each of a client's vectors, by what it says."""

    parameters: Bound
    """v - x"""
    statistic: Bound
    preconditioner: Bound
    momentum: Bound
    control: Bound
    first: Bound
    second: Bound


class Privacy(Section):
    """Clipping and Gaussian noise, and what they are to cost."""

    name: Literal["central", "local"]
    accountant: Literal["rdp", "pld"]
    delta: Annotated[float, Field(gt=0, lt=1), Is("a number", "more than 0, below 1")]
    noise_multiplier: Size
    target_epsilon: Annotated[float | None, Field(gt=0), Is("a number", "more than 0, or null for none")]
    noise_source: Literal["auto", "seed", "system"]
    clip: Clip

    def is_secure(self, engine: str) -> bool:
        """Does noise come from the operating system's generator? "auto": on devices."""
        return self.noise_source == "system" or (self.noise_source == "auto" and engine == "superlink")


PrivacyConfig = Annotated[NoPrivacy | Privacy, Field(discriminator="name")]
