"""From a checked configuration to everything wired: data, partition, model, and whether they fit each other."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.clientapp import ClientApp
from torch import Tensor

from fedscale_local import data, models, records, reports
from fedscale_local import run_dir as run_dirs
from fedscale_local.config import Config, CustomClient, from_container, from_json, resolve_run_dir, to_json
from fedscale_local.curvature import rademacher
from fedscale_local.data import partition as partitions
from fedscale_local.data import shard
from fedscale_local.data.dataset import Dataset
from fedscale_local.data.partition import Partition
from fedscale_local.data.shard import Place
from fedscale_local.errors import ConfigError, DataError
from fedscale_local.instantiate import locate
from fedscale_local.randomness import generator
from fedscale_local.scaling import Scaling
from fedscale_local.tasks import Task

SERVER_APP, CLIENT_APP = "strategies.server_app.app", "clients.client_app.app"
MAKE_STRATEGY = "strategies.server_app.make_strategy"
"""The apps that every engine runs; named here, because the machinery imports neither package."""
Work = Callable[[], None]


@dataclass(frozen=True)
class Experiment:
    """What server and clients of one run share."""

    config: Config
    dataset: Dataset
    partition: Partition
    task: Task

    @cached_property
    def scaling(self) -> Scaling:
        config = self.config.scaling
        names = (field.name for field in dataclasses.fields(Scaling))
        return Scaling(**{name: getattr(config, name) for name in names})

    @property
    def refreshes_each_step(self) -> bool:
        """Does each client refresh a D of its own before each local step?"""
        config = self.config.scaling
        return config.scope == "local" and config.local_refresh == "step" and not self.scaling.is_identity

    @property
    def starts_at_ones(self) -> bool:
        """Does D start at one, without a probe? The displacement has nothing to measure before the first round."""
        return self.config.scaling.start == "ones" or self.config.scaling.statistic == "displacement"

    @property
    def keeps_preconditioner(self) -> bool:
        """Do clients keep the global D between rounds, so that it need not be sent again?"""
        config = self.config.scaling
        seldom = config.refresh_every > 1 or config.statistic == "displacement"
        return config.scope == "global" and seldom and not self.scaling.is_identity

    @property
    def clients_keep_state(self) -> bool:
        """Does a client need in a later round what only it has? Of somebody else's nobody knows."""
        if isinstance(self.config.client, CustomClient):
            return True
        own = self.config.scaling.scope == "local" and not self.scaling.is_identity
        return own or self.keeps_preconditioner or self.config.client.momentum_buffer == "kept"

    def shard(self, client: int) -> Tensor:
        """The client's examples, as indices (n,) into the training set."""
        return torch.from_numpy(self.partition[client])

    @cached_property
    def eligible(self) -> np.ndarray:
        """The clients that hold enough for one mini-batch; the others are never sampled."""
        config = self.config.client
        needed = config.batch_size if config.drop_last and isinstance(config.batch_size, int) else 1
        return np.flatnonzero(self.partition.sizes >= needed)

    @property
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
    else:
        dataset, partition = shard.read(place, shard.origin(config))
    module = models.build(config.model, dataset, config.seed)
    task = Task(module, dataset, getattr(torch, config.dtype), config.client.weight_decay)
    experiment = Experiment(config, dataset, partition, task)
    if place is None:
        _match(experiment)
    return experiment


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


def _match_statistic(experiment: Experiment) -> None:
    """Try the Hessian once where the scaling wants it: not every module of a user can be differentiated twice."""
    if experiment.config.scaling.statistic != "hutchinson" or experiment.scaling.is_identity:
        return
    task = experiment.task
    v = task.looped.start(task.initial_params)
    batch = task.looped.batch([torch.arange(min(2, experiment.dataset.num_examples))], [])
    probe = rademacher(generator(experiment.config.seed, "probe"), len(v), task.dtype)
    try:
        product = task.looped.hessian_vector(v, batch, probe)
        fault = (
            ""
            if product.any()
            else "its Hessian is zero, as if a part of it could be differentiated only once"
        )
    except RuntimeError as error:
        fault = f"it cannot be differentiated twice ({str(error).splitlines()[0]})"
    if fault:
        raise ConfigError(
            "scaling.statistic=hutchinson",
            f"model={experiment.config.model.name} does not give Hessian-vector products: {fault}",
            "set scaling.statistic=gradient with scaling=adam, or change the model",
        )


def run(config: Config) -> Path:
    """One whole run; returns its directory. What can be refused is refused before the directory is made."""
    experiment = build(resolve_run_dir(config))
    chosen, work = _engine(experiment)
    locate(MAKE_STRATEGY)(experiment)  # a strategy of the user's own may be refused too
    return begin(experiment, chosen, work)


def resume(run_dir: Path) -> Path:
    """Carry on a run from its newest checkpoint, or from the beginning where it has none; returns its directory."""
    config = from_container(run_dirs.read(run_dir).config).model_copy(update={"run_dir": str(run_dir)})
    experiment = build(config)
    return _carry_out(experiment, _engine(experiment)[1])


def begin(experiment: Experiment, chosen: dict[str, Any], work: Work) -> Path:
    """Make the run directory and do the rounds in it by `work`; `chosen` tells the manifest how."""
    records.create(Path(str(experiment.config.run_dir)), experiment, chosen)
    return _carry_out(experiment, work)


def config_of(run_config: Mapping[str, Any]) -> Config:
    """The configuration that a Flower run carries: the whole of one, or overrides of the defaults (`flwr run .`)."""
    if run_config["config"]:
        return from_json(str(run_config["config"]))
    return _composed(str(run_config["overrides"]))


@lru_cache(maxsize=1)
def _composed(overrides: str) -> Config:
    from fedscale_local import compose  # which asks Hydra; a whole configuration needs none

    return compose.config(shlex.split(overrides))


def _engine(experiment: Experiment) -> tuple[dict[str, Any], Work]:
    """What the configured engine chooses, for the manifest, and all rounds on it."""
    module = f"fedscale_local.engines.{experiment.config.engine.name}"
    chosen = locate(f"{module}.choose")(experiment)
    engine = locate(f"{module}.run")
    return chosen, lambda: engine(experiment, chosen, locate(SERVER_APP), client_app(experiment.config))


def _carry_out(experiment: Experiment, work: Work) -> Path:
    """The rounds that are still to do, how they ended, and the report."""
    run_dir = Path(str(experiment.config.run_dir))
    try:
        work()
    except KeyboardInterrupt:
        records.finish(run_dir, "interrupted")
        raise
    except BaseException as error:
        records.finish(run_dir, f"failed: {type(error).__name__}: {error}")
        raise
    records.finish(run_dir, "done")
    reports.write(run_dir)
    return run_dir
