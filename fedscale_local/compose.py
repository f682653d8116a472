"""From overrides on the command line to plain values: the only place that asks Hydra.

Overrides are Hydra's. Two things are made easier: a key that is not there yet needs no leading plus (the
schema knows which may be there), and `model._target_=...` or `strategy._target_=...` chooses its file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedscale_local.config import Config, from_container
from fedscale_local.config_messages import choice, show
from fedscale_local.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[1] / "conf"
"""The package conf beside this one, wherever both are installed."""

_BY_TARGET = {"model": "custom", "strategy": "flower"}
_ASSIGNMENT = re.compile(r"^([+~]{0,2})([A-Za-z_][\w./]*(?:@[\w.:]+)?)(=.*)?$", re.DOTALL)


def groups() -> dict[str, dict[str, str]]:
    """group -> choice -> its one-line description, the first comment of its file. Needs no Hydra."""
    found: dict[str, dict[str, str]] = {}
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        files = sorted(folder.glob("*.yaml"))
        if files:
            found[folder.name] = {file.stem: _description(file) for file in files}
    return found


def _description(file: Path) -> str:
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
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    prepared = prepare(overrides)
    try:
        with hydra.initialize_config_dir(str(FOLDER), version_base="1.3"):
            composed = hydra.compose("config", prepared)
        container = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _refusal(error, overrides) from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def prepare(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra gets them: any key may be new, a group may be chosen with or without plus."""
    known = groups()
    chosen = {match[2] for match in map(_ASSIGNMENT.match, overrides) if match}
    implied = [
        f"{group}={name}"
        for group, name in _BY_TARGET.items()
        if f"{group}._target_" in chosen and group not in chosen
    ]
    return implied + [_prepared(override, known) for override in overrides]


def _prepared(override: str, known: dict[str, dict[str, str]]) -> str:
    match = _ASSIGNMENT.match(override)
    if not match or match[1] == "~" or match[3] is None or match[2].startswith("hydra"):
        return override
    is_group = match[2].partition("@")[0] in known
    return f"{match[2]}{match[3]}" if is_group and match[1] != "++" else f"++{match[2]}{match[3]}"


def _refusal(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Hydra's complaint as one of ours: which override, what was expected, what to do."""
    for where, expectation, remedy in _explained(overrides):
        return ConfigError(where, expectation, remedy)
    where = getattr(error, "full_key", None) or show(" ".join(overrides)) or "conf"
    reason = str(getattr(error, "msg", None) or error).splitlines()[0].rstrip(".")
    return ConfigError(where, reason[:1].lower() + reason[1:], "mend or leave out that override")


def _explained(overrides: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Overrides that cannot be right, whichever way Hydra words it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    known = groups()
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parsed = parser.parse_override(override)
        except HydraException:
            yield (
                f"override {show(override)!r}",
                "expected KEY=VALUE or GROUP=CHOICE",
                "write it so, with quotes around values that hold spaces, commas, brackets or equals signs",
            )
            continue
        group, value = parsed.key_or_group, parsed.value()
        if parsed.is_sweep_override():
            yield (
                show(override),
                "one run takes one value for each key",
                "add -m to run them all, or quote the value: KEY='\"a,b\"'",
            )
        elif group in known and str(value) not in known[group]:
            yield choice(group, value, list(known[group]))
        elif parsed.is_delete():
            yield (
                show(override),
                "every key is needed",
                "leave it out, or set it to null where null is allowed",
            )
