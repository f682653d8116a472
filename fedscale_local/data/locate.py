"""Where the files of a data set are: data.path, then FEDSCALE_DATA, then known places of the system.

Nothing is fetched from a network unless the configuration says data.download=true.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedscale_local.errors import DataError

ENVIRONMENT = "FEDSCALE_DATA"
Layout = tuple[str, ...]  # the files of one form of a set, relative to its folder


def places(name: str, path: str | None, system: Sequence[str] = ()) -> list[Path]:
    """The folders to look at, in order. A given path is the only one: it must not be missed silently.

    >>> [str(place) for place in places("mnist", "my/folder")]
    ['my/folder']
    """
    if path is not None:
        return [Path(path).expanduser()]
    above = os.environ.get(ENVIRONMENT)
    named = [Path(above).expanduser() / name] if above else []
    return named + [Path(folder) for folder in system]


def locate(
    data: Any,
    layouts: Sequence[Layout],
    system: Sequence[str] = (),
    download: Callable[[Path], object] | None = None,
) -> list[Path]:
    """The files of the first layout that is whole in the first place that has one.

    Args:
        data: the configuration's data group (name, path, download).
        layouts: the forms in which the set may lie in its folder.
        system: places where the operating system's packages put it.
        download: fetches the set into a folder; called only if data.download is true and nothing was found.

    Raises:
        DataError: nothing found; the message says where it looked and what to do.
    """
    looked_at = places(data.name, data.path, system)
    found = _first(looked_at, layouts)
    if found is None and data.download and download is not None:
        found = _first([_fetch(data, download)], layouts)
    if found is not None:
        return found
    where = f"data.path={data.path}" if data.path is not None else f"data.name={data.name}"
    looked = ", ".join(map(str, looked_at)) or f"no place ({ENVIRONMENT} is not set)"
    wanted = " or ".join(" + ".join(layout) for layout in layouts[:2])
    fetch = ", or data.download=true to fetch it" if download is not None and not data.download else ""
    raise DataError(
        where,
        f"the files of {data.name} ({wanted}) are not there; looked at {looked}",
        f"set data.path to their folder, or {ENVIRONMENT} to the folder above {data.name}/{fetch}",
    )


def _first(folders: Sequence[Path], layouts: Sequence[Layout]) -> list[Path] | None:
    for folder in folders:
        for layout in layouts:
            files = [folder / file for file in layout]
            if all(file.is_file() for file in files):
                return files
    return None


def _fetch(data: Any, download: Callable[[Path], object]) -> Path:
    targets = places(data.name, data.path)
    if not targets:
        raise DataError(
            "data.download=true", "a download needs a folder to go to", f"set data.path or {ENVIRONMENT}"
        )
    try:
        download(targets[0])
    except Exception as error:  # whatever the network or the disk throws: one message
        raise DataError(
            "data.download=true",
            f"fetching {data.name} into {targets[0]} failed ({type(error).__name__}: {error})",
            "check the network and the folder, or fetch the files by hand and set data.path",
        ) from error
    return targets[0]
