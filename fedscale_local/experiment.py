"""From a checked configuration to everything wired: data, partition, model, and whether they fit each other."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from flwr.clientapp import ClientApp
from torch import Tensor

from fedscale_local import attacks, data, local_rules, models, privacy, secure_checks
from fedscale_local.config import Config, CustomClient, from_json, resolve_run_dir, to_json
from fedscale_local.config_engines import InProcess
from fedscale_local.config_privacy import NoPrivacy, Privacy
from fedscale_local.config_secure import SecureAggregation
from fedscale_local.config_strategies import FlowerStrategy
from fedscale_local.curvature import rademacher
from fedscale_local.data import held_out, shard
from fedscale_local.data import partition as partitions
from fedscale_local.data.batches import draw
from fedscale_local.data.dataset import Dataset
from fedscale_local.data.partition import Partition
from fedscale_local.data.shard import Place
from fedscale_local.diagnostics import Quadratic
from fedscale_local.engines.workers import apart
from fedscale_local.errors import ConfigError, DataError
from fedscale_local.instantiate import locate
from fedscale_local.local_rule import PLAIN, LocalRule, Setting, with_momentum
from fedscale_local.randomness import generator
from fedscale_local.scaling import Scaling
from fedscale_local.tasks import Task

SERVER_APP, CLIENT_APP = "strategies.server_app.app", "clients.client_app.app"
"""The apps that every engine runs; named here, because the machinery imports neither package."""


@dataclass(frozen=True)
class Experiment:
    """What server and clients of one run share."""

    config: Config
    dataset: Dataset
    partition: Partition
    task: Task
    test_partition: Partition
    """By which test examples each client is judged."""

    @cached_property
    def scaling(self) -> Scaling:
        config = self.config.scaling
        names = (field.name for field in dataclasses.fields(Scaling))
        return Scaling(**{name: getattr(config, name) for name in names})

    @cached_property
    def local_rule(self) -> LocalRule:
        """What clients do beside scaled steps, and with their momentum; for a strategy of Flower that alone."""
        config, client = self.config.strategy, self.config.client
        rule = PLAIN
        if not isinstance(config, FlowerStrategy):
            setting = Setting(self.task.layout, client.step_size, client.momentum)
            rule = local_rules.make(config.local, setting)
        has_momentum = client.momentum > 0
        return with_momentum(rule, client.momentum_buffer, client.momentum_every) if has_momentum else rule

    @cached_property
    def sends_plain(self) -> bool:
        """Does everything travel as it is?"""
        return self.config.sending.is_plain

    @cached_property
    def quadratic(self) -> Quadratic | None:
        """The mean objective in closed form, where the data are generated quadratics and the model is linear."""
        config, data = self.config, self.dataset
        if config.data.name != "quadratic" or config.model.name != "linear":
            return None
        rows, targets = data.x.to(self.task.dtype), data.y.to(self.task.dtype)
        return Quadratic.of_least_squares(rows, targets, config.client.weight_decay)

    @cached_property
    def refreshes_each_step(self) -> bool:
        """Does each client refresh a D of its own before each local step?"""
        config = self.config.scaling
        return config.scope == "local" and config.local_refresh == "step" and not self.scaling.is_identity

    @property
    def starts_at_ones(self) -> bool:
        """Does D start at one, without a probe? The displacement has nothing to measure before the first round."""
        return self.config.scaling.start == "ones" or self.config.scaling.statistic == "displacement"

    @property
    def has_probe(self) -> bool:
        """Is there a round 0, in which clients measure and take no step?"""
        measures = self.config.scaling.scope == "global" and not self.scaling.is_identity
        return self.local_rule.probe is not None or (measures and not self.starts_at_ones)

    @cached_property
    def mechanism(self) -> privacy.Mechanism | None:
        """How clients are kept from being found out; None: not at all."""
        config = self.config.privacy
        if isinstance(config, NoPrivacy):
            return None
        charging = self._charging(config, config.noise_multiplier)
        warnings = [charging.warning] if charging.warning else []
        if config.delta * len(self.partition) >= 1:
            warnings.append(
                f"privacy.delta={config.delta:g} allows for giving one of {len(self.partition)} clients away "
                f"altogether; set it well below {1 / len(self.partition):.2g}"
            )
        return privacy.Mechanism(
            config.name,
            config.noise_multiplier,
            config.clip.model_dump(),
            charging.release,
            charging.neighbours,
            config.accountant,
            config.delta,
            config.is_secure(self.config.engine.name),
            tuple(warnings),
        )

    @cached_property
    def secure(self) -> SecureAggregation | None:
        """How clients' vectors are summed up so that nobody sees one of them; None: the server sees each."""
        return section if isinstance(section := self.config.secure, SecureAggregation) else None

    def calibrated_noise(self) -> float | None:
        """The noise multiplier that privacy.target_epsilon asks for; None without a target."""
        config = self.config.privacy
        if isinstance(config, NoPrivacy) or config.target_epsilon is None:
            return None
        messages = 1 + (config.name == "local" and self.local_rule.wants_mean_gradient)
        try:
            return privacy.calibrated(
                lambda multiplier: self._charging(config, multiplier).release,
                self.config.num_rounds * messages + self.has_probe,
                config.target_epsilon,
                config.accountant,
                config.delta,
            )
        except ValueError as error:
            raise ConfigError(
                f"privacy.target_epsilon={config.target_epsilon}",
                f"{error} for {self.config.num_rounds} rounds",
                "raise privacy.target_epsilon or privacy.delta, or lower num_rounds or clients_per_round",
            ) from None

    def _charging(self, config: Privacy, multiplier: float) -> privacy.Charging:
        """As what a round, or a client's message, is charged with this noise."""
        if config.name == "local":
            return privacy.local(multiplier)
        sampled, clients = self.clients_per_round, len(self.eligible)
        return privacy.central(multiplier, self.config.sampling, config.accountant, sampled, clients)

    @property
    def bounds_before_noise(self) -> Mapping[str, float | None]:
        """The bounds that clients keep themselves where the server, which adds the noise, sees no single vector."""
        central = self.mechanism is not None and self.mechanism.kind == "central" and self.secure is not None
        return self.mechanism.bounds if central and self.mechanism is not None else {}

    def largest_weight(self, clients: Sequence[int]) -> int:
        """What the weights of these, or of the heaviest that can be asked in one round, add up to at most."""
        count = min(len(clients), self.clients_per_round)
        if getattr(self.config.strategy, "weighting", "uniform") == "uniform":
            return count
        return int(np.sort(self.partition.sizes[list(clients)])[-count:].sum())

    @cached_property
    def keeps_preconditioner(self) -> bool:
        """Do clients keep the global D between rounds, so that it need not be sent again?"""
        config = self.config.scaling
        seldom = config.refresh_every > 1 or config.statistic == "displacement"
        return config.scope == "global" and seldom and not self.scaling.is_identity

    @cached_property
    def clients_keep_state(self) -> bool:
        """Does a client need in a later round what only it has? Of somebody else's nobody knows."""
        if isinstance(self.config.client, CustomClient):
            return True
        own = self.config.scaling.scope == "local" and not self.scaling.is_identity
        rule, config = self.local_rule, self.config
        kept = self.keeps_preconditioner or bool(rule.keeps) or rule.wants_mean_gradient
        return own or kept or config.sending.leaves_residuals

    @cached_property
    def hostile(self) -> tuple[int, ...]:
        """The hostile clients, ascending; who they are depends on the seed and on how many clients there are."""
        return _hostile(self.config, self.partition)

    def shard(self, client: int) -> Tensor:
        """The client's examples, as indices (n,) into the training set."""
        return torch.from_numpy(self.partition[client])

    def batches(self, round: int, client: int) -> list[Tensor]:
        """The client's mini-batches of this round, as indices into the training set: one a local step, one for a probe.

        Nothing but the seed, the shard and the client section has an influence: every method draws the same ones.
        """
        config = self.config.client
        return draw(
            generator(self.config.seed, "batch", round, client),
            self.shard(client),
            config.batch_size,
            num_steps=1 if round == 0 else config.local_steps,
            num_epochs=config.local_epochs,
            drop_last=config.drop_last,
        )

    def personal_batches(self, client: int) -> list[Tensor]:
        """The same for the steps after the last round, by which a client makes the model its own."""
        config = self.config
        return draw(
            generator(config.seed, "personal", config.num_rounds, client),
            self.shard(client),
            config.client.batch_size,
            num_steps=config.eval_personal_steps,
            drop_last=config.client.drop_last,
        )

    @cached_property
    def eligible(self) -> np.ndarray:
        """The clients that hold enough for one mini-batch; the others are never sampled."""
        config = self.config.client
        needed = config.batch_size if config.drop_last and isinstance(config.batch_size, int) else 1
        return np.flatnonzero(self.partition.sizes >= needed)

    @cached_property
    def clients_per_round(self) -> int:
        return self.config.clients_per_round or len(self.eligible)


