"""Shakespeare by speaking role, for next-character prediction, as in LEAF (Caldas et al., arXiv 1812.01097).

Public domain. train.parquet and test.parquet have one row a role, with columns role and text. LEAF cuts
another edition: numbers are comparable in kind, not digit for digit.
"""

from __future__ import annotations

from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import numpy as np
import torch

from fedscale_local.data.dataset import Dataset
from fedscale_local.data.locate import locate
from fedscale_local.data.tables import read_table
from fedscale_local.errors import DataError

ALPHABET = "".join(sorted("\n !$&',-.:;?" + digits + ascii_letters))
PADDING = len(ALPHABET)
WINDOW = 80


def shakespeare(data: Any) -> Dataset:
    """Windows of data.window characters: x (n, window) tokens, y (n, window) next tokens, -1 on padding.

    A natural client is a speaking role. Token 74 is padding and is never a target.
    """
    window = WINDOW if getattr(data, "window", None) is None else data.window
    files = locate(data, [("train.parquet", "test.parquet")])
    tables = [read_table(file, ["role", "text"]) for file in files]
    roles = sorted(set().union(*(table["role"].to_pylist() for table in tables)))
    number = {role: index for index, role in enumerate(roles)}
    splits = []
    for file, table in zip(files, tables, strict=True):
        texts = [_tokens(text, file) for text in table["text"].to_pylist()]
        clients = np.array([number[role] for role in table["role"].to_pylist()], np.int64)
        splits.append(windows(texts, clients, window))
    (x, y, client), (test_x, test_y, test_client) = splits
    return Dataset(
        data.name, "tokens", torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(test_x),
        torch.from_numpy(test_y), PADDING + 1, client=client, test_client=test_client,
        class_names=(*ALPHABET, "(padding)"),
    )  # fmt: skip


def windows(
    texts: list[np.ndarray], owners: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut each text into windows that follow each other; every character but the first is a target once.

    The last window of a text is filled with padding (its targets with -1); a text without a pair of
    characters gives none.

    >>> x, y, owner = windows([np.array([5, 6, 7, 8]), np.array([9])], np.array([0, 1]), 2)
    >>> x.tolist(), y.tolist(), owner.tolist()
    ([[5, 6], [7, 74]], [[6, 7], [8, -1]], [0, 0])
    """
    counts = np.array([-(-max(len(text) - 1, 0) // window) for text in texts], np.int64)
    x = np.full((counts.sum(), window), PADDING, np.int64)
    y = np.full((counts.sum(), window), -1, np.int64)
    ends = np.cumsum(counts)
    for text, start, end in zip(texts, ends - counts, ends, strict=True):
        pairs = max(len(text) - 1, 0)
        x[start:end].reshape(-1)[:pairs] = text[:-1]
        y[start:end].reshape(-1)[:pairs] = text[1:]
    return x, y, np.repeat(owners, counts)


_CODE = np.full(256, -1, np.int64)
_CODE[np.frombuffer(ALPHABET.encode(), np.uint8)] = np.arange(PADDING)


def _tokens(text: str, file: Path) -> np.ndarray:
    tokens = _CODE[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]
    unusual = (tokens < 0).any() or not text.isascii()
    unknown = sorted(set(text) - set(ALPHABET)) if unusual else []
    if unknown:
        found = f"characters {unknown[:5]} are outside the alphabet of {PADDING}"
        raise DataError(str(file), found, "remove or replace them")
    return tokens
