"""A model that does not fit its data, or a module from outside that does not work, ends in one message."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter
from toy_data import dataset

from fedscale_local.config import ModelConfig
from fedscale_local.errors import ConfigError, DataError
from fedscale_local.models import build

# What does not fit.

FLAT, IMAGES, SIGNALS = dataset(shape=(7,)), dataset(shape=(3, 8, 8)), dataset(shape=(6, 16))
TOKENS, TARGETS = dataset("tokens", (9,)), dataset("regression", (7,), 1)


@pytest.mark.parametrize(
    ("model", "data", "told"),
    [
        ({"name": "resnt8"}, IMAGES, "model=resnt8: there is no such model; did you mean resnet8."),
        ({"name": "quux"}, IMAGES, "choose one of linear, logistic, mlp"),
        ({"name": None}, IMAGES, "there is no such model"),
        ({"name": "linear"}, FLAT, "choose model=logistic or model=mlp"),
        ({"name": "logistic"}, TARGETS, "choose model=linear or model=mlp"),
        ({"name": "mlp"}, TOKENS, "is a tokens set with examples of shape (9,); choose model=char_gru"),
        ({"name": "char_gru"}, IMAGES, "it takes sequences of tokens"),
        ({"name": "cnn"}, FLAT, "it takes images"),
        ({"name": "cnn"}, dataset(shape=(28, 28)), "(channels, height, width)"),
        (
            {"name": "resnet8"},
            dataset(shape=(28, 28, 3)),
            "with examples of shape (28, 28, 3)",
        ),  # channels last
        ({"name": "cnn1d"}, IMAGES, "it takes signals"),
        ({"name": "cnn1d", "channels": [1] * 5}, SIGNALS, "every layer halves the input"),
        (
            {"name": "mlp", "hiden": [3]},
            FLAT,
            "model.hiden=[3]: model=mlp has the options hidden; remove this key.",
        ),
        ({"name": "logistic", "hidden": [3]}, FLAT, "has no options"),
        ({"name": "mlp", "hidden": [3, 0]}, FLAT, "model.hidden=[3, 0]: sizes are whole numbers from 1"),
        ({"name": "mlp", "hidden": 3}, FLAT, "expected a list of sizes"),
        ({"name": "mlp", "hidden": [True]}, FLAT, "whole numbers"),
        ({"name": "char_gru", "hidden": [3]}, TOKENS, "expected one size; write it as model.hidden=128."),
        ({"name": "resnet8", "groups": 3}, IMAGES, "set model.groups to a power of two"),
        ({"name": "char_transformer", "heads": 3}, TOKENS, "set model.heads to a divisor of model.width"),
        ({"name": "torchvision/resnet18"}, TOKENS, "take images (3, height, width) with labels"),
        ({"name": "torchvision/resnet18"}, dataset(shape=(1, 28, 28)), "choose another model"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_a_remedy(model, data, told):
    with pytest.raises(ConfigError) as raised:
        build(model, data, 0)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"y": torch.tensor([0, 5] * 3)}, "y has to lie in 0..4, and spans 0..5"),
        ({"y": torch.tensor([0, -1] * 3)}, "and spans -1..0"),
        ({"test_y": torch.tensor([7])}, "test_y has to lie in 0..4"),
        ({"kind": "tokens", "x": torch.full((6, 3), 5), "y": torch.full((6, 3), -1)}, "x has to lie in 0..4"),
    ],
)
def test_labels_beyond_the_classes_are_refused(change, told):
    with pytest.raises(DataError) as raised:
        build({"name": "logistic"}, replace(FLAT, **change), 0)
    assert told in str(raised.value)


# Modules from outside.

USERS = """
import torch
from torch import nn

class Good(nn.Module):
    def __init__(self, width, classes=5):
        super().__init__()
        self.lazy, self.norm = nn.LazyLinear(width), nn.BatchNorm1d(width)
        self.output = nn.Linear(width, classes)
    def forward(self, x):
        return self.output(self.norm(self.lazy(x.flatten(1))))

class Pair(Good):
    def forward(self, x):
        return super().forward(x), x

class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Linear(3, 5)
    def forward(self, x):
        return self.output(x)

class Empty(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 5)

def broken():
    raise OSError("no such weights")