def build(config: Config, place: Place | None = None) -> Experiment:
    """Load, divide, construct and match; whatever does not fit is refused here, before any work.

    The last experiment is kept: server and clients of one process share it. A device that holds its own shard alone
    says where; what only the whole data set can tell was matched where the run began.
    """
    return _build(to_json(config), place)


@lru_cache(maxsize=1)
def _build(text: str, place: Place | None) -> Experiment:
    config = from_json(text)
    if place is None:
        dataset = data.load(config.data, config.seed, config.num_clients)
        partition = partitions.make(config.partition, dataset, config.num_clients, config.seed)
        test_partition = held_out.make(config.partition.scheme, dataset, partition)
    else:
        dataset, partition, test_partition = shard.read(place, shard.origin(config))
    module = models.build(config.model, dataset, config.seed)
    trained = _poisoned(config, dataset, partition)
    task = Task(module, trained, getattr(torch, config.dtype), config.client.weight_decay)
    experiment = Experiment(config, dataset, partition, task, test_partition)
    if place is None:
        _match(experiment)
    return experiment


def _hostile(config: Config, partition: Partition) -> tuple[int, ...]:
    share = getattr(config.attack, "share", 0.0)
    # A device's partition ends with its own client.
    return attacks.hostile(config.seed, config.num_clients or len(partition), share)


