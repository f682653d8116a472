"""Which examples each client holds.

Every scheme is a pure function of labels (or of the number of examples) and a NumPy generator. All are
disjoint; all are complete (every example has an owner) but ``natural`` with fewer clients than there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedscale_local.data.dataset import Dataset
from fedscale_local.errors import DataError
from fedscale_local.randomness import numpy_generator

MAX_TRIES = 100
NEED_LABELS = ("dirichlet", "main_class", "pathological")
SCHEMES = ("iid", *NEED_LABELS, "by_size", "natural")


@dataclass(frozen=True)
class Partition:
    """Examples of all clients one after the other: client m holds order[offsets[m]:offsets[m+1]], ascending.

    >>> partition = from_owners(np.array([1, 0, 1]), num_clients=3)
    >>> [shard.tolist() for shard in partition], partition.sizes.tolist()
    ([[1], [0, 2], []], [1, 2, 0])
    """

    order: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> np.ndarray:
        if not 0 <= client < len(self):
            raise IndexError(f"client {client} of {len(self)}")
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[client] for client in range(len(self)))

    @cached_property
    def sizes(self) -> np.ndarray:
        """(clients,) number of examples of each."""
        return np.diff(self.offsets)

    def owners(self, num_examples: int) -> np.ndarray:
        """(num_examples,) the client of each example, len(self) for one that nobody holds: from_owners' inverse.

        >>> from_owners(np.array([1, 0, 3]), num_clients=2).owners(3).tolist()
        [1, 0, 2]
        """
        found = np.full(num_examples, len(self), dtype=np.int64)
        found[self.order] = np.repeat(np.arange(len(self)), self.sizes)
        return found


def from_owners(owner: np.ndarray, num_clients: int) -> Partition:
    """Example i belongs to client owner[i]; examples of owners outside 0..num_clients-1 are left out."""
    kept = np.flatnonzero((owner >= 0) & (owner < num_clients))
    sizes = np.bincount(owner[kept], minlength=num_clients)
    order = kept[np.argsort(owner[kept], kind="stable")]
    return Partition(order.astype(np.int64), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def counts(partition: Partition, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(clients, classes) number of examples of each class that each client holds."""
    owner = np.repeat(np.arange(len(partition)), partition.sizes)
    cells = np.bincount(owner * num_classes + labels[partition.order], minlength=len(partition) * num_classes)
    return cells.reshape(len(partition), num_classes)


def iid(num_examples: int, num_clients: int, rng: np.random.Generator) -> Partition:
    """Dealt at random; sizes differ by one at most."""
    return from_owners(rng.permutation(np.arange(num_examples) % num_clients), num_clients)


def by_size(num_examples: int, num_clients: int, sigma: float, rng: np.random.Generator) -> Partition:
    """Dealt at random, sizes in proportion to log-normal(0, sigma) draws; every client gets one at least."""
    weights = np.exp(sigma * rng.standard_normal(num_clients))
    sizes = 1 + apportion(num_examples - num_clients, weights)
    return from_owners(rng.permutation(np.repeat(np.arange(num_clients), sizes)), num_clients)


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, min_examples: int, rng: np.random.Generator
) -> Partition:
    """Each class is cut by proportions drawn from a symmetric Dirichlet(alpha) over the clients.

    Draw for draw that of flwr-datasets' DirichletPartitioner (same generator, self_balancing off): each
    client holds the same examples. All classes are drawn anew until the smallest client has min_examples;
    where that is unlikely (small alpha, many clients) it ends after MAX_TRIES with a DataError.
    Source: Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, 2019.
    """
    classes = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    owner, smallest = np.empty(len(labels), np.int64), 0
    for _ in range(MAX_TRIES):
        for examples in classes:
            shares = np.cumsum(rng.dirichlet(np.full(num_clients, float(alpha))))
            cuts = (shares * len(examples)).astype(np.int64)[:-1]
            sizes = np.diff(cuts, prepend=0, append=len(examples))
            owner[examples] = np.repeat(np.arange(num_clients), sizes)
        smallest = max(smallest, found := int(np.bincount(owner, minlength=num_clients).min()))
        if found >= min_examples:
            return from_owners(owner, num_clients)
    raise DataError(
        f"partition.min_examples={min_examples}",
        f"in {MAX_TRIES} draws with partition.alpha={alpha} and num_clients={num_clients} "
        f"the smallest client never had more than {smallest} of the {len(labels)} examples",
        "lower partition.min_examples or num_clients, or raise partition.alpha",
    )


