"""What no single key can say: which values of a configuration fit together. Nothing here needs the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedscale_local import secure_checks
from fedscale_local.config_attack import COLLUDING
from fedscale_local.config_engines import InProcess
from fedscale_local.config_messages import show
from fedscale_local.config_privacy import NoPrivacy
from fedscale_local.config_strategies import FlowerStrategy, ServerScaled
from fedscale_local.errors import ConfigError

if TYPE_CHECKING:
    from fedscale_local.config import Config, Scaling

GENERATED = ("quadratic", "synthetic")
DOWNLOADED = ("fashion_mnist", "mnist", "cifar10")
"""Sets that torchvision can fetch."""
CURVATURE = {"adahessian": ("hutchinson",), "sophia": ("gauss_newton", "hutchinson")}
"""The statistics that a rule is made for; the other rules take any."""

OWN_STEPS = ("adam", "fedlada", "fedpac", "fedadamw", "fafed", "muon", "fedmuon")
"""Local rules that step by themselves."""

Problem = tuple[str, str, str]
"""(where, expectation, remedy)"""


def check(config: Config) -> None:
    """Raise ConfigError for the first conflict, saying how many more there are."""
    parts = (
        *(_counts, _evaluation, _engine, _client, _scaling, _strategy, _sending),
        *(_privacy, secure_checks.conflicts, _attack, _data),
    )
    problems = [problem for part in parts for problem in part(config)]
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


def _evaluation(config: Config) -> Iterator[Problem]:
    steps = config.eval_personal_steps
    if not steps:
        return
    where, without = f"eval_personal_steps={steps}", "set eval_personal_steps=0"
    if not config.eval_clients:
        yield (
            where,
            "eval_clients=false asks for no word of single clients",
            f"set eval_clients=true, or {without}",
        )
    if config.client.name == "custom":
        yield (
            where,
            "somebody else's ClientApp does not know how to answer",
            f"take our clients, or {without}",
        )
    if config.privacy.name != "none":
        expectation = f"each client would tell how it does, which privacy={config.privacy.name} keeps secret"
        yield where, expectation, f"{without}, or privacy=none"


def _engine(config: Config) -> Iterator[Problem]:
    """Whether there is a GPU tells the engine, which looks for one."""
    engine = config.engine
    if not isinstance(engine, InProcess):
        return
    if engine.stack_size != "auto" and (engine.mode == "looped") != (engine.stack_size == 1):
        yield (
            f"engine.stack_size={engine.stack_size}",
            f"engine.mode={engine.mode} does not compute {engine.stack_size} at a time",
            "set engine.stack_size=auto, or 1 for looped and 2 or more for stacks",
        )
    for key, value in (("device", "cuda"), ("precision", "bfloat16")):
        if engine.mode == "compiled" and getattr(engine, key) == value:
            expectation = "what is compiled runs on the processor, with the numbers that dtype says"
            yield f"engine.{key}={value}", expectation, "set engine.mode=auto"
    if engine.precision == "bfloat16" and config.dtype == "float64":
        expectation = "products in 8 bits of precision leave nothing of the 53 of dtype=float64"
        yield "engine.precision=bfloat16", expectation, "set dtype=float32, or engine.precision=full"


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
    buffer, every = config.client.momentum_buffer, config.client.momentum_every
    if every > 1 and buffer != "averaged":
        yield (
            f"client.momentum_every={every}",
            f"it says when buffers are averaged, and client.momentum_buffer={buffer} averages none",
            "set client.momentum_buffer=averaged, or client.momentum_every=1",
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


def _cap(section: str, scaling: Scaling | ServerScaled) -> Iterator[Problem]:
    if scaling.upper_bound is not None and scaling.upper_bound < scaling.alpha:
        yield (
            f"{section}.upper_bound={scaling.upper_bound}",
            f"the cap lies below the floor {section}.alpha={scaling.alpha}",
            f"set {section}.upper_bound to {section}.alpha or more, or to null for no cap",
        )


def _scaling(config: Config) -> Iterator[Problem]:
    scaling = config.scaling
    yield from _cap("scaling", scaling)
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
    if scaling.local_refresh == "step" and scaling.statistic == "full_gradient":
        yield (
            "scaling.statistic=full_gradient",
            "scaling.local_refresh=step measures on each step's mini-batch",
            "set scaling.statistic=gradient, or scaling.local_refresh=round",
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
    if isinstance(strategy, FlowerStrategy):
        if config.diagnostics != "none":
            yield (
                f"diagnostics={config.diagnostics}",
                "a strategy of Flower does not show what its clients sent",
                "set diagnostics=none, or choose another strategy",
            )
        if config.client.momentum_buffer == "averaged":
            yield (
                "client.momentum_buffer=averaged",
                "a strategy of Flower averages the parameters alone",
                "set client.momentum_buffer to reset or kept, or choose strategy=savic",
            )
    elif strategy.mixing == "preconditioned" and not (scaled and scaling.scope == "local"):
        yield (
            "strategy.mixing=preconditioned",
            "it weighs each client by a preconditioner of its own",
            "set scaling.scope=local with a scaling other than identity, or strategy.mixing=mean",
        )
    elif strategy.mixing == "preconditioned" and strategy.combine.rule != "mean":
        yield (
            f"strategy.combine.rule={strategy.combine.rule}",
            "strategy.mixing=preconditioned is itself how models become one",
            "set strategy.combine.rule=mean, or strategy.mixing=mean",
        )
    elif strategy.local.rule in OWN_STEPS and (scaled or config.client.momentum > 0):
        where = f"scaling={scaling.rule}" if scaled else f"client.momentum={config.client.momentum}"
        yield (
            where,
            f"strategy.local.rule={strategy.local.rule} has a step of its own, without momentum or scaling",
            "set scaling=identity and client.momentum=0, or strategy.local.rule=plain",
        )
    if isinstance(strategy, ServerScaled):
        yield from _cap("strategy", strategy)
    if scaled and scaling.scope == "global" and strategy.name in ("fedavg", "flower"):
        yield (
            f"scaling={scaling.rule}",
            f"strategy={strategy.name} keeps no global preconditioner",
            "choose strategy=savic, or scaling=identity, or scaling.scope=local",
        )


def _sending(config: Config) -> Iterator[Problem]:
    sending = config.sending
    encoded = [
        f"sending.{group}.{way}={name}"
        for group, ways in sending.codecs.items()
        for way, name in ways.items()
        if name != "none"
    ]
    foreign = next(
        (f"{part}={section.name}" for part, section in (("client", config.client), ("strategy", config.strategy))
         if section.name in ("custom", "flower")),
        None,
    )  # fmt: skip
    if encoded and foreign:
        yield (
            encoded[0],
            f"{foreign} knows no codecs and would read bytes as numbers",
            "set sending=plain, or choose a client and a strategy of this project",
        )
    derives = config.scaling.statistic == "displacement" and config.scaling.rule != "identity"
    if derives and {sending.preconditioner.down, sending.parameters.down} != {"none"}:
        yield (
            next(where for where in encoded if where.split("=")[0].endswith(".down")),
            "with scaling.statistic=displacement clients derive D from models and D as the server has them",
            "set sending.parameters.down=none and sending.preconditioner.down=none, or scaling.statistic=gradient",
        )


def _attack(config: Config) -> Iterator[Problem]:
    name, engine = config.attack.name, config.engine.name
    if name != "none" and config.client.name == "custom":
        yield (
            f"attack={name}",
            "client=custom does what its own code says",
            "set attack=none, or choose client=steps",
        )
    if name in COLLUDING and engine != "in_process":
        yield (
            f"attack={name}",
            f"its clients need what the honest ones of the round have computed, which engine={engine} tells nobody",
            "set engine=in_process, or attack to one of sign_flip, gaussian, label_flip",
        )
    elif name != "none" and engine == "superlink" and config.num_clients is None:
        yield (
            "num_clients=null",
            f"attack={name} draws the hostile clients of all, and a device with its own shard cannot count them",
            "set num_clients to their number",
        )


def _privacy(config: Config) -> Iterator[Problem]:
    section, strategy = config.privacy, config.strategy
    if isinstance(section, NoPrivacy):
        if isinstance(strategy, FlowerStrategy) and config.sampling == "poisson":
            yield (
                "sampling=poisson",
                "a strategy of Flower samples clients in its own way",
                "set sampling=fixed and strategy.fraction_train, or choose another strategy",
            )
        return
    where = f"privacy={section.name}"
    if isinstance(strategy, FlowerStrategy) or config.client.name == "custom":
        yield (
            where,
            "what somebody else's strategy or ClientApp makes of a client's data has no bound that is known here",
            "wrap strategy._target_ in one of Flower's DifferentialPrivacy strategies, or choose one of this project",
        )
        return
    if strategy.weighting != "uniform":
        yield (
            f"strategy.weighting={strategy.weighting}",
            f"with {where} no client may weigh more than another, nor tell how many examples it has",
            "set strategy.weighting=uniform",
        )
    if config.client.local_steps is None:
        yield (
            f"client.local_epochs={config.client.local_epochs}",
            f"with {where} the number of steps may not tell how many examples a client has",
            "choose client=steps and set client.local_steps",
        )
    if config.diagnostics != "none":
        yield (
            f"diagnostics={config.diagnostics}",
            f"with {where} nothing is computed of single clients' vectors",
            "set diagnostics=none",
        )
    unbounded = [name for name, bound in section.clip.model_dump().items() if bound is None]
    if unbounded and (section.noise_multiplier > 0 or section.target_epsilon is not None):
        yield (
            f"privacy.clip.{unbounded[0]}=null",
            "no noise hides a vector of any length",
            f"set privacy.clip.{unbounded[0]} to a number, or privacy.noise_multiplier=0 for no privacy",
        )
    if section.noise_source == "seed" and config.engine.name == "superlink":
        yield (
            "privacy.noise_source=seed",
            "the seed is in the configuration, which every device gets and can take the noise away with",
            "set privacy.noise_source=auto or system",
        )
    if section.name == "local":
        if config.on_too_few == "wait":
            yield (
                "on_too_few=wait",
                f"with {where} a client that is asked again loses more privacy than it is charged",
                "set on_too_few to skip or stop",
            )
        return
    if strategy.combine.rule not in ("mean", "normalised"):
        yield (
            f"strategy.combine.rule={strategy.combine.rule}",
            f"{where} needs a mean: of other combinations no bound on one client's influence is known",
            "set strategy.combine.rule=mean; privacy.clip.parameters bounds each client's displacement",
        )
    scaling = config.scaling
    if scaling.combine == "mean_of_squares" and scaling.scope == "global" and scaling.rule != "identity":
        yield (
            "scaling.combine=mean_of_squares",
            f"{where} adds noise to the mean of the statistics, of which no mean of squares can be told",
            "set scaling.combine=square_of_mean",
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