not_callable = 3
"""


@pytest.fixture
def users(tmp_path, monkeypatch):
    (tmp_path / "users_net.py").write_text(USERS)
    (tmp_path / "users_broken.py").write_text("import a_package_nobody_has")
    (tmp_path / "users_syntax.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("users_net", "users_broken", "users_syntax"):
        sys.modules.pop(name, None)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_a_users_module_is_built_from_the_seed_and_left_as_it_was(users):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build({"_target_": "users_net.Good", "width": 4}, FLAT, 7)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights(first), weights(build({"_target_": "users_net.Good", "width": 4}, FLAT, 7)))
    assert not torch.equal(
        weights(first), weights(build({"_target_": "users_net.Good", "width": 4}, FLAT, 8))
    )
    assert first.training and first.norm.num_batches_tracked == 0 and (first.norm.running_mean == 0).all()
    assert first.lazy.weight.shape == (4, 7)


def test_it_comes_from_a_checked_configuration_too(users):
    model = {"name": "custom", "_target_": "users_net.Good", "width": 4}
    section = TypeAdapter(ModelConfig).validate_python(model)
    assert torch.equal(weights(build(section, FLAT, 7)), weights(build(model, FLAT, 7)))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            {"_target_": "users_net.Good", "width": 4, "classes": 3},
            "for two examples, float32 (2, 7), it has to return float logits of shape "
            "(2, 5), and returns float32 (2, 3)",
        ),
        ({"_target_": "users_net.Pair", "width": 4}, "and returns a tuple; change its last layer"),
        ({"_target_": "users_net.Narrow"}, "it fails on two examples, float32 (2, 7): mat1 and mat2 shapes"),
        ({"_target_": "users_net.Empty"}, "it has no parameters to train"),
        (
            {"_target_": "users_net.Good"},
            "do not fit (width, classes=5): missing a required argument: 'width'",
        ),
        ({"_target_": "users_net.Good", "width": 4, "depth": 2}, "unexpected keyword argument 'depth'"),
        ({"_target_": "users_net.broken"}, "calling it raised OSError: no such weights"),
        ({"_target_": "users_net.not_callable"}, "expected a class or a function, found a int"),
        ({"_target_": "users_net.Gone"}, "model._target_=users_net.Gone: the module users_net has no Gone"),
        (
            {"_target_": "users_gone.Net"},
            "there is no module users_gone; correct the name, install the package, or",
        ),
        (
            {"_target_": "users_broken.Net"},
            "ModuleNotFoundError: No module named 'a_package_nobody_has'; mend",
        ),
        (
            {"_target_": "users_syntax.Net"},
            "importing users_syntax raised SyntaxError: invalid syntax (users_syntax.py, line 1)",
        ),
        ({"_target_": "Net"}, "expected the dotted name of an object in a module"),
        ({"_target_": 3}, "model._target_=3: expected the dotted name"),
        ({"_target_": "collections.OrderedDict"}, "expected a torch.nn.Module, got a OrderedDict"),
    ],
)
def test_a_users_module_that_does_not_work_ends_in_one_message(users, model, told):
    with pytest.raises(ConfigError) as raised:
        build(model, FLAT, 0)
    assert told in str(raised.value)


def test_torchvision_models_by_name_with_their_own_keywords():
    module = build(
        {"name": "torchvision/resnet18", "zero_init_residual": True}, dataset(shape=(3, 32, 32)), 0
    )
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert (module.layer1[0].bn2.weight == 0).all()
    for name, told in (("resnet19", "did you mean resnet1"), ("quux_", "choose one such as resnet18")):
        with pytest.raises(ConfigError, match=told):
            build({"name": f"torchvision/{name}"}, IMAGES, 0)
    for wrong in ({"weights": "DEFAULT"}, {"depth": 3}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            build({"name": "torchvision/resnet18", **wrong}, IMAGES, 0)


# What is imported.


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_names_are_read_without_torch():
    run("import sys; from fedscale_local.models import NAMES; assert NAMES and 'torch' not in sys.modules")


def test_plain_models_do_not_import_torchvision_and_its_trap_is_cured():
    run(
        "import sys, torch\n"
        "from fedscale_local.data.dataset import Dataset\n"
        "from fedscale_local.models import build\n"
        "x, y = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])\n"
        "data = Dataset('toy', 'classification', x, y, x[:0], y[:0], 2)\n"
        "build({'name': 'resnet8'}, data, 0)\n"
        "assert 'torchvision' not in sys.modules\n"
        "from fedscale_local import _torchvision\n"
        "assert _torchvision.models.resnet18(num_classes=2)(x).shape == (2, 2)\n"
        "assert _torchvision.datasets.FashionMNIST and _torchvision.transforms\n"
    )
