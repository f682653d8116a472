"""Models: from the configuration to a `torch.nn.Module` that fits the data, or one message why not.

Every provided model gives the same numbers called as a module, called with `torch.func.functional_call` under
`vmap` for a stack of clients, and differentiated twice (forward over reverse, or reverse twice). Nothing here
imports torch before `build` is called, so the names can be listed at once.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from fedscale_local.errors import ConfigError, DataError
from fedscale_local.instantiate import TARGET, instantiate

if TYPE_CHECKING:
    from torch import nn

    from fedscale_local.data.dataset import Dataset

__all__ = ["NAMES", "build"]

TORCHVISION = "torchvision/"


@dataclass(frozen=True)
class _Provided:
    module: str  # holds the builder, a function named as the model: (input_shape, num_outputs, **options)
    takes: str  # what it can be fed with, a key of _TAKES
    line: str


_PROVIDED = {
    "linear": _Provided("dense", "targets", "linear regression without an intercept, started at zero"),
    "logistic": _Provided("dense", "labels", "multinomial logistic regression, started at zero"),
    "mlp": _Provided("dense", "vectors", "fully connected layers with ReLU (hidden: [128])"),
    "cnn": _Provided(
        "convolutional", "images", "3x3 convolutions, each with pooling and ReLU (channels: [16, 32])"
    ),
    "resnet8": _Provided("resnet", "images", "three residual blocks with GroupNorm (groups: 2)"),
    "resnet18": _Provided("resnet", "images", "eight residual blocks with GroupNorm (groups: 2)"),
    "cnn1d": _Provided(
        "convolutional", "signals", "convolutions along time, for sensors (channels: [32, 64])"
    ),
    "char_gru": _Provided("sequence", "tokens", "recurrent next-character model (embedding: 8, hidden: 128)"),
    "char_transformer": _Provided(
        "sequence", "tokens", "causal transformer (width: 64, heads: 4, layers: 2)"
    ),
}

NAMES: dict[str, str] = {
    **{name: provided.line for name, provided in _PROVIDED.items()},
    f"{TORCHVISION}NAME": "a torchvision classifier by name, untrained, for images with three channels",
}

# Each pooling halves the image, so an image has to have a few pixels each way.
_TAKES: dict[str, tuple[str, Callable[[Dataset], bool]]] = {
    "targets": ("features with numbers to predict", lambda data: data.kind == "regression"),
    "labels": ("images, signals or features with labels", lambda data: data.kind == "classification"),
    "vectors": ("images, signals or features", lambda data: data.kind != "tokens"),
    "images": (
        "images, one example (channels, height, width) with sides of 4 or more",
        lambda data: data.kind != "tokens" and len(data.input_shape) == 3 and min(data.input_shape[1:]) >= 4,
    ),
    "signals": (
        "signals, one example (channels, time) with 4 times or more",
        lambda data: data.kind != "tokens" and len(data.input_shape) == 2 and data.input_shape[1] >= 4,
    ),
    "tokens": ("sequences of tokens", lambda data: data.kind == "tokens"),
}


def build(model: Any, dataset: Dataset, seed: int) -> nn.Module:
    """The model of a configuration, in float32, with initial weights that the seed alone determines.

    Args:
        model: the configuration: a mapping, or an object with `model_dump`. Either `name` with the options of
            that model, or `_target_` (dotted name of a `torch.nn.Module`, or of a function that returns one)
            with its keyword arguments.
        dataset: what it will be trained on; tells the sizes of input and output.
        seed: of the run. Torch's global generator is left as it was.

    Returns:
        A module with logits (batch, num_classes) for labels, (batch, T, num_classes) for tokens, and
        (batch, 1) for regression.

    Raises:
        ConfigError: unknown name or option, a model that cannot take such data, or, for modules that are not
            provided here, one that fails on two examples or returns another shape.
        DataError: labels or tokens outside 0..num_classes - 1.
    """
    options = dict(model if isinstance(model, Mapping) else model.model_dump(by_alias=True))
    target, name = options.pop(TARGET, None), options.pop("name", None)
    from fedscale_local.models import foreign  # imports torch

    _check_range(dataset)
    if target is not None:
        return foreign.checked(
            lambda: instantiate(target, options, "model"), dataset, seed, f"model.{TARGET}={target}"
        )
    if isinstance(name, str) and name.startswith(TORCHVISION):
        return foreign.checked(
            lambda: foreign.from_torchvision(name.removeprefix(TORCHVISION), dataset, options),
            dataset,
            seed,
            f"model={name}",
        )
    builder = _builder(name, options, dataset)
    num_outputs = 1 if dataset.kind == "regression" else dataset.num_classes
    return foreign.seeded(lambda: builder(dataset.input_shape, num_outputs, **options), seed)


def _check_range(dataset: Dataset) -> None:
    """Outputs are as many as there are classes or tokens, so none may lie outside."""
    if dataset.kind == "regression":
        return
    least = 0 if dataset.kind == "classification" else -1  # -1: no next token
    parts = [("y", dataset.y, least), ("test_y", dataset.test_y, least)]
    if dataset.kind == "tokens":
        parts += [("x", dataset.x, 0), ("test_x", dataset.test_x, 0)]
    for part, values, low in parts:
        if values.numel() and (values.min() < low or values.max() >= dataset.num_classes):
            raise DataError(
                f"data={dataset.name}",
                f"{part} has to lie in {low}..{dataset.num_classes - 1}, and spans "
                f"{int(values.min())}..{int(values.max())}",
                "number the classes from 0 without gaps",
            )


def _builder(name: Any, options: Mapping[str, Any], dataset: Dataset) -> Callable[..., nn.Module]:
    """The function that makes a provided model, after checks of name, options and data."""
    if name not in _PROVIDED:
        near = get_close_matches(str(name), _PROVIDED, n=1)
        raise ConfigError(
            f"model={name}",
            "there is no such model",
            f"did you mean {near[0]}" if near else f"choose one of {', '.join(NAMES)}",
        )
    takes, fits = _TAKES[_PROVIDED[name].takes]
    if not fits(dataset):
        raise ConfigError(
            f"model={name}",
            f"it takes {takes}, and data={dataset.name} is a {dataset.kind} set "
            f"with examples of shape {dataset.input_shape}",
            f"choose model={_suggestion(dataset)}",
        )
    module = importlib.import_module(f"fedscale_local.models.{_PROVIDED[name].module}")
    builder = getattr(module, name)
    _check_options(name, options, builder)
    return builder


def _check_options(name: str, options: Mapping[str, Any], builder: Callable[..., nn.Module]) -> None:
    """Every option is a keyword of the builder, and a size, or a list of sizes, as its default is."""
    parameters = inspect.signature(builder).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.kind.name == "KEYWORD_ONLY"
    }
    for key, value in options.items():
        shown = f"model.{key}={value}"
        if key not in defaults:
            has = f"the options {', '.join(defaults)}" if defaults else "no options"
            raise ConfigError(shown, f"model={name} has {has}", "remove this key")
        is_list = isinstance(defaults[key], tuple)
        if isinstance(value, list | tuple) != is_list:
            expected, example = (
                ("a list of sizes", list(defaults[key])) if is_list else ("one size", defaults[key])
            )
            raise ConfigError(shown, f"expected {expected}", f"write it as model.{key}={example}")
        if any(type(size) is not int or size < 1 for size in (value if is_list else [value])):
            raise ConfigError(shown, "sizes are whole numbers from 1", "set it to 1 or more")


def _suggestion(dataset: Dataset) -> str:
    """The smallest model that takes such data."""
    if dataset.kind == "tokens":
        return "char_gru or model=char_transformer"
    return "linear or model=mlp" if dataset.kind == "regression" else "logistic or model=mlp"
