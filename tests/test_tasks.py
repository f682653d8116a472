"""What a task keeps in memory, and what it never changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_data import dataset

from fedscale_local.tasks import Task


class Greedy(nn.Module):
    """Works in the place of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(5))
        self.part(torch.zeros(1, 1, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.part(x.mul_(0.5))
        return outputs


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_float_images_are_in_memory_once_unless_their_order_is_another(
    channels: int, memory_format: str
) -> None:
    data = dataset(shape=(channels, 8, 8))
    task = Task(nn.Sequential(nn.Conv2d(channels, 2, 3), nn.Flatten(), nn.Linear(72, 5)), data, torch.float32)
    task.become(False, memory_format)
    assert task.resident is not None
    is_other = channels > 1 and memory_format == "channels_last"
    assert (task.resident.data_ptr() != data.x.data_ptr()) == is_other
    x, _ = task.examples(torch.tensor([4, 1]))
    assert torch.equal(x, data.x[[4, 1]]) and x.data_ptr() != data.x.data_ptr()
    assert x.stride() == (
        64 * channels,
        *((1, 8 * channels, channels) if memory_format == "channels_last" else (64, 8, 1)),
    )


def test_a_module_that_works_in_the_place_of_its_inputs_changes_no_data() -> None:
    data = dataset()
    before, task = data.x.clone(), Task(Greedy(), data, torch.float32)
    _ = task.numbers_per_example
    task.looped.descend(task.looped.start(task.initial_params), task.looped.batch([torch.arange(3)], []), 0.1)
    first, second = (
        task.evaluate(task.initial_params, task.initial_buffers, data.x, data.y) for _ in range(2)
    )
    assert first == second and torch.equal(data.x, before)
