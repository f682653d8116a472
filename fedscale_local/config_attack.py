"""The section attack: which share of the clients is hostile, and what these do (attacks.py)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedscale_local.config_base import Positive, Section, Share
from fedscale_local.config_messages import Is

COLLUDING = ("inner_product", "alie")
"""Attacks that need what the honest clients of the round have computed."""


class NoAttack(Section):
    """Every client is honest."""

    name: Literal["none"]


class LabelFlip(Section):
    """Training on wrong labels."""

    name: Literal["label_flip"]
    share: Share


class Scaled(Section):
    """Attacks with a strength."""

    name: Literal["sign_flip", "gaussian", "inner_product"]
    share: Share
    strength: Positive


class Alie(Section):
    """A little is enough."""

    name: Literal["alie"]
    share: Share
    z: Annotated[float | None, Is("a number", "or null for the paper's z_max")]


AttackConfig = Annotated[NoAttack | LabelFlip | Scaled | Alie, Field(discriminator="name")]
