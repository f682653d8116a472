"""From overrides on the command line to plain values, one run's or a sweep's: the only place that asks Hydra.

Overrides are Hydra's. Two things are made easier: a key that is not there yet needs no leading plus (the
schema knows which may be there), and `model._target_=...` or `strategy._target_=...` chooses its file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fedscale_local.config import Config, from_container
from fedscale_local.config_messages import choice, show
from fedscale_local.decisive import FREE
from fedscale_local.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[1] / "conf"
"""The package conf beside this one, wherever both are installed."""

_BY_TARGET = {
    "client": ("client=custom", "strategy=flower"),
    "model": ("model=custom",),
    "strategy": ("strategy=flower",),
}
_ASSIGNMENT = re.compile(r"^(\+\+|\+|~)?([A-Za-z_][\w./-]*(?:@[\w.:]+)?)(=.*)?$", re.DOTALL)
_CONTENTS = re.compile(r"^  - (\w+): (\w+) *# *(.*)$", re.MULTILINE)


class Group(NamedTuple):
    """One line of conf/config.yaml's table of contents, and the files that may be chosen."""

    description: str
    default: str
    choices: dict[str, str]
    """Name of the choice -> the first comment of its file."""


def groups() -> dict[str, Group]:
    """The groups of conf/ in the order of its table of contents, read without Hydra."""
    contents = (FOLDER / "config.yaml").read_text(encoding="utf-8")
    return {
        name: Group(
            description, default, {f.stem: _first_comment(f) for f in sorted((FOLDER / name).glob("*.yaml"))}
        )
        for name, default, description in _CONTENTS.findall(contents)
    }


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = (line.lstrip("# ") for line in lines if line.startswith("#"))
    return next((line for line in comments if not line.startswith("@package")), "")


def config(overrides: Sequence[str] = ()) -> Config:
    """The checked configuration of these overrides; raises ConfigError."""
    return from_container(compose(overrides))


