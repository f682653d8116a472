"""What secure aggregation does not go together with: first by the configuration alone, then with data and model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedscale_local.config_secure import SecureAggregation, Seen
from fedscale_local.config_strategies import FlowerStrategy
from fedscale_local.errors import ConfigError

if TYPE_CHECKING:
    from fedscale_local.config import Config
    from fedscale_local.experiment import Experiment

FEWEST = 3
"""Of two clients each can tell the other's vector from the sum."""

Problem = tuple[str, str, str]


def conflicts(config: Config) -> Iterator[Problem]:
    """(where, expectation, remedy) of each, by the configuration alone."""
    section, strategy, client = config.secure, config.strategy, config.client
    if isinstance(section, Seen):
        return
    where = f"secure={section.name}"
    if isinstance(strategy, FlowerStrategy) or client.name == "custom":
        yield (
            where,
            "somebody else's strategy wants single replies, and somebody else's ClientApp masks none",
            "set secure=none, or choose a strategy and a client of this project",
        )
        return
    if strategy.combine.rule not in ("mean", "normalised"):
        yield (
            f"strategy.combine.rule={strategy.combine.rule}",
            f"with {where} the server knows the clients' sum alone, of which no robust combination can be told",
            "set strategy.combine.rule=mean; secure.range.parameters bounds what one client can do",
        )
    if strategy.combine.rule == "normalised" and client.local_steps is None:
        yield (
            f"client.local_epochs={client.local_epochs}",
            f"with {where} the server cannot divide each client's work by its own number of steps",
            "choose client=steps and set client.local_steps",
        )
    scaling = config.scaling
    if scaling.combine == "mean_of_squares" and scaling.scope == "global" and scaling.rule != "identity":
        yield (
            "scaling.combine=mean_of_squares",
            f"with {where} the statistics are summed up, of which no mean of squares can be told",
            "set scaling.combine=square_of_mean",
        )
    encoded = [
        f"{group}.up={ways['up']}" for group, ways in config.sending.codecs.items() if ways["up"] != "none"
    ]
    if encoded:
        yield (
            f"sending.{encoded[0]}",
            f"with {where} masked numbers are summed up as they travel, and no codec's bytes can be",
            f"set sending.{encoded[0].split('=')[0]}=none; secure.modulus_bits says how long each number is",
        )
    if config.diagnostics != "none":
        yield (
            f"diagnostics={config.diagnostics}",
            f"with {where} nobody knows single clients' vectors",
            "set diagnostics=none",
        )
    if config.on_too_few == "wait":
        yield (
            "on_too_few=wait",
            f"with {where} a client that is asked twice under one mask would be found out",
            "set on_too_few to skip or stop",
        )
    if config.sampling == "poisson":
        yield (
            "sampling=poisson",
            f"{where} needs secure.threshold of the clients that were asked, and chance may ask too few; with "
            "privacy=central a round that fails would also tell of single clients",
            "set sampling=fixed",
        )
    for key, count in (("clients_per_round", config.clients_per_round), ("num_clients", config.num_clients)):
        if count is not None and count < FEWEST:
            yield (
                f"{key}={count}",
                f"with {where} a sum of so few gives them away to each other",
                f"set {key} to {FEWEST} or more",
            )


def match(experiment: Experiment, secure: SecureAggregation) -> None:
    """Do the sums fit into what is masked, and is all that is summed up bounded?"""
    from fedscale_local.secagg import rounding  # which brings torch; a configuration is read without it

    config, task, asked = experiment.config, experiment.task, experiment.clients_per_round
    if task.buffer_layout.size > 0:
        raise ConfigError(
            "secure=secagg",
            f"model={config.model.name} has running statistics of its inputs, for which no range is known",
            "take a model with GroupNorm, or secure=none",
        )
    if asked < FEWEST:
        raise ConfigError(
            f"clients_per_round={asked}",
            "with secure=secagg a sum of so few gives them away to each other",
            f"set clients_per_round and num_clients to {FEWEST} or more",
        )
    if experiment.local_rule.counts and config.client.local_steps is None:
        raise ConfigError(
            f"client.local_epochs={config.client.local_epochs}",
            "with secure=secagg the clocks of a local rule are counted by the server, which knows no client's steps",
            "choose client=steps and set client.local_steps",
        )
    largest = max(rounding.most(secure.bits), config.client.local_steps or 0)
    weight, half = experiment.largest_weight(range(len(experiment.partition))), 2 ** (secure.modulus_bits - 1)
    if largest * weight >= half or task.layout.size * asked >= half:
        raise ConfigError(
            f"secure.modulus_bits={secure.modulus_bits}",
            f"sums of numbers of secure.bits={secure.bits} with a total weight of {weight} do not fit into it",
            "set secure.modulus_bits=64, or lower secure.bits, or set strategy.weighting=uniform",
        )
    for group, bound in experiment.bounds_before_noise.items():
        step = getattr(secure.range, group) / rounding.most(secure.bits)
        if bound is not None and bound <= step * math.sqrt(task.layout.size):
            raise ConfigError(
                f"secure.bits={secure.bits}",
                f"rounding alone makes a vector of {task.layout.size} numbers longer than privacy.clip.{group}={bound}",
                f"raise secure.bits, or lower secure.range.{group}",
            )