def main_class(labels: np.ndarray, num_clients: int, share: float, rng: np.random.Generator) -> Partition:
    """Client m has a main class that makes up ``share`` of its data; the rest comes from all other classes.

    share=0: no main class, dealt at random as iid. With as many clients as classes or more, every class is
    the main one of a number of clients in proportion to its size (dealt in turn: client m has class m mod
    classes when classes are equal), and they divide its size among them. With fewer clients, sizes are equal
    and some classes are nobody's main class. Where other classes cannot fill the rest, the main class does.
    """
    if share == 0:
        return iid(len(labels), num_clients, rng)
    classes, labels, totals = np.unique(labels, return_inverse=True, return_counts=True)
    main = main_classes(totals, num_clients)
    sizes = np.empty(num_clients, np.int64)
    if num_clients < len(classes):
        sizes[:] = apportion(len(labels), np.ones(num_clients))
    else:
        for c in range(len(classes)):
            sizes[main == c] = apportion(totals[c], np.ones((main == c).sum()))
    wanted = np.rint(share * sizes).astype(np.int64)
    short = np.flatnonzero(np.bincount(main, wanted, len(classes)) > totals)
    if len(short):
        raise DataError(
            f"partition.share={share}",
            f"{num_clients} equal clients need more examples of class {classes[short[0]]} than there are",
            f"set num_clients to {len(classes)} or more, or lower partition.share",
        )
    owner = np.full(len(labels), -1, np.int64)
    for c in range(len(classes)):
        examples = rng.permutation(np.flatnonzero(labels == c))
        takers = np.repeat(np.arange(num_clients), np.where(main == c, wanted, 0))
        owner[examples[: len(takers)]] = takers
    rest = np.flatnonzero(owner < 0)
    slots = rng.permutation(np.repeat(np.arange(num_clients), sizes - wanted))
    owner[rest] = _without_own_class(slots, labels[rest], main, rng)
    return from_owners(owner, num_clients)


def main_classes(totals: np.ndarray, num_clients: int) -> np.ndarray:
    """(clients,) the main class of each client, in proportion to the classes' sizes, dealt round robin.

    >>> main_classes(np.array([10, 10, 10]), 5).tolist(), main_classes(np.array([10, 20, 30]), 2).tolist()
    ([0, 1, 2, 0, 1], [1, 2])
    """
    if num_clients < len(totals):
        return np.sort(np.argsort(-totals, kind="stable")[:num_clients])
    beyond_one = np.maximum(totals / totals.sum() * num_clients - 1, 0)
    times = 1 + apportion(num_clients - len(totals), beyond_one)
    turn = np.concatenate([np.arange(count) for count in times])
    return np.repeat(np.arange(len(totals)), times)[np.argsort(turn, kind="stable")]


