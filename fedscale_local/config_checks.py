"""What no single key can say: which values of a configuration fit together. Nothing here needs the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedscale_local.config_messages import show
from fedscale_local.errors import ConfigError

if TYPE_CHECKING:
    from fedscale_local.config import Config

GENERATED = ("quadratic", "synthetic")
DOWNLOADED = ("fashion_mnist", "mnist", "cifar10")
"""Sets that torchvision can fetch."""
CURVATURE = {"adahessian": ("hutchinson",), "sophia": ("gauss_newton", "hutchinson")}
"""The statistics that a rule is made for; the other rules take any."""

Problem = tuple[str, str, str]
"""(where, expectation, remedy)"""


def check(config: Config) -> None:
    """Raise ConfigError for the first conflict, saying how many more there are."""
    problems = [*_counts(config), *_client(config), *_scaling(config), *_strategy(config), *_data(config)]
    if problems:
        where, expectation, remedy = problems[0]
        more = f" ({len(problems) - 1} more to mend: {', '.join(p[0] for p in problems[1:])})"
        raise ConfigError(where, expectation, remedy + more * (len(problems) > 1))


def _counts(config: Config) -> Iterator[Problem]:
    clients, sampled = config.num_clients, config.clients_per_round
    if clients is not None and sampled is not None and sampled > clients:
        yield (
            f"clients_per_round={sampled}",
            f"a round cannot sample more than the {clients} clients that there are",
            f"set clients_per_round to {clients} or less (null: all), or num_clients to {sampled} or more",
        )
    if clients is None and config.partition.scheme != "natural":
        yield (
            "num_clients=null",
            f"partition={config.partition.scheme} has to be told how many clients to make",
            "set num_clients to 1 or more, as num_clients=200",
        )


def _client(config: Config) -> Iterator[Problem]:
    if config.client.name == "custom":
        for key, value in config.client.run_config.items():
            if not isinstance(value, str | int | float):
                yield (
                    f"client.{key}={show(value)}",
                    "Flower's run_config holds numbers, strings, true and false",
                    "write it as a string",
                )
        if config.strategy.name != "flower":
            yield (
                f"strategy={config.strategy.name}",
                "it asks clients for more than any ClientApp answers",
                "choose strategy=flower, or client=steps",
            )
    steps, epochs = config.client.local_steps, config.client.local_epochs
    if steps is None and epochs is None:
        yield (
            "client.local_steps=null",
            "a round needs local steps or local epochs",
            "set client.local_steps or client.local_epochs to 1 or more",
        )
    if steps is not None and epochs is not None:
        yield (
            f"client.local_epochs={epochs}",
            f"client.local_steps={steps} already says how long a round is",
            "take client=epochs with client.local_epochs, or client=steps with client.local_steps",
        )


def _scaling(config: Config) -> Iterator[Problem]:
    scaling = config.scaling
    if scaling.upper_bound is not None and scaling.upper_bound < scaling.alpha:
        yield (
            f"scaling.upper_bound={scaling.upper_bound}",
            f"the cap lies below the floor scaling.alpha={scaling.alpha}",
            "set scaling.upper_bound to scaling.alpha or more, or to null for no cap",
        )
    wanted = CURVATURE.get(scaling.rule)
    if wanted and scaling.statistic not in wanted:
        yield (
            f"scaling.statistic={scaling.statistic}",
            f"scaling={scaling.rule} is made for {' or '.join(wanted)}",
            f"set scaling.statistic={wanted[0]}, or choose scaling=adam",
        )
    if scaling.statistic == "displacement" and scaling.scope != "global":
        yield (
            "scaling.statistic=displacement",
            "the displacement of the mean model is known to all, so its D is global",
            "set scaling.scope=global, or scaling.statistic=gradient",
        )
    if scaling.statistic == "displacement" and scaling.combine != "square_of_mean":
        yield (
            f"scaling.combine={scaling.combine}",
            "scaling.statistic=displacement knows the mean over the clients alone",
            "set scaling.combine=square_of_mean, or scaling.statistic=gradient",
        )
    if scaling.local_refresh == "step" and scaling.scope != "local":
        yield (
            "scaling.local_refresh=step",
            "a global D is frozen between two synchronisations",
            "set scaling.scope=local, or scaling.local_refresh=round",
        )
    if scaling.local_refresh == "step" and scaling.refresh_every > 1:
        yield (
            f"scaling.refresh_every={scaling.refresh_every}",
            "scaling.local_refresh=step refreshes D before every local step",
            "set scaling.refresh_every=1, or scaling.local_refresh=round",
        )
    if scaling.spatial_average and scaling.statistic != "hutchinson":
        yield (
            "scaling.spatial_average=true",
            f"the mean over kernels is taken of Hutchinson diagonals, not of {scaling.statistic}",
            "set scaling.statistic=hutchinson, or scaling.spatial_average=false",
        )


def _strategy(config: Config) -> Iterator[Problem]:
    strategy, scaling = config.strategy, config.scaling
    scaled = scaling.rule != "identity"
    if strategy.name == "savic":
        if strategy.mixing == "preconditioned" and not (scaled and scaling.scope == "local"):
            yield (
                "strategy.mixing=preconditioned",
                "it weighs each client by a preconditioner of its own",
                "set scaling.scope=local with a scaling other than identity, or strategy.mixing=mean",
            )
        return
    if scaled and scaling.scope == "global":
        yield (
            f"scaling={scaling.rule}",
            f"strategy={strategy.name} keeps no global preconditioner",
            "choose strategy=savic, or scaling=identity, or scaling.scope=local",
        )
    if strategy.name == "fedavg" and strategy.mixing == "preconditioned":
        yield (
            "strategy.mixing=preconditioned",
            "strategy=fedavg takes the plain mean",
            "choose strategy=savic, or strategy.mixing=mean",
        )
    if strategy.name == "flower" and config.client.momentum_buffer == "averaged":
        yield (
            "client.momentum_buffer=averaged",
            "a strategy of Flower averages the parameters alone",
            "set client.momentum_buffer to reset or kept, or choose strategy=savic",
        )


def _data(config: Config) -> Iterator[Problem]:
    data = config.data
    if data.name in GENERATED and data.path is not None:
        yield (
            f"data.path={show(data.path)}",
            f"data={data.name} is generated and reads no file",
            "leave data.path out, or choose data=arrays",
        )
    if data.download and data.name not in DOWNLOADED:
        yield (
            "data.download=true",
            f"there is no download of data={data.name}, only of {', '.join(DOWNLOADED)}",
            "set data.download=false; data.path says where the files are",
        )
