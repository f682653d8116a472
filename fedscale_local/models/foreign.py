"""Initial weights, and modules from outside: a user's, or torchvision's, tried once before work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from fedscale_local.data.dataset import Dataset, inputs
from fedscale_local.errors import RAISED, ConfigError
from fedscale_local.randomness import derive


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """`make()` with torch's global CPU generator set to (seed, "model"), and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "model"))
        return make()


def checked(make: Callable[[], Any], dataset: Dataset, seed: int, shown: str) -> nn.Module:
    """A module made by foreign code, in float32, that has passed one trial on the data.

    `shown` is key and value of the configuration, for errors (ConfigError).
    """

    def make_and_try() -> nn.Module:
        module = make()
        if not isinstance(module, nn.Module):
            raise ConfigError(
                shown,
                f"expected a torch.nn.Module, got a {type(module).__name__}",
                "name a class of modules, or a function that returns one",
            )
        module = module.float()
        _try(module, dataset, shown)
        return module

    return seeded(make_and_try, seed)  # the trial too: lazy layers draw their weights at the first call


def _try(module: nn.Module, dataset: Dataset, shown: str) -> None:
    """Run two examples through the module, for evaluation and for training; its buffers stay as they were."""
    x = inputs(dataset, dataset.x[[0, -1]], torch.float32)
    expected = {
        "classification": (2, dataset.num_classes),
        "regression": (2, 1),
        "tokens": (*x.shape, dataset.num_classes),
    }[dataset.kind]
    for training in (False, True):
        module.train(training)
        buffers = [] if not training else [buffer.clone() for buffer in module.buffers()]
        try:
            output = module(x)
        except RAISED as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                shown,
                f"it fails on two examples, {_described(x)}: {text}",
                "make its forward take such a batch",
            ) from error
        for buffer, before in zip(module.buffers(), buffers, strict=False):
            buffer.copy_(before)
        if not isinstance(output, torch.Tensor) or output.shape != expected or not output.is_floating_point():
            found = _described(output) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
            raise ConfigError(
                shown,
                f"for two examples, {_described(x)}, it has to return float logits of shape "
                f"{expected}, and returns {found}",
                "change its last layer or its arguments",
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(shown, "it has no parameters to train", "choose a module that has some")


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def from_torchvision(name: str, dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    """torchvision's classifier of that name with fresh weights; `options` are its keyword arguments."""
    shown = f"model=torchvision/{name}"
    if dataset.kind != "classification" or len(dataset.input_shape) != 3 or dataset.input_shape[0] != 3:
        raise ConfigError(
            shown,
            f"torchvision's models take images (3, height, width) with labels, and "
            f"data={dataset.name} is a {dataset.kind} set with examples of shape "
            f"{dataset.input_shape}",
            "choose another model, such as model=resnet18",
        )
    from fedscale_local import _torchvision

    known = _torchvision.models.list_models(module=_torchvision.models)
    if name not in known:
        near = get_close_matches(name, known, n=3)
        raise ConfigError(
            shown,
            "torchvision has no such classifier",
            f"did you mean {' or '.join(near)}" if near else "choose one such as resnet18",
        )
    for key in ("weights", "num_classes"):
        if key in options:
            raise ConfigError(
                f"model.{key}={options[key]}",
                "weights start fresh and the data tell the number of classes",
                "remove this key",
            )
    try:
        return _torchvision.models.get_model(name, weights=None, num_classes=dataset.num_classes, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(shown, f"its construction raised {error}", "change the keys of model") from error
