"""UCI heart disease, by hospital, with its missing values.

Janosi (Budapest), Steinbrunn (Zurich), Pfisterer (Basel), Detrano (Long Beach and Cleveland); UCI lists it
under CC BY 4.0. train.parquet and test.parquet have columns site, thirteen measurements (null where missing),
label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedscale_local.data.dataset import Dataset
from fedscale_local.data.locate import locate
from fedscale_local.data.tables import read_table

COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak",
    "slope", "ca", "thal",
)  # fmt: skip
ZERO_IS_MISSING = ("trestbps", "chol")  # a blood pressure or a cholesterol of 0 was not measured


def heart_disease(data: Any) -> Dataset:
    """x (n, 13 + flags) float32: thirteen measurements, then one 0/1 flag for each that is missing anywhere.

    Measurements are standardised with mean and deviation of the training values that are there (all hospitals
    together); a missing one becomes the mean, 0. A natural client is a hospital.
    """
    files = locate(data, [("train.parquet", "test.parquet")])
    tables = [read_table(file, ["site", "label", *COLUMNS]) for file in files]
    values, test_values = (_values(table) for table in tables)
    mean, std = np.nanmean(values, 0), np.nanstd(values, 0)
    flagged = np.isnan(values).any(0)
    x, test_x = (
        np.hstack([np.nan_to_num((part - mean) / std), np.isnan(part)[:, flagged]]).astype(np.float32)
        for part in (values, test_values)
    )
    y, test_y = (torch.from_numpy(table["label"].to_numpy().astype(np.int64)) for table in tables)
    sites = [table["site"].to_pylist() for table in tables]
    hospitals = sorted({*sites[0], *sites[1]})  # cleveland, hungarian, switzerland, va
    client, test_client = (np.array([hospitals.index(site) for site in split], np.int64) for split in sites)
    return Dataset(
        data.name, "classification", torch.from_numpy(x), y, torch.from_numpy(test_x), test_y, 2,
        client=client, test_client=test_client, class_names=("healthy", "disease"),
    )  # fmt: skip


def _values(table: Any) -> np.ndarray:
    columns = np.stack([table[name].to_numpy().astype(np.float64) for name in COLUMNS], 1)
    for name in ZERO_IS_MISSING:
        column = columns[:, COLUMNS.index(name)]
        column[column == 0] = np.nan
    return columns
