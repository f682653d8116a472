"""The files of the user's code that a run executes: what its configuration names, and what that imports in turn.

They are found by reading import statements, those inside of functions included; nothing is imported for it. Followed
are modules of folders on Python's path, and those of the target's own package wherever it is installed. Not followed
are libraries, whose versions stand in the manifest, and what no import statement names (importlib, files of data).
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path

LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
INSTALLED = ("site-packages", "dist-packages")


def files_of(module: str, without: Sequence[str] = ()) -> list[Path]:
    """The module's file and those of all modules that it imports, directly or through others, by their names.

    without: top-level packages that are known otherwise.
    """
    specs: dict[str, ModuleSpec | None] = {}
    own, found, pending = _top(module), dict[str, Path](), [module]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if not name or name in seen or _top(name) in without:
            continue
        seen.add(name)
        pending.append(name.rpartition(".")[0])  # a module's packages are executed before it
        spec = _spec(name, specs)
        if spec is None or not spec.has_location:
            continue
        file = Path(str(spec.origin))
        if _top(name) == own or not _is_library(file):
            found[name] = file
            pending += _imported(name, file, is_package=spec.submodule_search_locations is not None)
    return [found[name] for name in sorted(found)]


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_library(file: Path) -> bool:
    file = file.resolve()
    return any(part in INSTALLED for part in file.parts) or any(map(file.is_relative_to, LIBRARIES))


def _spec(name: str, known: dict[str, ModuleSpec | None]) -> ModuleSpec | None:
    """Where a module is, as the import system finds it, which for that alone would import its packages."""
    if name not in known:
        known[name] = getattr(sys.modules.get(name), "__spec__", None)
        package = name.rpartition(".")[0]
        places = _places(package, known) if package else None
        if known[name] is None and places != []:
            with suppress(ImportError, KeyError):  # KeyError: a folder without a file in what is not imported
                specs = (finder.find_spec(name, places) for finder in sys.meta_path)
                known[name] = next(filter(None, specs), None)
    return known[name]


def _places(package: str, known: dict[str, ModuleSpec | None]) -> list[str]:
    """The folders in which a package has its modules; none for what is no package."""
    spec = _spec(package, known)
    if spec is not None and spec.has_location:
        return list(spec.submodule_search_locations or ())
    above, _, name = package.rpartition(
        "."
    )  # without a file of its own: wherever there is a folder of that name
    places = _places(above, known) if above else sys.path
    return [str(Path(place, name)) for place in places if Path(place, name).is_dir()]


def _imported(name: str, file: Path, is_package: bool) -> Iterator[str]:
    """The names of all that may be modules in the import statements of a file; none of one that cannot be read."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return
    package = name.split(".") if is_package else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)
