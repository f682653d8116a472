"""Synthetic(a, b): Li et al., Federated Optimization in Heterogeneous Networks, 2020; also in LEAF.

The recipe of the authors' code: for client k, u_k ~ N(0, a) and B_k ~ N(0, b) (a and b are deviations);
W_k and b_k have entries N(u_k, 1); v_k has entries N(B_k, 1); x ~ N(v_k, diag(j^-1.2)); y is the largest
entry of W_k x + b_k. Sizes are 50 + floor of a log-normal(4, 2), so few clients hold most of the data.
As the recipe stands, u_k shifts all entries of W_k x + b_k alike, so a has no influence on the labels;
clients differ because W_k and b_k are drawn anew for each.
Departures: each client has a random stream of its own, and the first 90 % of its rows are for training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedscale_local.data.dataset import Dataset
from fedscale_local.randomness import numpy_generator

NUM_CLIENTS, A, B, DIMENSION, NUM_CLASSES = 30, 1.0, 1.0, 60, 10
TRAIN_SHARE = 0.9


def synthetic(data: Any, seed: int, num_clients: int | None = None) -> Dataset:
    """x (n, data.dimension) float32, y in 0..data.num_classes-1, natural clients."""
    a, b = getattr(data, "a", A), getattr(data, "b", B)
    dimension, num_classes = getattr(data, "dimension", DIMENSION), getattr(data, "num_classes", NUM_CLASSES)
    clients = range(NUM_CLIENTS if num_clients is None else num_clients)
    streams = [numpy_generator(seed, "data", client=k) for k in clients]
    drawn = [client_rows(rng, a, b, dimension, num_classes) for rng in streams]
    cuts = [int(TRAIN_SHARE * len(y)) for _, y in drawn]
    split = list(zip(drawn, cuts, strict=True))
    return Dataset(
        data.name,
        "classification",
        torch.from_numpy(np.concatenate([x[:cut] for (x, _), cut in split])),
        torch.from_numpy(np.concatenate([y[:cut] for (_, y), cut in split])),
        torch.from_numpy(np.concatenate([x[cut:] for (x, _), cut in split])),
        torch.from_numpy(np.concatenate([y[cut:] for (_, y), cut in split])),
        num_classes,
        client=np.repeat(clients, cuts),
        test_client=np.repeat(clients, [len(y) - cut for (_, y), cut in split]),
    )


def client_rows(
    rng: np.random.Generator, a: float, b: float, dimension: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """One client's x (n, dimension) float32 and y (n,) int64."""
    size = 50 + int(rng.lognormal(4, 2))
    u, centre = rng.normal(0, a), rng.normal(0, b)
    weight = rng.normal(u, 1, (dimension, num_classes))
    bias = rng.normal(u, 1, num_classes)
    mean = rng.normal(centre, 1, dimension)
    deviation = np.arange(1, dimension + 1) ** -0.6  # the square root of j^-1.2
    x = mean + deviation * rng.standard_normal((size, dimension))
    return x.astype(np.float32), np.argmax(x @ weight + bias, 1).astype(np.int64)
