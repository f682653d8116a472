"""What pydantic finds wrong, in the words of this project: key, value, expectation, remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fedscale_local.errors import ConfigError

CHOOSERS = ("server", "rule", "name", "scheme")
"""The keys whose value decides which class reads a group."""


class Is(NamedTuple):
    """What a key holds, in words: "a whole number", "1 or more"; and why, where the reason says more."""

    what: str
    range: str = ""
    why: str = ""


def refusal(schema: type[BaseModel], container: Mapping[str, Any], error: ValidationError) -> ConfigError:
    """The first problem in full, and the keys of the others."""
    problems: dict[str, tuple[str, str, str]] = {}
    for detail in error.errors(include_url=False):
        place = _find(schema, detail["loc"])
        problems.setdefault(place.key, _words(schema, container, place, detail))
    (where, expectation, remedy), *_ = problems.values()
    others = list(problems)[1:]
    if others:
        remedy += f" ({len(others)} more to mend: {', '.join(others)})"
    return ConfigError(where, expectation, remedy)


class _Place(NamedTuple):
    """Where in the schema an error is: its key, the class that reads the group, the field if known."""

    keys: tuple[str, ...]
    section: type[BaseModel]
    field: FieldInfo | None
    siblings: Sequence[type[BaseModel]]
    """All classes that might have read the group."""

    @property
    def key(self) -> str:
        return ".".join(self.keys)


def _find(schema: type[BaseModel], loc: Sequence[int | str]) -> _Place:
    """Follow pydantic's location, which names the chosen class inside unions, down to a key of the user."""
    section, keys, parts = schema, [], [str(part) for part in loc]
    siblings: Sequence[type[BaseModel]] = [schema]
    while True:
        keys.append(parts.pop(0))
        field = _fields(section).get(keys[-1])
        classes = _classes(field.annotation) if field else []
        if not classes or not parts:
            return _Place(tuple(keys), section, field, siblings)
        section = next(c for c in classes if parts[0] in _choices(c)) if len(classes) > 1 else classes[0]
        siblings = classes
        if len(classes) > 1:
            parts.pop(0)
            if not parts:
                return _Place(tuple(keys), section, field, siblings)


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _classes(annotation: Any) -> list[type[BaseModel]]:
    """The classes that may read a group; none for a plain key."""
    if get_origin(annotation) is Annotated:
        return _classes(get_args(annotation)[0])
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if get_origin(annotation) is Literal:
        return []
    return list(dict.fromkeys(c for member in get_args(annotation) for c in _classes(member)))


def _choices(section: type[BaseModel]) -> tuple[str, ...]:
    """The values of the choosing key that lead to this class."""
    for key in CHOOSERS:
        if key in section.model_fields:
            literal = section.model_fields[key].annotation
            return get_args(literal) or ("torchvision",)
    return ()


def _all_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in _fields(schema).items():
        classes = _classes(field.annotation)
        for section in classes:
            yield from _all_keys(section, f"{prefix}{name}.")
        if not classes:
            yield prefix + name


def _words(
    schema: type[BaseModel], container: Mapping[str, Any], place: _Place, detail: Any
) -> tuple[str, str, str]:
    """(where, expectation, remedy) of one problem."""
    key, kind = place.key, detail["type"]
    if kind.startswith("union_tag"):
        classes = _classes(place.field.annotation) if place.field else []
        chooser = next(k for k in CHOOSERS if k in classes[0].model_fields)
        chosen = _value(container, (*place.keys, chooser))
        told = [c for section in classes if chooser in section.model_fields for c in _choices(section)]
        return choice(f"{key}.{chooser}", chosen, told)
    value = _value(container, place.keys)
    where = f"{key}={show(value)}"
    if kind == "extra_forbidden":
        return where, *_unknown(schema, place)
    assert place.field is not None
    if get_origin(place.field.annotation) is Literal:
        return choice(key, value, get_args(place.field.annotation), missing=kind == "missing")
    if _classes(place.field.annotation):
        return where, "expected a group of keys", f"set keys in it, as {next(_all_keys(place.section))}"
    words = next((m for m in place.field.metadata if isinstance(m, Is)), Is("another value"))
    expected = ", ".join(filter(None, (words.what, words.range)))
    if kind == "missing":
        return key, f"has no value, expected {expected}", f"set {key} to {words.range or words.what}"
    if words.why and kind in ("greater_than_equal", "greater_than"):
        return where, words.why, f"set {key} to {words.range}"
    return where, f"expected {expected}", f"set {key} to {words.range or words.what}"


def choice(key: str, value: Any, choices: Sequence[str], missing: bool = False) -> tuple[str, str, str]:
    """(where, expectation, remedy) for a value that is none of the choices."""
    listed = ", ".join(dict.fromkeys(choices))
    return (
        key if missing else f"{key}={show(value)}",
        f"expected one of {listed}",
        guess(show(value), choices, f"set {key} to one of them", f"{key}="),
    )


def guess(word: str, candidates: Sequence[str], otherwise: str, prefix: str = "") -> str:
    """ "did you mean x?", said as a remedy, where a candidate is close to the word."""
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f"did you mean {prefix}{close[0]}? If not, {otherwise}" if close else otherwise


def _unknown(schema: type[BaseModel], place: _Place) -> tuple[str, str]:
    """Expectation and remedy for a key that is not there."""
    *group, last = place.keys
    here = [".".join((*group, name)) for name in _fields(place.section)]
    everywhere = list(dict.fromkeys(_all_keys(schema)))
    chosen = [name for name in everywhere if name == place.key]
    if chosen:
        owners = [c for c in place.siblings if last in _fields(c)] or [place.section]
        takers = dict.fromkeys(choice for owner in owners for choice in _choices(owner))
        takes = ", ".join(k for k in here if k.rpartition(".")[2] not in CHOOSERS) or "no keys"
        of, chooser = ".".join(group), next(k for k in CHOOSERS if k in place.section.model_fields)
        chosen_by = f"{of}.{chooser}" if chooser in ("server", "rule") else of
        return (
            f"this choice of {of} has no such key, it takes {takes}",
            f"leave it out, or choose {chosen_by}={' or '.join(takers)}",
        )
    same = [name for name in everywhere if name.rpartition(".")[2] == last]
    close = difflib.get_close_matches(place.key, here, n=1, cutoff=0.8) or same
    close = close or difflib.get_close_matches(place.key, everywhere, n=1, cutoff=0.6)
    lasts = {name.rpartition(".")[2]: name for name in everywhere}
    close = close or [lasts[name] for name in difflib.get_close_matches(last, lasts, n=1, cutoff=0.7)]
    if close:
        return "there is no such key", f"did you mean {close[0]}? If not, leave it out"
    return "there is no such key", f"leave it out, or take one of {', '.join(here)}"


def _value(container: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        container = container.get(key) if isinstance(container, Mapping) else None
    return container


def show(value: Any) -> str:
    """A value as it is written on the command line, cut where it is long."""
    names = {None: "null", True: "true", False: "false"}
    text = names[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
