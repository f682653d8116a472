"""The server rules by name, made from their sections of the configuration."""

from __future__ import annotations

from collections.abc import Callable

from fedscale_local.config_strategies import Strategy
from fedscale_local.server_rule import ServerRule
from fedscale_local.server_rules.adaptive import adagrad, adam, ams, yogi
from fedscale_local.server_rules.dynamic import dynamic
from fedscale_local.server_rules.momentum import momentum, nesterov
from fedscale_local.server_rules.plain import plain
from fedscale_local.server_rules.scaled import scaled

RULES: dict[str, Callable[..., ServerRule]] = {
    "plain": plain,
    "momentum": momentum,
    "nesterov": nesterov,
    "adagrad": adagrad,
    "adam": adam,
    "yogi": yogi,
    "ams": ams,
    "scaled": scaled,
    "dynamic": dynamic,
}


def make(config: Strategy) -> ServerRule:
    """The server's move of this section."""
    others = {"name", "weighting", "mixing", "local", "combine", "server"}
    return RULES[config.server](**config.model_dump(exclude=others))
