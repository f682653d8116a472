"""Who may import whom, read from the sources of the packages (nothing is imported here).

Each rule is checked over every import statement, those inside functions included.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("fedscale_local", "strategies", "clients")
CORE = {
    f"fedscale_local.{name}"
    for name in ("scaling", "curvature", "client_step", "server_step", "vector", "randomness")
}
CORE |= {f"fedscale_local.{name}" for name in ("local_rule", "server_rule", "diagnostics", "attacks")}
CORE |= {"fedscale_local.codecs" + part for part in ("", ".blocks", ".entries", ".wire")}
# No files, no clock, no environment: what is left of the standard library for pure functions.
PURE = {"__future__", "collections", "dataclasses", "enum", "functools", "hashlib", "itertools", "math"}
PURE |= {"operator", "types", "typing"}
READERS = {"fedscale_local.reports", "fedscale_local.plots", "fedscale_local.run_dir"}
FLOWER_PUBLIC = {"flwr.app", "flwr.serverapp", "flwr.clientapp"}


def sources() -> dict[str, Path]:
    """Module name -> file, for every module of the packages, where the interpreter finds them."""
    found = {}
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, package
        folder = Path(spec.origin).parent
        for path in folder.rglob("*.py"):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()


def imports_of(text: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Every dotted name that the source imports; `from a import b` gives "a" and "a.b".

    >>> list(imports_of("import torch.func\\nfrom ..x import y", "p.q.r"))
    ['torch.func', 'p.x', 'p.x.y']
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - 1 if is_package else node.level
            base = module.split(".")[: len(module.split(".")) - up] if node.level else []
            source = ".".join(base + ([node.module] if node.module else []))
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


IMPORTS = {
    name: set(imports_of(path.read_text(encoding="utf-8"), name, path.name == "__init__.py"))
    for name, path in SOURCES.items()
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def modules(package: str) -> list[str]:
    return sorted(name for name in SOURCES if within(name, package))


def violations(names: list[str], *forbidden: str) -> list[str]:
    """What these modules import of the forbidden packages, in words."""
    imports = [(name, imported) for name in names for imported in sorted(IMPORTS[name])]
    return [f"{name} imports {i}" for name, i in imports if any(within(i, f) for f in forbidden)]


def closure(name: str) -> set[str]:
    """The project's modules that importing this one may run, itself and its packages included."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        parts = todo.pop().split(".")
        for known in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
            if known in SOURCES and known not in seen:
                seen.add(known)
                todo.extend(IMPORTS[known])
    return seen


CORE |= {
    name for name in SOURCES if re.match(r"fedscale_local\.((local|server)_rules\.|robust$|robust\.)", name)
}


def test_the_core_imports_torch_and_itself_only() -> None:
    assert set(SOURCES) >= CORE
    allowed = CORE | PURE | {"torch"}
    for name in sorted(CORE):
        own = allowed | {"numpy"} if name.endswith(".randomness") else allowed
        # `from fedscale_local import vector` names the package and the module: the module is what counts.
        imported = {i for i in IMPORTS[name] if i != "fedscale_local"}
        strange = {i for i in imported if not any(within(i, a) for a in own)}
        assert not strange, f"{name} imports {sorted(strange)}"
    assert set(sys.stdlib_module_names) >= PURE


def test_strategies_and_clients_never_import_each_other() -> None:
    assert not violations(modules("strategies"), "clients")
    assert not violations(modules("clients"), "strategies")


def test_engines_get_the_apps_by_injection() -> None:
    assert not violations(modules("fedscale_local.engines"), "strategies", "clients")


@pytest.mark.parametrize("reader", sorted(READERS))
def test_reports_and_plots_read_run_directories_only(reader: str) -> None:
    assert modules(reader)
    for name in modules(reader):
        assert not violations(sorted(closure(name)), "torch", "torchvision", "flwr", "hydra", "omegaconf")


def test_hydra_is_imported_by_the_command_and_the_composition_alone() -> None:
    asking = {f"fedscale_local.{name}" for name in ("cli", "compose", "compose_tuning")}
    others = sorted(set(SOURCES) - asking)
    assert not violations(others, "hydra", "omegaconf")


def test_private_names_of_flower_are_in_the_adapter_alone() -> None:
    for name in sorted(set(SOURCES) - {"fedscale_local.flower_adapter"}):
        of_flower = {i for i in IMPORTS[name] if within(i, "flwr") and i != "flwr"}
        private = {i for i in of_flower if not any(within(i, public) for public in FLOWER_PUBLIC)}
        assert not private, f"{name} imports {sorted(private)}"
        assert not re.search(r"""[."']_message_id""", SOURCES[name].read_text(encoding="utf-8")), name


def test_torchvision_is_imported_by_its_one_module_alone() -> None:
    assert not violations(sorted(set(SOURCES) - {"fedscale_local._torchvision"}), "torchvision")


def test_pickles_are_read_from_own_forks_alone() -> None:
    """Nor by one of the readers that take pickles: torch's, those of NumPy and pandas."""
    readers = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    others = sorted(set(SOURCES) - {"fedscale_local.engines.workers"})
    assert not violations(others, *readers)
    assert "pickle" in IMPORTS["fedscale_local.engines.workers"]
    calls = re.compile(
        r"allow_pickle\s*=\s*True|\btorch\.load\(|\bread_pickle\(|\.load_state_dict_from_url\("
    )
    found = {name for name in others if calls.search(SOURCES[name].read_text(encoding="utf-8"))}
    assert not found


def test_a_forbidden_import_would_be_seen() -> None:
    """The reader above sees each form of import, so an empty list of violations means something."""
    text = "def f():\n    import numpy as np\n    from flwr.server import x\n    from . import scaling\n"
    assert set(imports_of(text, "fedscale_local.vector")) == {
        "numpy", "flwr.server", "flwr.server.x", "fedscale_local", "fedscale_local.scaling",
    }  # fmt: skip
    assert set(imports_of("from . import a", "p", is_package=True)) == {"p", "p.a"}
