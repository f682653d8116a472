"""HAPT: activities and postures from a smartphone at the waist, by subject.

UCI data set 341, Reyes-Ortiz et al., Transition-Aware Human Activity Recognition Using Smartphones, 2015
(CC BY 4.0 by UCI; the authors ask for a citation and forbid commercial use). train.parquet and test.parquet
have one row a window of 128 samples at 50 Hz, columns subject, label and signal (768 floats, time-major).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedscale_local.data.dataset import Dataset
from fedscale_local.data.locate import locate
from fedscale_local.data.tables import read_table
from fedscale_local.errors import DataError

ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
SAMPLES, CHANNELS = 128, 6  # acceleration x y z in g, angular velocity x y z in rad/s


def hapt(data: Any) -> Dataset:
    """x (n, 6, 128) float32, each channel standardised with the training set's mean and deviation.

    A natural client is a subject (subject s of the files is client s - 1).
    """
    files = locate(data, [("train.parquet", "test.parquet")])
    x, y, client = _read(files[0])
    test_x, test_y, test_client = _read(files[1])
    mean = x.mean((0, 2), keepdims=True, dtype=np.float64)
    std = x.std((0, 2), keepdims=True, dtype=np.float64)
    seen, test_seen = (torch.from_numpy(((part - mean) / std).astype(np.float32)) for part in (x, test_x))
    return Dataset(
        data.name, "classification", seen, torch.from_numpy(y), test_seen, torch.from_numpy(test_y),
        len(ACTIVITIES), client=client, test_client=test_client, class_names=ACTIVITIES,
    )  # fmt: skip


def _read(file: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = read_table(file, ["subject", "label", "signal"])
    flat = table["signal"].combine_chunks().flatten().to_numpy()
    if len(flat) != len(table) * SAMPLES * CHANNELS:
        raise DataError(str(file), f"expected {SAMPLES * CHANNELS} numbers in each signal", "fetch it again")
    signal = flat.reshape(-1, SAMPLES, CHANNELS).transpose(0, 2, 1)
    label, subject = (table[name].to_numpy().astype(np.int64) for name in ("label", "subject"))
    return signal, label, subject - 1
