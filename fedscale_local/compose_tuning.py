"""From overrides on the command line to what is tuned: methods, the space, the seeds of each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedscale_local import compose
from fedscale_local.config_messages import show
from fedscale_local.errors import ConfigError


class Dimension(NamedTuple):
    """What is searched for one key: one of `choices`, as text; without any, a number from low to high.

    key: as the override has it, with its plus. step: the distance of the numbers that may be drawn; None: any.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    is_log: bool = False
    is_int: bool = False

    @property
    def name(self) -> str:
        return self.key.lstrip("+")


class Tuning(NamedTuple):
    """What is tuned: methods, each a list of overrides, over one space, each trial under all seeds.

    settings: the section `tune`, unchecked. apart: of each method the overrides that tell it from others, without plus.
    shared, folder: as a sweep has them.
    """

    settings: dict[str, Any]
    shared: list[str]
    methods: list[list[str]]
    apart: list[list[str]]
    seeds: list[str]
    space: list[Dimension]
    folder: str

    def jobs(self, method: int, values: Mapping[str, str]) -> list[list[str]]:
        """The overrides of each run of a trial; values: of each dimension, by its key."""
        tuned = [f"{key}={value}" for key, value in values.items()]
        return [[*self.methods[method], *tuned, f"++seed={seed}"] for seed in self.seeds]


def tuning(overrides: Sequence[str]) -> Tuning:
    """Overrides as `tune` reads them: KEY=A,B are methods to compare, the other sweeps of Hydra's grammar the space.

    seed=... may be any sweep: the seeds of each trial. What an experiment sweeps counts as well. Raises ConfigError.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep
    from omegaconf import OmegaConf

    methods: list[str] = []
    space: list[Dimension] = []
    with compose.refusing(overrides, sweeping=True):
        parser = OverridesParser.create()
        single, keys, composed = compose.taken_apart(overrides)
        keys = [key for key in keys if not compose.is_of_tune(key)]
        seeds = [str(composed.seed)]
        for parsed, override in zip(parser.parse_overrides(keys), keys, strict=True):
            sweep = parsed.value() if parsed.is_sweep_override() else None
            if compose.key_of(override) == "seed":
                seeds = list(parsed.sweep_string_iterator()) if sweep else [str(parsed.value())]
            elif sweep is None or (isinstance(sweep, ChoiceSweep) and sweep.simple_form):
                methods.append(override)
            else:
                space.append(_dimension(parsed, override))
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(methods), None)
        folder = compose.folder_of(keys, single, composed.hydra.sweep.dir)
        settings: Any = OmegaConf.to_container(composed.tune, resolve=True)
    if not space:
        raise ConfigError(
            show(" ".join(overrides)) or "tune",
            "nothing is to be tuned",
            "give a key a space, as 'client.step_size=tag(log, interval(0.001, 1))' or 'scaling.beta=choice(0.9,0.99)'",
        )
    apart = compose.Sweep([], jobs, "").swept
    if len(jobs) == 1:  # by itself here, but there may be others in the same directory
        apart = [[override for override in jobs[0] if compose.key_of(override) in ("strategy", "scaling")]]
    return Tuning(settings, single, jobs, apart, seeds, space, folder)


def _dimension(parsed: Any, override: str) -> Dimension:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep

    key, sweep = override.partition("=")[0], parsed.value()
    if not isinstance(sweep, IntervalSweep):
        sweep.shuffle = False  # in which order they are tried is not for chance
    if not isinstance(sweep, IntervalSweep | RangeSweep):
        return Dimension(key, choices=tuple(parsed.sweep_string_iterator()))
    low, high, step = sweep.start, getattr(sweep, "end", None), None
    if isinstance(sweep, RangeSweep):
        values = sorted(float(value) for value in parsed.sweep_string_iterator())
        low, high, step = values[0], values[-1], abs(sweep.step)
    assert low is not None and high is not None
    is_log = "log" in sweep.tags
    if not low < high or (is_log and (low <= 0 or step is not None)):
        raise ConfigError(
            show(override.lstrip("+")),
            "a space goes upwards, and on a logarithmic scale from above 0 and without steps",
            "write it as interval(LOW, HIGH), tag(log, interval(LOW, HIGH)) or range(LOW, HIGH, STEP)",
        )
    is_int = isinstance(sweep.start, int) and isinstance(step or 1, int)
    return Dimension(key, (), float(low), float(high), step, is_log, is_int)
