"""The data set that comes with the package, and the script that made it."""

from __future__ import annotations

import json
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import unquote, urlparse

from fedscale_local.errors import DataError

FILE = "fashion_mnist_12k.npz.xz"


def embedded_file(here: Path = Path(__file__).parent) -> Path:
    """The embedded file: beside this module, else in an installed distribution.

    A copy of the sources without data files (Flower ships apps as such copies) may come first on sys.path
    and hide the installed package; its distribution then still has the file.
    """
    folders = [here]
    for distribution in distributions(name="fedscale-local"):
        folders.append(Path(str(distribution.locate_file("fedscale_local/data/embedded"))))
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            folders.append(Path(unquote(urlparse(origin["url"]).path)) / "fedscale_local/data/embedded")
    for folder in folders:
        if (folder / FILE).is_file():
            return folder / FILE
    raise DataError(
        "data.name=fashion_mnist_12k",
        f"the package's own file {FILE} is missing; looked at {', '.join(map(str, folders))}",
        "install the distribution fedscale-local in this environment (a copy of the sources is not enough)",
    )
