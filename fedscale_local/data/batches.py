"""Which examples a client sees in each local step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def draw(
    generator: torch.Generator,
    shard: Tensor,
    batch_size: int | Literal["full"],
    *,
    num_steps: int | None = None,
    num_epochs: int | None = None,
    drop_last: bool = False,
) -> list[Tensor]:
    """The mini-batches of one round: of the client's shard (n,), which holds indices, those (B,) of each local step.

    Examples are drawn without replacement, epoch by epoch, for `num_steps` steps or `num_epochs` epochs. The last
    batch of an epoch may be shorter, unless `drop_last`. A shard no larger than a batch is one batch as it lies, and
    nothing is drawn at all; with `drop_last` and fewer examples than a batch there is none.

    >>> [len(batch) for batch in draw(torch.Generator(), torch.arange(5), 2, num_epochs=2)]
    [2, 2, 1, 2, 2, 1]
    >>> draw(torch.Generator(), torch.tensor([7, 4, 9]), "full", num_steps=1)
    [tensor([7, 4, 9])]
    """
    num_examples = shard.shape[0]
    size = num_examples if batch_size == "full" else batch_size
    if num_examples == 0 or (drop_last and num_examples < size):
        return []
    per_epoch = num_examples // size if drop_last else -(-num_examples // size)
    count = num_steps if num_steps is not None else (num_epochs or 0) * per_epoch
    if num_examples <= size:
        return [shard] * count
    batches: list[Tensor] = []
    while len(batches) < count:
        order = torch.randperm(num_examples, generator=generator)
        taken = order[: min(per_epoch, count - len(batches)) * size]
        whole, rest = divmod(taken.shape[0], size)
        # A third of the time that split(size) takes.
        batches.extend(shard.index_select(0, taken).split_with_sizes([size] * whole + [rest] * (rest > 0)))
    return batches
