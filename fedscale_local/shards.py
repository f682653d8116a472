"""What each client holds: as a table for the terminal and a picture, or as a folder for its device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fedscale_local import data
from fedscale_local.config import Config
from fedscale_local.data import partition as partitions
from fedscale_local.data import shard
from fedscale_local.errors import InputError

MAX_ROWS, MAX_CLASSES = 20, 12
PICTURES = (".svg", ".png", ".pdf")


def picture_path(out: str) -> Path:
    """Where the picture goes; InputError if there is no such folder or it is no picture's name."""
    path = Path(out)
    if path.suffix not in PICTURES:
        raise InputError(
            f"--out={out}", f"expected a name that ends in {', '.join(PICTURES)}", "as --out=shards.svg"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out={out}", f"there is no folder {path.parent}", "make it, or name another")
    return path


def show(config: Config, picture: Path, console: Console | None = None) -> None:
    """Divide the data as a run with this configuration would; print the table, write the picture."""
    from fedscale_local import plots

    dataset = data.load(config.data, config.seed, config.num_clients)
    shards = partitions.make(config.partition, dataset, config.num_clients, config.seed)
    counts = (
        None if dataset.labels is None else partitions.counts(shards, dataset.labels, dataset.num_classes)
    )
    sizes = shards.sizes
    spread = f"median {np.median(sizes):g}, smallest {sizes.min()}, largest {sizes.max()}"
    print(f"{len(sizes)} clients, {sizes.sum()} examples; {spread}")
    (console or Console()).print(table(sizes, counts, dataset.class_names))
    figure = plots.partition_figure(counts, dataset.class_names, sizes=sizes.tolist())
    try:
        plots.save(figure, picture)
    except OSError as error:
        raise InputError(
            f"--out={picture}", f"cannot be written ({error.strerror})", "name another file"
        ) from None
    print(f"picture {picture}")


def cut(config: Config, client: int | None, out: str) -> None:
    """Write this client's shard to the folder `out`; None: everybody's, each to a folder in it, named by its number.

    Raises InputError if the folder is not empty or cannot be written, or there is no such client.
    """
    folder = Path(out)
    try:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            found = "is a file" if folder.is_file() else "the directory is not empty"
            raise InputError(f"--out={out}", found, "name another directory, or empty this one")
        dataset = data.load(config.data, config.seed, config.num_clients)
        partition = partitions.make(config.partition, dataset, config.num_clients, config.seed)
        if client is not None and not 0 <= client < len(partition):
            raise InputError(
                f"--client={client}",
                f"there are {len(partition)} clients",
                f"set --client to 0..{len(partition) - 1}, or num_clients to more",
            )
        origin = shard.origin(config)
        for index in range(len(partition)) if client is None else [client]:
            own = folder / str(index) if client is None else folder
            shard.write(own, dataset, partition, index, origin)
            print(f"client {index}  {partition.sizes[index]} examples  {own}")
    except OSError as error:
        raise InputError(
            f"--out={out}", f"cannot be written ({error.strerror})", "name another directory"
        ) from None


def table(sizes: np.ndarray, counts: np.ndarray | None, class_names: tuple[str, ...]) -> Table:
    """The first clients one by one, then all together; sizes (clients,), counts (clients, classes).

    With many classes: how many of them a client holds.
    """
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    names, cells = ["client", "examples"], np.empty((len(sizes), 0), np.int64)
    if counts is not None and counts.shape[1] > MAX_CLASSES:
        names, cells = [*names, "classes"], (counts > 0).sum(axis=1, keepdims=True)
    elif counts is not None:
        names += [class_names[c] if c < len(class_names) else str(c) for c in range(counts.shape[1])]
        cells = counts
    for index, name in enumerate(names):
        grid.add_column(name, justify="right", no_wrap=index < 2, overflow="fold")
    for client in range(min(len(sizes), MAX_ROWS)):
        grid.add_row(str(client), str(sizes[client]), *(str(n) if n else "." for n in cells[client]))
    if len(sizes) > MAX_ROWS:
        grid.add_row("...", "...")
    if cells is counts:
        grid.add_row("all", str(sizes.sum()), *map(str, cells.sum(axis=0)))
    return grid
