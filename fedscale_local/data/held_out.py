"""By which test examples each client is judged: its own where the set names them, else some like its shard."""

from __future__ import annotations

import numpy as np

from fedscale_local.data.dataset import Dataset
from fedscale_local.data.partition import Partition, apportion, counts, from_owners


def make(scheme: str, dataset: Dataset, partition: Partition) -> Partition:
    """The test set divided among the clients of a partition that was made by this scheme.

    natural: to their owners, where the set says whose its test examples are. Otherwise each class (all examples,
    where there are none) is divided in proportion to how much of it the clients hold for training, so that a client's
    test shard has the classes of its training shard as nearly as whole numbers allow. Nothing is drawn.
    """
    if scheme == "natural" and dataset.test_client is not None:
        return from_owners(dataset.test_client, len(partition))
    if dataset.labels is None:
        held, test_labels = partition.sizes[:, None], np.zeros(len(dataset.test_y), np.int64)
    else:
        held, test_labels = counts(partition, dataset.labels, dataset.num_classes), dataset.test_y.numpy()
    return alike(test_labels, held)


def alike(labels: np.ndarray, held: np.ndarray) -> Partition:
    """Examples of each class in proportion to held (clients, classes); of a class that nobody holds, to nobody.

    A client's examples of a class are spread evenly over those that there are, as a set may be sorted.

    >>> [rows.tolist() for rows in alike(np.array([0, 0, 0, 1, 1, 0]), np.array([[6, 0], [2, 5]]))]
    [[0, 1, 5], [2, 3, 4]]
    """
    owner = np.full(len(labels), len(held), np.int64)
    for c in range(held.shape[1]):
        rows = np.flatnonzero(labels == c)
        if len(rows) and held[:, c].any():
            quota = apportion(len(rows), held[:, c].astype(float))
            turn = np.concatenate([(np.arange(n) + 0.5) / n for n in quota if n])
            owner[rows] = np.repeat(np.arange(len(held)), quota)[np.argsort(turn, kind="stable")]
    return from_owners(owner, len(held))
