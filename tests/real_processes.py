"""What tests ask of real processes: which there are, and that something comes to be."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def marked(text: str) -> list[int]:
    """The processes with this in their environment, this one left out."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in environ.read_bytes().split(b"\0") and environ.parent.name != str(os.getpid()):
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
