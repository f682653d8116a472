"""What every test may count on: a quiet Flower, no network, one thread, the folder of larger data sets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout that these tests belong to."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with one folder per data set: $FEDSCALE_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("FEDSCALE_DATA") or REPO.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set FEDSCALE_DATA to the folder that holds them")
    return folder
