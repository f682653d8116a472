"""Stacks of fully connected networks without autograd: the gradient by hand, one product per layer and direction.

For a network h_l = relu(W_l h_(l-1) + b_l) with logits z = W_L h_(L-1) + b_L the gradient of the mean loss is

    delta_L = (softmax(z) - onehot(y)) / B,     or (z - y) / B for half the squared error
    dW_l = delta_l^T h_(l-1),   db_l = sum_batch delta_l,   delta_(l-1) = (delta_l W_l) * [h_(l-1) > 0]

with every product a batched one over the clients of the stack. Autograd's dispatch costs more than the arithmetic of
such networks; Looped and Stacked prove the result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedscale_local.models.dense import Affine
from fedscale_local.tasks import Batch, Stacked, Task


def layers(task: Task) -> list[nn.Linear] | None:
    """The linear layers of a network of the form [Flatten] Linear (ReLU Linear)*; None for any other."""
    if task.dataset.kind == "tokens" or task.buffer_layout.names:
        return None
    parts = list(task.module) if type(task.module) is nn.Sequential else [task.module]
    if parts and type(parts[0]) is nn.Flatten and parts[0].start_dim == 1 and parts[0].end_dim == -1:
        parts = parts[1:]
    linear, between = parts[::2], parts[1::2]
    is_dense = (
        len(parts) % 2 == 1
        and all(type(part) in (nn.Linear, Affine) for part in linear)
        and all(type(part) is nn.ReLU for part in between)
        and all(p.requires_grad for p in task.module.parameters())
    )
    return [part for part in linear if isinstance(part, nn.Linear)] if is_dense else None


class Dense(Stacked):
    """The stacked oracle of a fully connected network; Hessian products stay with torch.func."""

    def __init__(self, task: Task, linear: list[nn.Linear]) -> None:
        super().__init__(task)
        self.has_bias = [layer.bias is not None for layer in linear]

    def _weights(self, v: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Each layer's weight (clients, out, in) and bias (clients, out), views of the stack."""
        views = iter(self.task.layout.split(v).values())
        return [(next(views), next(views) if has_bias else None) for has_bias in self.has_bias]

    @torch.no_grad()
    def gradient(self, v: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        weights = self._weights(v)
        hidden = [batch.x.flatten(2)]
        for weight, bias in weights:
            z = hidden[-1] @ weight.mT
            hidden.append(z if bias is None else z.add_(bias.unsqueeze(1)))
            if len(hidden) <= len(weights):
                hidden[-1].relu_()
        loss, delta = self._loss(hidden[-1], batch)
        gradient = torch.empty_like(v)
        parts = self._weights(gradient)
        for level in reversed(range(len(weights))):
            d_weight, d_bias = parts[level]
            torch.bmm(delta.mT, hidden[level], out=d_weight)
            if d_bias is not None:
                torch.sum(delta, dim=1, out=d_bias)
            if level:
                delta = (delta @ weights[level][0]).mul_(hidden[level].sign())
        return loss, self._decayed(gradient, v)

    def _loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean loss (clients,) and its derivative with respect to the outputs (clients, B, outputs)."""
        share: float | Tensor = 1.0 / outputs.shape[1]
        if batch.mask is not None:
            share = (batch.mask / batch.mask.sum(1, keepdim=True)).unsqueeze(-1)
        if self.task.dataset.kind == "regression":
            residual = outputs - batch.y.unsqueeze(-1)
            return (0.5 * residual**2 * share).sum((1, 2)), residual * share
        # log_softmax takes three times as long over a handful of classes.
        labels = batch.y.unsqueeze(-1)
        logits = outputs - outputs.amax(-1, keepdim=True)
        picked, powers = logits.gather(-1, labels), logits.exp_()
        total = powers.sum(-1, keepdim=True)
        loss = total.log().sub_(picked).mul_(share).sum((1, 2))
        delta = powers.div_(total).scatter_add_(-1, labels, total.new_full(labels.shape, -1.0))
        return loss, delta.mul_(share)
