"""C functions of this package, built once with the system's compiler and kept: faster, never required.

A file is built for one processor and one type of number, and kept under the user's cache directory by the sum of all
that it was built from. Where there is no compiler, or nowhere to keep what it builds, there are no such functions, and
whoever asked does the same with torch.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from fedscale_local import user_cache
from fedscale_local.errors import FedscaleError

FLAGS = ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-march=native", "-shared", "-fPIC")
"""As fast as -O3 would be, and built in less than half of its time."""
SECONDS = 60.0
"""What building one file may take; two are usual."""
_REAL = {torch.float32: "float", torch.float64: "double"}


@cache
def library(name: str, dtype: torch.dtype) -> ctypes.CDLL:
    """The functions of NAME.c of this package for numbers of this type.

    Raises FedscaleError with the reason if they cannot be had here.
    """
    source = Path(__file__).with_name(f"{name}.c")
    command = [*compiler(), *FLAGS, f"-DREAL={_REAL[dtype]}"]
    told = user_cache.key(source.read_text("utf-8"), *command, user_cache.processor())
    kept = user_cache.folder() / f"{name}-{told}.so"
    try:
        if not kept.exists():
            _build([*command, str(source)], kept)
        return ctypes.CDLL(str(kept))
    except (OSError, subprocess.SubprocessError) as error:
        raise FedscaleError(f"{source.name} could not be built: {error}") from error


def compiler() -> list[str]:
    """The C compiler's command: CC, where it is set and not empty, or cc. FedscaleError where there is none."""
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        raise FedscaleError(f"there is no C compiler: {command[0]} was not found; install one, or set CC")
    return command


def _build(command: list[str], kept: Path) -> None:
    """Under another name first: several runs may start at the same time."""
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        built = Path(folder) / kept.name
        done = subprocess.run(
            [*command, "-o", str(built), "-lm"], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        if done.returncode:
            raise OSError(
                done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"status {done.returncode}"
            )
        built.replace(kept)
