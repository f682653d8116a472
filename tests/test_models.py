"""Provided models: their sizes by hand, and the same numbers alone, stacked and differentiated twice."""

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from pydantic import TypeAdapter
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from toy_data import dataset

from fedscale_local.config import ModelConfig
from fedscale_local.models import NAMES, build
from fedscale_local.models.sequence import GRU, Attention

# One small setting per model: name, options, data.
SETTINGS = {
    "linear": ({}, dataset("regression", (7,), 1)),
    "logistic": ({}, dataset(shape=(7,))),
    "mlp": ({"hidden": [9, 8]}, dataset(shape=(7,))),
    "cnn": ({"channels": [4, 6]}, dataset(shape=(3, 9, 8))),
    "resnet8": ({}, dataset(shape=(3, 8, 8))),
    "resnet18": ({}, dataset(shape=(1, 4, 4))),
    "cnn1d": ({"channels": [4, 6]}, dataset(shape=(6, 17))),
    "char_gru": ({"embedding": 3, "hidden": 4}, dataset("tokens", (9,))),
    "char_transformer": ({"width": 8, "heads": 2}, dataset("tokens", (9,))),
}


def test_every_provided_model_is_tried_here():
    assert set(NAMES) == set(SETTINGS) | {"torchvision/NAME"}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_choices_in_conf_are_the_defaults(name, repo):
    text = (repo / "conf" / "model" / f"{name}.yaml").read_text(encoding="utf-8")
    section = TypeAdapter(ModelConfig).validate_python(OmegaConf.to_object(OmegaConf.create(text)))
    data = SETTINGS[name][1]
    built, default = (build(model, data, 0).state_dict() for model in (section, {"name": name}))
    assert list(built) == list(default) and all(torch.equal(built[key], default[key]) for key in built)


# Sizes.


@pytest.mark.parametrize(
    ("model", "data", "by_hand"),
    [
        ({"name": "linear"}, dataset("regression", (7,), 1), 7),
        ({"name": "logistic"}, dataset(shape=(1, 28, 28), num_classes=10), 10 * 784 + 10),
        ({"name": "mlp"}, dataset(shape=(1, 28, 28), num_classes=10), (784 + 1) * 128 + (128 + 1) * 10),
        ({"name": "mlp", "hidden": [3, 4]}, dataset(shape=(2,)), (2 + 1) * 3 + (3 + 1) * 4 + (4 + 1) * 5),
        ({"name": "mlp", "hidden": []}, dataset("regression", (2,), 1), 3),
        # Two poolings leave 7 x 7 of 28 x 28, and 8 x 8 of 32 x 32.
        (
            {"name": "cnn"},
            dataset(shape=(1, 28, 28), num_classes=10),
            (9 + 1) * 16 + (9 * 16 + 1) * 32 + (32 * 49 + 1) * 10,
        ),
        (
            {"name": "cnn"},
            dataset(shape=(3, 32, 32), num_classes=10),
            (27 + 1) * 16 + (9 * 16 + 1) * 32 + (32 * 64 + 1) * 10,
        ),
        # Stem; stage 16; stages 32 and 64 with projected shortcuts; each norm has two numbers per channel.
        (
            {"name": "resnet8"},
            dataset(shape=(3, 32, 32), num_classes=10),
            (27 * 16 + 32)
            + 2 * (9 * 16 * 16 + 32)
            + (9 * 16 * 32 + 64)
            + (9 * 32 * 32 + 64)
            + (16 * 32 + 64)
            + (9 * 32 * 64 + 128)
            + (9 * 64 * 64 + 128)
            + (32 * 64 + 128)
            + (64 + 1) * 10,
        ),
        # As counted everywhere for ResNet-18 with a 3x3 stem and ten classes.
        ({"name": "resnet18"}, dataset(shape=(3, 32, 32), num_classes=10), 11_173_962),
        (
            {"name": "cnn1d"},
            dataset(shape=(6, 128), num_classes=6),
            (5 * 6 + 1) * 32 + (5 * 32 + 1) * 64 + (64 + 1) * 6,
        ),
        ({"name": "char_gru"}, dataset("tokens", (80,), 75), 75 * 8 + 3 * 128 * (8 + 128 + 2) + 129 * 75),
        # A block of width w: two norms 4w, attention 4(w^2 + w), perceptron 8w^2 + 5w.
        (
            {"name": "char_transformer"},
            dataset("tokens", (80,), 75),
            75 * 64 + 80 * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64 + 65 * 75,
        ),
    ],
)
def test_number_of_parameters_is_the_one_counted_by_hand(model, data, by_hand):
    module = build(model, data, seed=0)
    assert sum(p.numel() for p in module.parameters()) == by_hand
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert not list(module.buffers())