def pathological(
    labels: np.ndarray, num_clients: int, classes_per_client: int, rng: np.random.Generator
) -> Partition:
    """Each client holds ``classes_per_client`` classes; a class is split evenly among its clients.

    The classes of a client are drawn among those that have been given out least, so all are given out equally
    often. A class with fewer examples than clients leaves some of them without it.
    Source: McMahan et al., Communication-Efficient Learning, 2017, with classes in place of shards.
    """
    classes, labels = np.unique(labels, return_inverse=True)
    if not 1 <= classes_per_client <= len(classes):
        raise DataError(
            f"partition.classes_per_client={classes_per_client}",
            f"the training set has {len(classes)} classes",
            f"take a number from 1 to {len(classes)}",
        )
    if num_clients * classes_per_client < len(classes):
        raise DataError(
            f"partition.classes_per_client={classes_per_client}",
            f"{num_clients} clients would leave some of {len(classes)} classes to nobody",
            "raise partition.classes_per_client or num_clients",
        )
    given = np.zeros(len(classes), np.int64)
    holds = np.zeros((num_clients, len(classes)), bool)
    for client in range(num_clients):
        least = np.lexsort((rng.random(len(classes)), given))[:classes_per_client]
        holds[client, least] = True
        given[least] += 1
    owner = np.empty(len(labels), np.int64)
    for c in range(len(classes)):
        holders, examples = rng.permutation(np.flatnonzero(holds[:, c])), np.flatnonzero(labels == c)
        owner[examples] = rng.permutation(holders[np.arange(len(examples)) % len(holders)])
    return from_owners(owner, num_clients)


def natural(client: np.ndarray, num_clients: int | None = None) -> Partition:
    """Each example to its natural owner; with num_clients, to the first owners only, the rest is left out."""
    owners = int(client.max(initial=-1)) + 1
    if num_clients is not None and num_clients > owners:
        raise DataError(
            f"num_clients={num_clients}",
            f"the data set has {owners} natural clients",
            f"set num_clients to {owners} or less, or to null for all",
        )
    return from_owners(client, owners if num_clients is None else num_clients)


def make(partition: Any, dataset: Dataset, num_clients: int | None, seed: int) -> Partition:
    """The partition that the configuration's partition group asks for, drawn from (seed, "partition").

    Raises:
        DataError: the data set cannot be divided so.
    """
    scheme, labels, n = partition.scheme, dataset.labels, dataset.num_examples
    where = f"partition.scheme={scheme}"
    if scheme == "natural":
        if dataset.client is None:
            others = "iid, dirichlet or another scheme"
            raise DataError(where, f"data={dataset.name} has no natural clients", f"take {others}")
        return natural(dataset.client, num_clients)
    if num_clients is None:
        raise DataError("num_clients=null", f"{where} needs a number of clients", "set num_clients")
    if num_clients > n:
        raise DataError(
            f"num_clients={num_clients}", f"there are only {n} training examples", f"set it to {n} or less"
        )
    rng = numpy_generator(seed, "partition")
    if scheme == "iid":
        return iid(n, num_clients, rng)
    if scheme == "by_size":
        return by_size(n, num_clients, partition.sigma, rng)
    if scheme not in SCHEMES:
        raise DataError(where, "no such scheme", f"take one of {', '.join(SCHEMES)}")
    if labels is None:
        raise DataError(where, f"data={dataset.name} has no class labels", "take natural, iid or by_size")
    if scheme == "dirichlet":
        return dirichlet(labels, num_clients, partition.alpha, partition.min_examples, rng)
    if scheme == "main_class":
        return main_class(labels, num_clients, partition.share, rng)
    return pathological(labels, num_clients, partition.classes_per_client, rng)


def apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Whole numbers in proportion to weights that sum to total (largest remainders; ties to the first).

    >>> apportion(10, np.array([1.0, 1.0, 2.0])).tolist()
    [3, 2, 5]
    """
    exact = total * weights / max(weights.sum(), np.finfo(float).tiny)
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - whole.sum()]] += 1
    return whole


def _without_own_class(
    slots: np.ndarray, labels: np.ndarray, main: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Owners for examples: ``slots``, of which some are swapped so that none has its own main class.

    An example of class c at a client of main class c changes places with one that is neither. A swap makes no
    new conflict, so one pass over the classes leaves a conflict only where no arrangement could avoid it.
    """
    slots = slots.copy()
    for c in np.unique(labels):
        here, wanted = main[slots] == c, labels == c
        wrong, free = np.flatnonzero(here & wanted), rng.permutation(np.flatnonzero(~here & ~wanted))
        wrong, free = wrong[: len(free)], free[: len(wrong)]
        slots[wrong], slots[free] = slots[free], slots[wrong]
    return slots
