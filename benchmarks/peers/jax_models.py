"""The works' models as functions of a dictionary of parameters, for the peers that use JAX; PyTorch's names."""

import jax
import jax.numpy as jnp


def params_of(initial):
    return {name: jnp.asarray(value) for name, value in initial.items()}


def _pooled(x, weight, bias):
    """relu(maxpool(conv(x))), channels last, which XLA's CPU convolutions prefer."""
    x = jax.lax.conv_general_dilated(
        x, weight.transpose(2, 3, 1, 0), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.lax.reduce_window(x + bias, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jax.nn.relu(x)


def logits(p, model, x):
    """(batch, 10) of x (batch, 1, 28, 28)."""
    if model == "logistic":
        return x.reshape(len(x), -1) @ p["weight"].T + p["bias"]
    if model == "mlp":
        hidden = jax.nn.relu(x.reshape(len(x), -1) @ p["1.weight"].T + p["1.bias"])
        return hidden @ p["3.weight"].T + p["3.bias"]
    if model == "cnn":
        x = _pooled(x.transpose(0, 2, 3, 1), p["0.weight"], p["0.bias"])
        x = _pooled(x, p["3.weight"], p["3.bias"])
        return x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ p["7.weight"].T + p["7.bias"]
    raise NotImplementedError(f"{model} is not written in JAX")


def loss(p, model, x, y):
    """Mean cross entropy."""
    log_p = jax.nn.log_softmax(logits(p, model, x))
    return -jnp.take_along_axis(log_p, y[:, None], 1).mean()
