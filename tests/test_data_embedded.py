"""The embedded subset is what its script makes, and it is found when a bare copy of the sources hides it."""

from __future__ import annotations

import io
import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedscale_local.data import embedded
from fedscale_local.data.embedded import FILE, embedded_file
from fedscale_local.data.embedded.build import subset
from fedscale_local.data.images import DEBIAN_FASHION_MNIST
from fedscale_local.errors import DataError

DEBIAN = Path(DEBIAN_FASHION_MNIST)
SIZE_LIMIT = 6_300_000


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the package dataset-fashion-mnist")
def test_file_holds_what_the_script_makes() -> None:
    with np.load(io.BytesIO(lzma.decompress(embedded_file().read_bytes()))) as arrays:
        stored = dict(arrays)
    made = subset(DEBIAN)
    assert stored.keys() == made.keys()
    assert all(np.array_equal(stored[name], made[name]) for name in made)


def test_file_is_small_and_has_its_licence_beside_it() -> None:
    assert embedded_file().stat().st_size <= SIZE_LIMIT
    licence = (embedded_file().parent / "LICENSE-fashion-mnist").read_text()
    assert "MIT License" in licence and "Zalando" in licence


def fake_distribution(site: Path, editable: Path | None = None) -> None:
    """A distribution as pip leaves it: its record, and (not editable) its files."""
    info = site / "fedscale_local-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedscale-local\nVersion: 9.9\n")
    if editable:
        origin = {"url": editable.as_uri(), "dir_info": {"editable": True}}
        (info / "direct_url.json").write_text(json.dumps(origin))
    home = (editable or site) / "fedscale_local/data/embedded"
    home.mkdir(parents=True)
    shutil.copy(embedded_file(), home / FILE)


@pytest.mark.parametrize("editable", [False, True])
def test_found_in_the_installed_distribution_behind_a_bare_copy(tmp_path: Path, editable: bool) -> None:
    """As in a Flower app: the copy of the sources comes first on the path and has no data files."""
    source = Path(embedded.__file__).parents[2]
    copy, site = tmp_path / "copy", tmp_path / "site packages"
    shutil.copytree(source, copy / "fedscale_local", ignore=shutil.ignore_patterns("*.xz", "__pycache__"))
    fake_distribution(site, tmp_path / "check out" if editable else None)
    code = (
        f"import sys; sys.path[:0] = [{str(copy)!r}, {str(site)!r}]\n"
        "from fedscale_local.data.embedded import embedded_file; import fedscale_local\n"
        "print(fedscale_local.__file__); print(embedded_file())"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    package, found = child.stdout.splitlines()
    assert Path(package).is_relative_to(copy), "the copy hides the installed package"
    assert Path(found).is_relative_to(tmp_path / ("check out" if editable else "site packages"))


def test_missing_file_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "distributions", lambda name: [])
    with pytest.raises(DataError, match=r"npz.xz is missing; looked at .*; install the distribution"):
        embedded_file(tmp_path)