def again(container: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """The checked configuration of a run that is carried on: as it was saved, but for these overrides.

    Raises ConfigError for an override of anything that decides the result.
    """
    for override in overrides:
        if key_of(override).split(".")[0] not in FREE or key_of(override) == "run_dir":
            raise ConfigError(
                show(override),
                "it would change the result, and a run that is carried on ends as if it had never stopped",
                f"leave it out, or begin another run; resume takes {', '.join(f for f in FREE if f != 'run_dir')}",
            )
    changed = copy.deepcopy(dict(container))
    given = [key_of(override) for override in overrides]
    saved = [f"{group}={container[group]['name']}" for group in ("engine", "tracking") if group not in given]
    composed = compose([*saved, *overrides]) if overrides else {}
    for path in sorted(given, key=len):  # a group's choice before a key of it
        section, source, *keys = changed, composed, *path.split(".")
        for key in keys[:-1]:
            section, source = section[key], source[key]
        section[keys[-1]] = source[keys[-1]]
    return from_container(changed)


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """conf/ with these overrides, resolved, as plain dicts, lists and scalars; unchecked.

    Raises:
        ConfigError: an override that Hydra cannot read, or a choice that is not there.
    """
    from omegaconf import OmegaConf

    for override in overrides:
        if is_of_tune(override):
            raise ConfigError(
                show(override), "a run is not tuned", "leave it out, or use fedscale-local tune"
            )
    with refusing(overrides):
        composed = _composed(*prepare(overrides))
        keys = [key for key in composed if key not in ("hydra", "tune")]
        container = OmegaConf.to_container(OmegaConf.masked_copy(composed, keys), resolve=True)
    assert isinstance(container, dict)
    if container.pop("study") is not None:
        raise ConfigError(
            next((o for o in overrides if key_of(o) == "experiment"), "study"),
            "it is a study: many runs, which are tuned and compared",
            "run the command that its file begins with, or add study=null for one run in its setting",
        )
    return {str(key): value for key, value in container.items()}


def study(overrides: Sequence[str]) -> dict[str, Any]:
    """The section `study` of these overrides, unchecked; raises ConfigError where their experiment is none."""
    from omegaconf import OmegaConf

    with refusing(overrides):
        found: Any = OmegaConf.to_container(OmegaConf.masked_copy(_composed(*prepare(overrides)), "study"))
    if not isinstance(found["study"], dict):
        expectation = "expected an experiment that is a study"
        raise ConfigError(show(" ".join(overrides)), expectation, "name one whose file has a section study")
    return dict(found["study"])


@lru_cache(maxsize=1)
def _composed(*prepared: str) -> Any:
    """Hydra's own section is in it. Whether a run is a sweep is asked before it is composed: it is composed once."""
    import hydra

    with hydra.initialize_config_dir(str(FOLDER), version_base="1.3"):
        return hydra.compose("config", list(prepared), return_hydra_config=True)


class Sweep(NamedTuple):
    """The runs of a sweep, one list of overrides each, and the directory that will hold theirs.

    shared: the overrides that all have in common; Hydra's own, as hydra/launcher=joblib, are among them.
    """

    shared: list[str]
    jobs: list[list[str]]
    folder: str

    @property
    def swept(self) -> list[list[str]]:
        """Of each run the overrides that not all have, without plus."""
        common = set.intersection(*map(set, self.jobs))
        return [[override.lstrip("+") for override in job if override not in common] for job in self.jobs]


def sweep(overrides: Sequence[str]) -> Sweep:
    """What a sweep over these overrides would run, those included that an experiment names for itself.

    An experiment's own sweep stands in hydra.sweeper.params; an override of the same key replaces it. Without
    hydra.sweep.dir (auto) the directory has its name from the overrides: the same command has the same one.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with refusing(overrides, sweeping=True):
        single, keys, composed = taken_apart(overrides)
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(keys), None)
        return Sweep(single, jobs, folder_of(keys, single, composed.hydra.sweep.dir))


def taken_apart(overrides: Sequence[str]) -> tuple[list[str], list[str], Any]:
    """The overrides with one value; all but Hydra's own, with the experiment's sweep; what the first compose."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    prepared = prepare(overrides)
    parsed = OverridesParser.create().parse_overrides(prepared)
    single = [o for o, p in zip(prepared, parsed, strict=True) if not p.is_sweep_override()]
    composed = _composed(*single)
    given = {key_of(override) for override in prepared}
    own = [f"{key}={value}" for key, value in (composed.hydra.sweeper.params or {}).items()]
    own = prepare([override for override in own if key_of(override) not in given])
    return single, [o for o in own + prepared if not o.startswith("hydra")], composed


def folder_of(keys: Sequence[str], single: Sequence[str], chosen: str) -> str:
    """The chosen one; auto: sweeps/<experiment or swept keys>-<sum of the overrides>"""
    if chosen != "auto":
        return str(chosen)
    experiment = next((o.partition("=")[2] for o in single if key_of(o) == "experiment"), "")
    swept = [key_of(o) for o in keys if o not in single]
    readable = re.sub(r"[^\w.+-]", "_", experiment or "+".join(swept) or "run")[:80]
    return f"sweeps/{readable}-{hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:8]}"


def is_of_tune(override: str) -> bool:
    """Is it for the command `tune` alone?"""
    return key_of(override).split(".")[0] == "tune"


def sweeps_by_itself(overrides: Sequence[str]) -> bool:
    """Does the chosen experiment ask for a sweep (hydra.mode: MULTIRUN)?"""
    with refusing(overrides):
        return str(_composed(*prepare(overrides)).hydra.mode).endswith("MULTIRUN")


def configs(jobs: Sequence[Sequence[str]]) -> list[Config]:
    """The checked configuration of each job. Seeds are filled in: composing takes long, and no other key reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser, known, found = OverridesParser.create(), {}, []
    for job in jobs:
        seed = next((override for override in job if key_of(override) == "seed"), None)
        others = tuple(override for override in job if key_of(override) != "seed")
        if others not in known:
            known[others] = compose(others)
        with refusing(job):
            given = {} if seed is None else {"seed": parser.parse_override(seed).value()}
        found.append(from_container(known[others] | given))
    return found


Attempt = Callable[[int, int | None, int | None], None]


def launch(planned: Sweep, numbers: Sequence[int], attempt: Attempt) -> dict[int, str]:
    """Hydra's configured launcher calls attempt(number, sweep, cores) for each of these jobs, wherever it runs them.

    sweep: this process, or None where jobs may run on other machines. cores: a job's share of this machine, None for
    all of it. What is returned: which jobs on a cluster came to no end, as it has ended them, and how.
    """
    import hydra
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode
    from omegaconf import DictConfig

    places = [f"hydra.sweep.dir='{planned.folder}'", "hydra.sweep.subdir=.", "hydra.sweeper.params=null"]
    with hydra.initialize_config_dir(str(FOLDER), version_base="1.3"):
        inner = GlobalHydra.instance().hydra
        assert inner is not None
        with refusing(planned.shared):
            config = inner.compose_config("config", [*planned.shared, *places], RunMode.MULTIRUN)
        at_once = _at_once(config.hydra.launcher, len(numbers))
        sweep = None if at_once is None else os.getpid()
        cores = None if at_once in (None, 1) else max(1, len(os.sched_getaffinity(0)) // at_once)

        folder = os.getcwd()

        def task(composed: DictConfig) -> None:
            os.chdir(folder)  # joblib's processes may be those of an earlier sweep, which was elsewhere
            attempt(int(composed.cell), sweep, cores)

        context = HydraContext(inner.config_loader, Callbacks(config))
        with refusing(planned.shared):
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=task, config=config
            )
        with _told_of_lost_jobs(config.hydra.launcher):
            results = launcher.launch([[f"+cell={number}"] for number in numbers], initial_job_idx=0)
        ended: dict[int, Any] = dict(zip(numbers, results, strict=True))
        for done in ended.values():
            _ = isinstance(done, _Lost) or done.return_value  # raises what the job raised
    return {number: done.reason for number, done in ended.items() if isinstance(done, _Lost)}


class _Lost(NamedTuple):
    """In the place of a job's result."""

    reason: str


@contextmanager
def _told_of_lost_jobs(launcher: Any) -> Iterator[None]:
    """Submitit's launchers raise at the first job that is lost, before the others are over; here they go on."""
    if "submitit" not in launcher._target_:
        yield
        return
    from submitit.core import core
    from submitit.core.utils import FailedJobError, UncompletedJobError

    job_class: Any = core.Job
    results = job_class.results

    def told(job: Any) -> Any:
        try:
            return results(job)
        except (FailedJobError, UncompletedJobError):
            words = f"its job {job.job_id} came to no end ({job.state})"
            return [_Lost(f"{words}; what it printed, if anything, is in {job.paths.folder}")]

    job_class.results = told
    try:
        yield
    finally:
        job_class.results = results


def _at_once(launcher: Any, num_jobs: int) -> int | None:
    """How many jobs share this machine; None where they may have others."""
    if launcher._target_.endswith("JoblibLauncher"):
        from joblib import effective_n_jobs

        return min(effective_n_jobs(launcher.n_jobs), num_jobs)
    if launcher._target_.endswith("submitit_launcher.LocalLauncher"):
        return num_jobs
    return 1 if launcher._target_.endswith("BasicLauncher") else None


def prepare(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra gets them: any key may be new, a group may be chosen with or without plus."""
    chosen, known = {key_of(override) for override in overrides}, set(groups())
    implied = dict.fromkeys(
        choice
        for group, choices in _BY_TARGET.items()
        if f"{group}._target_" in chosen
        for choice in choices
        if choice.partition("=")[0] not in chosen
    )
    return [*implied, *(_prepared(override, known) for override in overrides)]


def key_of(override: str) -> str:
    match = _ASSIGNMENT.match(override)
    return match[2] if match else override


def _prepared(override: str, known: set[str]) -> str:
    match = _ASSIGNMENT.match(override)
    if not match or match[1] == "~" or match[3] is None or match[2].startswith("hydra"):
        return override
    is_group = match[2].partition("@")[0] in known
    return f"{match[2]}{match[3]}" if is_group and match[1] != "++" else f"++{match[2]}{match[3]}"


@contextmanager
def refusing(overrides: Sequence[str], sweeping: bool = False) -> Iterator[None]:
    """Hydra's complaints as ours: which override, what was expected, what to do."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        for where, expectation, remedy in _explained(overrides, sweeping):
            raise ConfigError(where, expectation, remedy) from None
        where = getattr(error, "full_key", None) or show(" ".join(overrides)) or "conf"
        reason = str(getattr(error, "msg", None) or error).splitlines()[0].rstrip(".")
        raise ConfigError(where, reason[:1].lower() + reason[1:], "mend or leave out that override") from None


def _explained(overrides: Sequence[str], sweeping: bool) -> Iterator[tuple[str, str, str]]:
    """Overrides that cannot be right, whichever way Hydra words it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    known = {name: list(group.choices) for name, group in groups().items()}
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parsed = parser.parse_override(override)
        except HydraException:
            parsed = None
        if parsed is None or not parsed.key_or_group:
            yield (
                f"override {show(override)!r}",
                "expected KEY=VALUE or GROUP=CHOICE",
                "write it so, with quotes around values that hold spaces, commas, brackets or equals signs",
            )
        elif parsed.is_sweep_override() and not sweeping:
            yield (
                show(override),
                "one run takes one value for each key",
                "add -m to run them all, or quote the value: KEY='\"a,b\"'",
            )
        elif parsed.key_or_group in known and not parsed.is_delete():
            values = parsed.sweep_string_iterator() if parsed.is_sweep_override() else [parsed.value()]
            for value in values:
                if str(value) not in known[parsed.key_or_group]:
                    yield choice(parsed.key_or_group, value, known[parsed.key_or_group])
        elif parsed.is_delete():
            yield (
                show(override),
                "every key is needed",
                "leave it out, or set it to null where null is allowed",
            )