def _poisoned(config: Config, dataset: Dataset, partition: Partition) -> Dataset:
    """What clients train on: under attack=label_flip the labels of the hostile ones are not as they were divided."""
    if config.attack.name != "label_flip":
        return dataset
    if dataset.kind != "classification":
        raise ConfigError(
            "attack=label_flip",
            f"data={config.data.name} has no class labels",
            "choose another attack, or data with classes",
        )
    y = dataset.y.clone()
    for client in _hostile(config, partition):
        if client < len(partition):
            rows = torch.from_numpy(partition[client])
            y[rows] = attacks.flipped(y[rows], dataset.num_classes)
    return dataclasses.replace(dataset, y=y)


def planned(config: Config) -> Experiment:
    """The experiment of a run that begins: as `build`, with the noise that a target epsilon asks for."""
    return aimed(build(resolve_run_dir(config)))


def aimed(experiment: Experiment) -> Experiment:
    """The same with the noise that a target epsilon asks for."""
    multiplier = experiment.calibrated_noise()
    if multiplier is None:
        return experiment
    changed = experiment.config.privacy.model_copy(update={"noise_multiplier": multiplier})
    return build(experiment.config.model_copy(update={"privacy": changed}))


def client_app(config: Config) -> ClientApp:
    """Ours, or the one at client._target_."""
    if not isinstance(config.client, CustomClient):
        return locate(CLIENT_APP)
    found = locate(config.client.target, "client._target_")
    if not isinstance(found, ClientApp):
        raise ConfigError(
            f"client._target_={config.client.target}",
            f"expected a Flower ClientApp, found a {type(found).__name__}",
            "name the object itself, as my_package.my_module.app",
        )
    return found


