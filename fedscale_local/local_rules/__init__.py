"""The local rules by name, made from their sections of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedscale_local.config_strategies import CustomLocal, LocalConfig
from fedscale_local.errors import ConfigError
from fedscale_local.instantiate import instantiate
from fedscale_local.local_rule import LocalRule, Setting
from fedscale_local.local_rules.adam import adam
from fedscale_local.local_rules.fafed import fafed
from fedscale_local.local_rules.leaning import fedadamw, fedlada, fedpac
from fedscale_local.local_rules.mime import mime, mimelite
from fedscale_local.local_rules.muon import fedmuon, muon
from fedscale_local.local_rules.plain import plain
from fedscale_local.local_rules.proximal import dynamic, proximal
from fedscale_local.local_rules.scaffold import scaffold

RULES: dict[str, Callable[..., LocalRule]] = {
    "plain": plain,
    "adam": adam,
    "fafed": fafed,
    "fedlada": fedlada,
    "fedpac": fedpac,
    "fedadamw": fedadamw,
    "mime": mime,
    "mimelite": mimelite,
    "muon": muon,
    "fedmuon": fedmuon,
    "proximal": proximal,
    "dynamic": dynamic,
    "scaffold": scaffold,
}


def make(config: LocalConfig, setting: Setting) -> LocalRule:
    """The rule of this section. `_target_` of a rule of the user's own is called with the section's other keys and
    returns a LocalRule, or a function of the setting that does."""
    if isinstance(config, CustomLocal):
        made = instantiate(config.target, config.arguments, "strategy.local")
        rule = made(setting) if callable(made) else made
        if not isinstance(rule, LocalRule):
            raise ConfigError(
                f"strategy.local._target_={config.target}",
                f"expected something that makes a LocalRule, got a {type(rule).__name__}",
                "return one, or a function of the setting that returns one",
            )
        return rule
    arguments: dict[str, Any] = config.model_dump(exclude={"rule"})
    return RULES[config.rule](setting, **arguments)
