"""The configuration of a run as a typed tree: what may be said, checked once, read everywhere.

Hydra composes plain values (fedscale_local/compose.py); `from_container` turns them into a `Config` or
into one `ConfigError` that names key, value, expectation and remedy. The defaults live in conf/, not here:
every key has to be there. `to_json` and `from_json` carry a whole Config as one string, without Hydra.

Groups with choices are unions: `config.partition.scheme == "dirichlet"` narrows to `Dirichlet`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError

from fedscale_local import config_checks, config_messages
from fedscale_local.config_attack import AttackConfig
from fedscale_local.config_base import (
    Cap,
    Clip,
    Count,
    Decay,
    Flag,
    NonNegative,
    Positive,
    Section,
    Share,
    Size,
    Widths,
)
from fedscale_local.config_engines import EngineConfig, SuperLink
from fedscale_local.config_messages import Is
from fedscale_local.config_privacy import PrivacyConfig
from fedscale_local.config_secure import SecureConfig
from fedscale_local.config_sending import Sending
from fedscale_local.config_strategies import StrategyConfig, Target
from fedscale_local.config_tracking import TrackingConfig
from fedscale_local.errors import ConfigError, RunDirError
from fedscale_local.processes import uninterrupted


class LocalWork(Section):
    """What a client does in one round: exactly one of local_steps and local_epochs."""

    local_steps: Annotated[
        int | None, Field(ge=1), Is("a whole number", "1 or more", "a round needs at least one local step")
    ]
    local_epochs: Annotated[
        int | None, Field(ge=1), Is("a whole number", "1 or more", "a round needs at least one local epoch")
    ]
    step_size: Positive
    batch_size: Annotated[
        Annotated[int, Field(ge=1)] | Literal["full"], Is("a whole number", "1 or more, or full")
    ]
    momentum: Decay
    momentum_buffer: Literal["reset", "kept", "averaged"]
    momentum_every: Count
    weight_decay: Size
    drop_last: Flag


class Client(LocalWork):
    """The clients of this project: scaled local steps."""

    name: Literal["scaled"]


class Scaling(Section):
    """Memory, floor and statistic of the preconditioner D."""

    rule: Literal["identity", "adagrad", "rmsprop", "adam", "oasis", "adahessian", "sophia"]
    beta: Decay
    alpha: Positive
    floor: Literal["max", "add"]
    upper_bound: Cap
    scope: Literal["global", "local"]
    statistic: Literal["gradient", "full_gradient", "hutchinson", "gauss_newton", "displacement"]
    combine: Literal["square_of_mean", "mean_of_squares"]
    refresh_every: Count
    start: Literal["statistic", "ones"]
    local_refresh: Literal["round", "step"]
    rho: Clip
    spatial_average: Flag


class CustomClient(LocalWork, Target):
    """Any Flower ClientApp, unmodified: the object at the import path."""

    name: Literal["custom"]

    @property
    def run_config(self) -> dict[str, str | int | float | bool]:
        """Every other key of the section, which is for the app to read; Flower has no null there."""
        named = self.model_dump(exclude={"name", "target"})
        return {key: value for key, value in named.items() if value is not None}


class Data(Section):
    """Where the files of a set are: in `path`, or where the set is usually found."""

    name: str
    path: Annotated[str | None, Is("a path or null")]
    download: Flag


class FileData(Data):
    """Sets without options."""

    name: Literal["fashion_mnist_12k", "fashion_mnist", "mnist", "cifar10", "hapt", "heart_disease"]


class Shakespeare(Data):
    """Windows of `window` characters, each with the characters that follow."""

    name: Literal["shakespeare"]
    window: Count


class Arrays(Data):
    """The user's own x and y."""

    name: Literal["arrays"]
    path: Annotated[str, Is("the path of an .npz or .parquet file")]


class Quadratic(Data):
    """Generated: one quadratic objective a client, their optima `heterogeneity` apart."""

    name: Literal["quadratic"]
    dimension: Count
    examples: Count
    condition: Annotated[float, Field(ge=1), Is("a number", "1 or more")]
    heterogeneity: Size


class Synthetic(Data):
    """Generated: LEAF's Synthetic(a, b)."""

    name: Literal["synthetic"]
    a: Size
    b: Size
    dimension: Count
    num_classes: Annotated[int, Field(ge=2), Is("a whole number", "2 or more")]


class Partition(Section):
    """Schemes without options: iid, and natural (the clients that the data set names)."""

    scheme: Literal["iid", "natural"]


class Dirichlet(Section):
    """Each class divided over the clients by Dirichlet(alpha) shares."""

    scheme: Literal["dirichlet"]
    alpha: Positive
    min_examples: NonNegative


class MainClass(Section):
    """A share of each client's examples comes from its main class."""

    scheme: Literal["main_class"]
    share: Share


class Pathological(Section):
    """Each client holds a few classes only."""

    scheme: Literal["pathological"]
    classes_per_client: Count


class BySize(Section):
    """Log-normal numbers of examples, classes mixed."""

    scheme: Literal["by_size"]
    sigma: Size


class Model(Section):
    """Models without options."""

    name: Literal["linear", "logistic"]


class Mlp(Section):
    """Fully connected layers of these widths."""

    name: Literal["mlp"]
    hidden: Widths


class Convolutional(Section):
    """cnn on images and cnn1d on signals."""

    name: Literal["cnn", "cnn1d"]
    channels: Widths


class ResNet(Section):
    """Residual networks with GroupNorm."""

    name: Literal["resnet8", "resnet18"]
    groups: Count


class CharGru(Section):
    """A recurrent network on characters."""

    name: Literal["char_gru"]
    embedding: Count
    hidden: Count


