"""On what a benchmark ran, what that can do at most, and where the result goes."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Processor, its widest vector instructions, cores that this process may use, and torch's version."""
    words = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in words.splitlines() if "model name" in line), "")
    vectors = next((wide for wide in ("avx512f", "avx2", "asimd") if wide in words.split()), "")
    cores = len(os.sched_getaffinity(0))
    return {
        "processor": model or platform.machine(),
        "vectors": vectors,
        "cores": cores,
        "torch": torch.__version__,
    }


def wait(device: torch.device) -> None:
    """Until the GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


CPU = torch.device("cpu")


def gemm_peak(size: int = 1536, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of a product of two square matrices on all of torch's threads; the best of ten."""
    a, b = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        wait(device)
        began = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2e-9 * size**3 / best


def save(result: Any, out: Path | None) -> None:
    """Write the result to this file, if there is one, as JSON."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
