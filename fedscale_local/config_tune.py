"""How `fedscale-local tune` chooses among its trials; no run reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fedscale_local.config_base import Count, Flag, NonNegative, Section
from fedscale_local.config_messages import Is, refusal


class Tune(Section):
    """The section `tune`."""

    trials: Count
    metric: Annotated[str, Field(min_length=1), Is("a number of rounds.jsonl, as test_loss or train_loss")]
    direction: Literal["auto", "minimize", "maximize"]
    prune: Flag
    prune_after_trials: Count
    prune_after_rounds: NonNegative

    @property
    def aim(self) -> Literal["minimize", "maximize"]:
        """An accuracy is to be large and anything else small, unless the direction is said."""
        if self.direction == "auto":
            return "maximize" if "accuracy" in self.metric else "minimize"
        return self.direction

    @property
    def is_maximized(self) -> bool:
        return self.aim == "maximize"


class _Container(Section):
    tune: Tune


def checked(settings: Mapping[str, Any]) -> Tune:
    """The section as Hydra composes it, checked; raises ConfigError."""
    container = {"tune": dict(settings)}
    try:
        return _Container.model_validate(container).tune
    except ValidationError as error:
        raise refusal(_Container, container, error) from None
