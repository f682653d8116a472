"""The packages come from the installed distribution, whole, and never from the working directory.

`strategies`, `clients` and `conf` are generic names: another package or a folder could shadow them.
In a checkout that is not installed (PYTHONPATH only) these tests skip; `make test` installs first.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

SITE = Path(sysconfig.get_paths()["purelib"])


@pytest.fixture(scope="module")
def installed() -> Distribution:
    for distribution in distributions(name="fedscale-local", path=[str(SITE)]):
        return distribution
    pytest.skip("fedscale-local is not installed in this environment: `make test` installs it")


@pytest.fixture(scope="module")
def files(installed: Distribution) -> set[str]:
    return {path.as_posix() for path in installed.files or ()}


@pytest.mark.parametrize("package", ["fedscale_local", "strategies", "clients", "conf"])
def test_package_comes_from_the_installed_distribution(package: str, files: set[str]) -> None:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).is_relative_to(SITE), f"{package} comes from {spec.origin}"
    assert f"{package}/__init__.py" in files


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("package", ["fedscale_local", "strategies", "clients", "conf"])
def test_package_comes_from_there_in_a_child_process_too(package: str, repo: Path) -> None:
    code = f"import {package}; print({package}.__file__)"
    child = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True)
    assert Path(child.stdout.strip()).is_relative_to(SITE), child.stdout


def test_every_file_of_the_packages_is_installed(files: set[str], repo: Path) -> None:
    for package in ("fedscale_local", "strategies", "clients", "conf"):
        here = {
            path.relative_to(repo).as_posix()
            for path in (repo / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
        }
        there = {name for name in files if name.startswith(f"{package}/") and "__pycache__" not in name}
        assert here == there


def test_configuration_and_data_are_inside(files: set[str]) -> None:
    assert "conf/config.yaml" in files
    assert any(name.startswith("conf/scaling/") for name in files)
    assert any(name.startswith("fedscale_local/data/embedded/") for name in files)
    assert not [name for name in files if name.startswith(("tests/", "docs/", "benchmarks/"))]


def test_licence_and_name(installed: Distribution, files: set[str]) -> None:
    assert installed.metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in files)
    (script,) = installed.entry_points.select(group="console_scripts")
    assert script.name == "fedscale-local"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_is_under_way_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['fedscale-local', *{arguments!r}]\n"
        "from fedscale_local.cli import main\n"
        "try:\n    status = main()\n"
        "except SystemExit as stop:\n    status = stop.code\n"
        "assert not status, status\n"
        "assert 'torch' not in sys.modules and 'flwr' not in sys.modules\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert "fedscale-local" in child.stdout