def test_logistic_and_linear_start_at_zero_with_weight_then_bias():
    named = list(build({"name": "logistic"}, dataset(shape=(1, 3, 2)), 0).named_parameters())
    assert [(name, tuple(p.shape)) for name, p in named] == [("weight", (5, 6)), ("bias", (5,))]
    assert all((p == 0).all() for _, p in named)
    (weight,) = build({"name": "linear"}, SETTINGS["linear"][1], 0).parameters()
    assert weight.shape == (1, 7) and (weight == 0).all()


# Three ways, one result.


def loss_of(outputs, y):
    if outputs.shape[-1] == 1:
        return 0.5 * ((outputs.squeeze(-1) - y) ** 2).mean()
    return F.cross_entropy(outputs.flatten(0, -2), y.flatten())


def three_ways(name, dtype, clients=2):
    """Gradients and Hessian-vector products of a few clients, each from a module alone and from a stack.

    Returns two dicts of flat results (clients, d): by the way of computing, "alone" the reference.
    """
    options, data = SETTINGS[name]
    module = build({"name": name, **options}, data, seed=3).to(dtype)
    g = torch.Generator().manual_seed(4)
    names = [key for key, _ in module.named_parameters()]
    stack = {}
    for key, p in module.named_parameters():
        noise = torch.randn(clients, *p.shape, generator=g, dtype=torch.float64) * 0.1
        stack[key] = (p.detach() + noise).to(dtype)
    v = {key: torch.randn(p.shape, generator=g, dtype=torch.float64).to(dtype) for key, p in stack.items()}
    rows = torch.stack([torch.randperm(data.num_examples, generator=g)[:3] for _ in range(clients)])
    x, y = data.x[rows], data.y[rows]
    if data.kind != "tokens":
        x = x.to(dtype)
    if data.kind == "regression":
        y = y.to(dtype)

    gradients, products = [], []
    for client in range(clients):
        with torch.no_grad():
            for key, p in module.named_parameters():
                p.copy_(stack[key][client])
        parameters = list(module.parameters())
        first = torch.autograd.grad(loss_of(module(x[client]), y[client]), parameters, create_graph=True)
        dot = sum((a * v[key][client]).sum() for a, key in zip(first, names, strict=True))
        if dot.requires_grad:
            second = torch.autograd.grad(dot, parameters, materialize_grads=True)
        gradients.append(torch.cat([a.detach().flatten() for a in first]))
        products.append(torch.cat([a.flatten() for a in second]))

    def loss(p, x, y):
        return loss_of(functional_call(module, p, (x,)), y)

    def forward_over_reverse(p, x, y, v):
        return jvp(lambda q: grad(loss)(q, x, y), (p,), (v,))[1]

    def reverse_twice(p, x, y, v):
        def dot(q):
            first = grad(loss)(q, x, y)
            return sum((first[key] * v[key]).sum() for key in first)

        return grad(dot)(p)

    def flat(tree):
        return torch.cat([tree[key].detach().flatten(1) for key in names], 1)

    return (
        {"alone": torch.stack(gradients), "stacked": flat(vmap(grad(loss))(stack, x, y))},
        {
            "alone": torch.stack(products),
            "forward over reverse": flat(vmap(forward_over_reverse)(stack, x, y, v)),
            "reverse twice": flat(vmap(reverse_twice)(stack, x, y, v)),
        },
    )


def distance(result, reference):
    """The largest difference in units of the largest number of the reference, the worst client."""
    return ((result - reference).abs().amax(1) / reference.abs().amax(1)).max().item()


