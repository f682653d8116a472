"""What each client would hold, as a table for the terminal and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fedscale_local import data
from fedscale_local.config import Config
from fedscale_local.data import partition as partitions
from fedscale_local.errors import InputError

MAX_ROWS = 20
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
    (console or Console()).print(table(shards.sizes, counts, dataset.class_names))
    figure = plots.partition_figure(counts, dataset.class_names, sizes=shards.sizes.tolist())
    try:
        plots.save(figure, picture)
    except OSError as error:
        raise InputError(
            f"--out={picture}", f"cannot be written ({error.strerror})", "name another file"
        ) from None
    print(f"picture {picture}")


def table(sizes: np.ndarray, counts: np.ndarray | None, class_names: tuple[str, ...]) -> Table:
    """The first clients one by one, then all together; sizes (clients,), counts (clients, classes)."""
    middle = f"{np.median(sizes):g}, smallest {sizes.min()}, largest {sizes.max()}"
    grid = Table(
        title=f"{len(sizes)} clients, {sizes.sum()} examples; median {middle}", title_justify="left", box=None
    )
    grid.add_column("client", justify="right")
    grid.add_column("examples", justify="right")
    num_classes = 0 if counts is None else counts.shape[1]
    for c in range(num_classes):
        grid.add_column(class_names[c] if c < len(class_names) else str(c), justify="right")
    for client in range(min(len(sizes), MAX_ROWS)):
        row = [] if counts is None else [str(n) if n else "." for n in counts[client]]
        grid.add_row(str(client), str(sizes[client]), *row)
    if len(sizes) > MAX_ROWS:
        grid.add_row("...", f"({len(sizes) - MAX_ROWS} more)")
    if counts is not None:
        grid.add_row("all", str(sizes.sum()), *map(str, counts.sum(axis=0)))
    return grid
