"""What is worked out once and kept for later runs, in the user's cache directory, which may serve many machines."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def folder() -> Path:
    """Ours in XDG_CACHE_HOME, or in ~/.cache; it need not be there."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fedscale-local"


def processor() -> str:
    """What the processor is and can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features")
    return "\n".join([platform.machine(), *dict.fromkeys(line for line in lines if line.startswith(told))])


def key(*parts: str) -> str:
    """A file name for what these decide."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def number(name: str, measure: Callable[[], float]) -> float:
    """The number kept under this name; where there is none, or no number, what `measure` gives, kept from now on.

    Of several processes that measure at once the first is right for all. Where nothing can be kept each has its own.
    """
    path = folder() / name
    with suppress(OSError):
        try:
            return float(path.read_text("utf-8"))
        except ValueError:
            path.unlink()
    found = measure()
    with suppress(OSError, ValueError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8") as file:
            file.write(repr(found))
            file.flush()
            with suppress(FileExistsError):
                os.link(file.name, path)
        return float(path.read_text("utf-8"))
    return found
