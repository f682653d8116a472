"""From overrides on the command line to plain values, one run's or a sweep's: the only place that asks Hydra.

Overrides are Hydra's. Two things are made easier: a key that is not there yet needs no leading plus (the
schema knows which may be there), and `model._target_=...` or `strategy._target_=...` chooses its file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedscale_local.config import Config, from_container
from fedscale_local.config_messages import choice, show
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


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """conf/ with these overrides, resolved, as plain dicts, lists and scalars; unchecked.

    Raises:
        ConfigError: an override that Hydra cannot read, or a choice that is not there.
    """
    from omegaconf import OmegaConf

    with _refusing(overrides):
        container = OmegaConf.to_container(_composed(prepare(overrides)), resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _composed(prepared: list[str], with_hydra: bool = False) -> Any:
    import hydra

    with hydra.initialize_config_dir(str(FOLDER), version_base="1.3"):
        return hydra.compose("config", prepared, return_hydra_config=with_hydra)


class Sweep(NamedTuple):
    """The runs of a sweep, one list of overrides each, and the directory that will hold theirs."""

    overrides: list[str]
    jobs: list[list[str]]
    folder: str


def sweep(overrides: Sequence[str]) -> Sweep:
    """What a sweep over these overrides would run, those included that an experiment names for itself.

    An experiment's own sweep stands in hydra.sweeper.params; an override of the same key replaces it.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with _refusing(overrides, sweeping=True):
        parser = OverridesParser.create()
        prepared = prepare(overrides)
        single = [
            o
            for o, p in zip(prepared, parser.parse_overrides(prepared), strict=True)
            if not p.is_sweep_override()
        ]
        hydra = _composed(single, with_hydra=True).hydra
        given = {_key(override) for override in prepared}
        own = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
        own = prepare([override for override in own if _key(override) not in given])
        keys = [o for o in own + prepared if not o.startswith("hydra")]
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(keys), None)
        return Sweep(own + prepared, jobs, str(hydra.sweep.dir))


def sweeps_by_itself(overrides: Sequence[str]) -> bool:
    """Does the chosen experiment ask for a sweep (hydra.mode: MULTIRUN)?"""
    with _refusing(overrides):
        return str(_composed(prepare(overrides), with_hydra=True).hydra.mode).endswith("MULTIRUN")


def launch(planned: Sweep, job: Callable[[dict[str, Any], str], None]) -> None:
    """Hydra's launcher calls job(container, run_dir) for each run of the sweep, in order."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    def task(composed: DictConfig) -> None:
        container = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(container, dict)
        job({str(key): value for key, value in container.items()}, HydraConfig.get().runtime.output_dir)

    arguments = [*planned.overrides, "hydra.sweeper.params=null", f"hydra.sweep.dir='{planned.folder}'"]
    before, sys.argv = sys.argv, ["fedscale-local", "--multirun", *arguments]
    try:
        hydra.main(config_path=str(FOLDER), config_name="config", version_base="1.3")(task)()
    finally:
        sys.argv = before


def prepare(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra gets them: any key may be new, a group may be chosen with or without plus."""
    chosen = {_key(override) for override in overrides}
    implied = dict.fromkeys(
        choice
        for group, choices in _BY_TARGET.items()
        if f"{group}._target_" in chosen
        for choice in choices
        if choice.partition("=")[0] not in chosen
    )
    return [*implied, *(_prepared(override, set(groups())) for override in overrides)]


def _key(override: str) -> str:
    match = _ASSIGNMENT.match(override)
    return match[2] if match else override


def _prepared(override: str, known: set[str]) -> str:
    match = _ASSIGNMENT.match(override)
    if not match or match[1] == "~" or match[3] is None or match[2].startswith("hydra"):
        return override
    is_group = match[2].partition("@")[0] in known
    return f"{match[2]}{match[3]}" if is_group and match[1] != "++" else f"++{match[2]}{match[3]}"


@contextmanager
def _refusing(overrides: Sequence[str], sweeping: bool = False) -> Iterator[None]:
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