@pytest.mark.parametrize("name", SETTINGS)
def test_alone_stacked_and_differentiated_twice_agree_to_rounding(name):
    for results in three_ways(name, torch.float64):
        assert results["alone"].abs().amax(1).min() > 1e-3  # there is something to compare
        for way, result in results.items():
            assert distance(result, results["alone"]) < 1e-12, way


@pytest.mark.parametrize("name", SETTINGS)
def test_float32_agrees_within_the_rounding_of_other_kernels(name):
    # Kernels for stacks add in another order. One sum of a few hundred terms is then off by a few units of
    # 2^-24 = 6e-8; through the layers, and twice for Hessian-vector products, that grows to some 1e-6. (A
    # near tie in max pooling can flip and cost more; these draws have none.)
    for results in three_ways(name, torch.float32):
        for way, result in results.items():
            assert result.dtype == torch.float32
            assert distance(result, results["alone"]) < 1e-5, way


# Against closed forms and other implementations.


def test_logistic_gradient_is_the_closed_form():
    data = dataset(shape=(2, 3), num_classes=4)
    module = build({"name": "logistic"}, data, 0).double()
    x, y = data.x.double(), data.y
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-1, 1, 24).reshape(4, 6))
        module.bias.copy_(torch.linspace(0.5, -0.5, 4))
    loss_of(module(x), y).backward()
    flat = x.flatten(1)
    error = torch.softmax(flat @ module.weight.T + module.bias, 1) - F.one_hot(y, 4)
    torch.testing.assert_close(module.weight.grad, error.T @ flat / len(x), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(module.bias.grad, error.mean(0), rtol=1e-13, atol=1e-15)


def test_linear_gradient_is_the_closed_form():
    data = SETTINGS["linear"][1]
    module = build({"name": "linear"}, data, 0).double()
    x, y = data.x.double(), data.y.double()
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-1, 1, 7))
    loss_of(module(x), y).backward()
    torch.testing.assert_close(module.weight.grad, (x @ module.weight[0] - y)[None] @ x / len(x))


def test_recurrence_equals_torch_gru():
    torch.manual_seed(0)
    ours, theirs = GRU(3, 4).double(), nn.GRU(3, 4, batch_first=True).double()
    with torch.no_grad():
        for (_, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            b.copy_(a)
    x = torch.randn(2, 11, 3, dtype=torch.float64)
    results = []
    for output, module in ((ours(x), ours), (theirs(x)[0], theirs)):
        gradients = torch.autograd.grad((output**3).sum(), list(module.parameters()))
        results.append([output, *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_attention_equals_torch_scaled_dot_product_attention():
    torch.manual_seed(0)
    module = Attention(8, 2).double()
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    query, key, value = (part.reshape(3, 7, 2, 4).transpose(1, 2) for part in module.project(x).chunk(3, -1))
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected = module.output(attended.transpose(1, 2).reshape(3, 7, 8))
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["char_gru", "char_transformer"])
def test_no_logit_looks_into_the_future(name):
    options, data = SETTINGS[name]
    module = build({"name": name, **options}, data, 0)
    other = data.x.clone()
    other[:, 5] = (other[:, 5] + 1) % data.num_classes
    before, after = module(data.x), module(other)
    assert torch.equal(before[:, :5], after[:, :5])
    assert ((before - after)[:, 5:].abs().amax(-1) > 0).all()


def test_pooling_before_relu_is_pooling_after_relu():
    options, data = SETTINGS["cnn"]
    module = build({"name": "cnn", **options}, data, 0)
    conv1, _, _, conv2, _, _, flatten, output = module
    x = F.max_pool2d(F.relu(conv1(data.x)), 2)
    x = F.max_pool2d(F.relu(conv2(x)), 2)
    assert torch.equal(module(data.x), output(flatten(x)))


# Initial weights.


def bits(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(
    "name", [name for name in SETTINGS if name not in ("linear", "logistic", "resnet18")]
)
def test_initial_weights_belong_to_the_seed_alone(name):
    options, data = SETTINGS[name]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = bits(build({"name": name, **options}, data, 7))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, bits(build({"name": name, **options}, data, 7)))
    assert not torch.equal(first, bits(build({"name": name, **options}, data, 8)))