def _match(experiment: Experiment) -> None:
    # Not ours: on Ray, Flower imports that in another thread, and takes it half done where this one has begun.
    if isinstance(experiment.config.client, CustomClient):
        client_app(experiment.config)
    config, task = experiment.config, experiment.task
    eligible = len(experiment.eligible)
    if eligible == 0:
        raise DataError(
            f"client.batch_size={config.client.batch_size}",
            f"the largest of {len(experiment.partition)} shards has {experiment.partition.sizes.max()} examples, "
            "so with drop_last no client has a batch",
            "lower client.batch_size, or set client.drop_last=false",
        )
    if experiment.clients_per_round > eligible:
        raise ConfigError(
            f"clients_per_round={config.clients_per_round}",
            f"only {eligible} of {len(experiment.partition)} clients have enough examples for a batch",
            "lower clients_per_round (null: all of these), or give the clients more data by partition or num_clients",
        )
    if getattr(config.engine, "mode", "auto") == "stacked" and not task.is_stackable:
        raise ConfigError(
            "engine.mode=stacked",
            "the model has running statistics or dropout, which a stack of clients cannot keep apart",
            "set engine.mode=looped, or use GroupNorm and no dropout",
        )
    _match_statistic(experiment)
    if experiment.mechanism is not None and task.buffer_layout.size > 0:
        raise ConfigError(
            f"privacy={experiment.mechanism.kind}",
            f"model={config.model.name} has running statistics of its inputs, which no clipping bounds",
            "take a model with GroupNorm, or privacy=none",
        )
    if experiment.secure is not None:
        secure_checks.match(experiment, experiment.secure)


def _match_statistic(experiment: Experiment) -> None:
    """Try the Hessian once where the scaling wants it: not every module of a user can be differentiated twice."""
    if experiment.config.scaling.statistic != "hutchinson" or experiment.scaling.is_identity:
        return
    fault = apart(_fault, experiment) if forks_beside_gpus(experiment.config) else _fault(experiment)
    if fault:
        raise ConfigError(
            "scaling.statistic=hutchinson",
            f"model={experiment.config.model.name} does not give Hessian-vector products: {fault}",
            "set scaling.statistic=gradient with scaling=adam, or change the model",
        )


def _fault(experiment: Experiment) -> str:
    """What is wrong with the Hessian of the model; nothing, where nothing is."""
    task = experiment.task
    v = task.looped.start(task.initial_params)
    batch = task.looped.batch([torch.arange(min(2, experiment.dataset.num_examples))], [])
    probe = rademacher(generator(experiment.config.seed, "probe"), len(v), task.dtype)
    try:
        product = task.looped.hessian_vector(v, batch, probe)
    except RuntimeError as error:
        return f"it cannot be differentiated twice ({str(error).splitlines()[0]})"
    return (
        "" if product.any() else "its Hessian is zero, as if a part of it could be differentiated only once"
    )


def forks_beside_gpus(config: Config) -> bool:
    """Does this process fork workers, on a machine with GPUs?

    A process that has taken a gradient there, were it on the CPU, has threads for all of them, and what is forked from
    it can take none any more.
    """
    forks = isinstance(config.engine, InProcess) and config.engine.workers != 1
    return forks and torch.cuda.device_count() > 0


def config_of(run_config: Mapping[str, Any]) -> Config:
    """The configuration that a Flower run carries: the whole of one, or overrides of the defaults (`flwr run .`)."""
    if run_config["config"]:
        return _read(str(run_config["config"]))
    return _composed(str(run_config["overrides"]))


_read = lru_cache(maxsize=1)(from_json)
"""Clients are given the same one in every round."""


@lru_cache(maxsize=1)
def _composed(overrides: str) -> Config:
    from fedscale_local import compose  # which asks Hydra; a whole configuration needs none

    return compose.config(shlex.split(overrides))