class CharTransformer(Section):
    """A small causal transformer on characters."""

    name: Literal["char_transformer"]
    width: Count
    heads: Count
    layers: Count


class Torchvision(Section):
    """A model of torchvision by its name there."""

    name: Annotated[str, Field(pattern=r"^torchvision/\w+$"), Is("a name like torchvision/resnet18")]


class CustomModel(Target):
    """Any torch.nn.Module of the user."""

    name: Literal["custom"]


def _model_tag(model: Any) -> str:
    """Which class reads a model section: told by its name; all of torchvision's share one."""
    name = str(model.get("name") if isinstance(model, Mapping) else getattr(model, "name", None))
    return "torchvision" if name.startswith("torchvision/") else name


ClientConfig = Annotated[Client | CustomClient, Field(discriminator="name")]
DataConfig = Annotated[FileData | Shakespeare | Arrays | Quadratic | Synthetic, Field(discriminator="name")]
PartitionConfig = Annotated[
    Partition | Dirichlet | MainClass | Pathological | BySize, Field(discriminator="scheme")
]
ModelConfig = Annotated[
    Annotated[Model, Tag("linear")]
    | Annotated[Model, Tag("logistic")]
    | Annotated[Mlp, Tag("mlp")]
    | Annotated[Convolutional, Tag("cnn")]
    | Annotated[Convolutional, Tag("cnn1d")]
    | Annotated[ResNet, Tag("resnet8")]
    | Annotated[ResNet, Tag("resnet18")]
    | Annotated[CharGru, Tag("char_gru")]
    | Annotated[CharTransformer, Tag("char_transformer")]
    | Annotated[Torchvision, Tag("torchvision")]
    | Annotated[CustomModel, Tag("custom")],
    Discriminator(_model_tag),
]


class Config(Section):
    """Everything that a run needs to know."""

    seed: NonNegative
    num_clients: Annotated[
        int | None, Field(ge=1), Is("a whole number", "1 or more, or null for every natural client")
    ]
    clients_per_round: Annotated[
        int | None, Field(ge=1), Is("a whole number", "1 or more, or null for all clients")
    ]
    sampling: Literal["fixed", "poisson"]
    num_rounds: Count
    run_dir: Annotated[str | None, Field(min_length=1), Is("a path or null")]
    dtype: Literal["float32", "float64"]
    eval_every: Count
    eval_clients: Flag
    eval_personal_steps: NonNegative
    eval_personal_step_size: Positive
    checkpoint_every: NonNegative
    checkpoint_keep: Count
    round_timeout: Annotated[float | None, Field(gt=0), Is("seconds", "more than 0, or null for no limit")]
    min_replies: Count
    on_too_few: Literal["skip", "wait", "stop"]
    diagnostics: Literal["none", "drift"]
    client: ClientConfig
    scaling: Scaling
    strategy: StrategyConfig
    sending: Sending
    attack: AttackConfig
    privacy: PrivacyConfig
    secure: SecureConfig
    data: DataConfig
    partition: PartitionConfig
    model: ModelConfig
    engine: EngineConfig
    superlink: SuperLink
    tracking: TrackingConfig


def from_container(container: Mapping[str, Any]) -> Config:
    """The checked configuration.

    Args:
        container: plain dicts, lists and scalars, as Hydra composes them or `to_container` gives them.

    Raises:
        ConfigError: the first wrong key, with value, expectation and remedy; how many more there are.
    """
    try:
        config = Config.model_validate(dict(container))
    except ValidationError as error:
        raise config_messages.refusal(Config, container, error) from None
    config_checks.check(config)
    return config


def to_container(config: Config) -> dict[str, Any]:
    """Plain dicts, lists and scalars: what `from_container` reads and config.yaml shows."""
    with uninterrupted():  # pydantic asks for discriminators, and warns of whatever is raised there
        return config.model_dump(mode="json", by_alias=True)


def to_json(config: Config) -> str:
    """The whole configuration as one string; equal configurations give equal strings."""
    return json.dumps(to_container(config), allow_nan=False)


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote; raises ConfigError as `from_container` does."""
    try:
        container = json.loads(text)
    except ValueError as error:
        raise ConfigError("config", f"expected JSON ({error})", "give what to_json wrote") from None
    if not isinstance(container, dict):
        raise ConfigError(f"config={container}", "expected a JSON object", "give what to_json wrote")
    return from_container(container)


def resolve_run_dir(config: Config) -> Config:
    """The same configuration with a run directory that a run may create; nothing is created here.

    A run_dir of null becomes runs/<time>-<strategy>-<rule>-<data>-s<seed>.

    Raises:
        RunDirError: something is there already, or nothing can be written there.
    """
    run_dir = config.run_dir
    if run_dir is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{config.strategy.name}-{config.scaling.rule}-{config.data.name}-s{config.seed}"
        run_dir, count = f"runs/{name}", 1
        while Path(run_dir).exists():
            run_dir, count = f"runs/{name}-{count + 1}", count + 1
    where, path = f"run_dir={run_dir}", Path(run_dir)
    try:
        if path.exists() and not path.is_dir():
            raise RunDirError(where, "a file of that name is there", "choose another run_dir")
        if path.is_dir() and any(path.iterdir()):
            raise RunDirError(where, "the directory is not empty", "choose another run_dir, or remove it")
        above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    except OSError as error:
        raise RunDirError(where, f"it cannot be used ({error.strerror})", "choose another run_dir") from None
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise RunDirError(where, f"nothing can be written in {above}", "choose another run_dir")
    return config.model_copy(update={"run_dir": run_dir})
