"""On what a benchmark ran, and where its result goes."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, and torch's version."""
    words = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in words.splitlines() if "model name" in line), "")
    cores = len(os.sched_getaffinity(0))
    return {"processor": model or platform.machine(), "cores": cores, "torch": torch.__version__}


def save(result: Any, out: Path | None) -> None:
    """Write the result to this file, if there is one, as JSON."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
