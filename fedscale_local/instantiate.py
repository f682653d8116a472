"""Objects by their dotted name: what hydra.utils.instantiate does, for machines that have no Hydra.

`_target_: my_package.module.Name` and the keys beside it mean `Name(**keys)`. Nested mappings with a
`_target_` of their own are built first, so a Flower strategy can wrap another.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from fedscale_local.errors import RAISED, ConfigError, InputError

TARGET = "_target_"


def locate(dotted: str, where: str = TARGET) -> Any:
    """The object that a dotted name ("package.module.Name", or "package.module:Name") stands for.

    `where` is the key of the configuration that an error names. ConfigError if there is no such object, or if
    the import of its module raises.

    >>> locate("fractions.Fraction.from_float")(0.5)
    Fraction(1, 2)
    >>> locate("collections.Ordered")
    Traceback (most recent call last):
    fedscale_local.errors.ConfigError: _target_=collections.Ordered: the module collections has no Ordered; \
correct the name.
    """
    shown = f"{where}={dotted}"
    parts = dotted.replace(":", ".").split(".") if isinstance(dotted, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ConfigError(
            shown,
            "expected the dotted name of an object in a module",
            "write it as my_package.my_module.Name",
        )
    found = _imported(parts[0], shown)
    if found is None:
        raise ConfigError(
            shown,
            f"there is no module {parts[0]}",
            "correct the name, install the package, or put its folder on PYTHONPATH",
        )
    for count, name in enumerate(parts[1:], start=1):
        owner, kind = ".".join(parts[:count]), "module" if isinstance(found, ModuleType) else "object"
        if not hasattr(found, name) and (kind == "object" or _imported(f"{owner}.{name}", shown) is None):
            raise ConfigError(shown, f"the {kind} {owner} has no {name}", "correct the name")
        found = getattr(found, name)
    return found


def _imported(name: str, shown: str) -> ModuleType | None:
    """The module, or None if there is none; ConfigError if there is one and importing it raises."""
    try:
        return importlib.import_module(name)
    except RAISED as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return None
        raise ConfigError(shown, f"importing {name} raised {_told(error)}", "mend that import") from error


def instantiate(target: str, kwargs: Mapping[str, Any], where: str = "config") -> Any:
    """`locate(target)(**kwargs)`; mappings inside `kwargs` that have a `_target_` are instantiated first.

    `where` is the part of the configuration (such as "model") that an error names. ConfigError if the target
    is not found or not callable, if the keywords do not fit its signature, or if the call raises.

    >>> instantiate("fractions.Fraction", {"numerator": 1, "denominator": 3})
    Fraction(1, 3)
    >>> instantiate("builtins.dict", {"half": {"_target_": "fractions.Fraction", "numerator": "1/2"}})
    {'half': Fraction(1, 2)}
    """
    key = f"{where}.{TARGET}"
    shown = f"{key}={target}"
    call = locate(target, key)
    if not callable(call):
        raise ConfigError(
            shown,
            f"expected a class or a function, found a {type(call).__name__}",
            "name something that can be called",
        )
    arguments = {name: _build_nested(value, f"{where}.{name}") for name, value in kwargs.items()}
    try:
        inspect.signature(call).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            shown,
            f"the keys beside it do not fit {inspect.signature(call)}: {error}",
            f"change the keys of {where}",
        ) from error
    except ValueError:
        pass  # a few built-in callables have no signature to read
    try:
        return call(**arguments)
    except InputError:
        raise
    except RAISED as error:
        raise ConfigError(
            shown, f"calling it raised {_told(error)}", f"change the keys of {where}"
        ) from error


def _build_nested(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        built = {key: _build_nested(inner, f"{where}.{key}") for key, inner in value.items() if key != TARGET}
        return instantiate(value[TARGET], built, where) if TARGET in value else built
    if isinstance(value, list | tuple):
        return [_build_nested(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    return value


def _told(error: BaseException) -> str:
    """One line: the type and the first line of the text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
