"""Stacks of fully connected networks without autograd: the gradient by hand, one product per layer and direction.

For a network h_l = relu(W_l h_(l-1) + b_l) with logits z = W_L h_(L-1) + b_L the gradient of the mean loss is

    delta_L = (softmax(z) - onehot(y)) / B,     or (z - y) / B for half the squared error
    dW_l = delta_l^T h_(l-1),   db_l = sum_batch delta_l,   delta_(l-1) = (delta_l W_l) * [h_(l-1) > 0]

with every product a batched one over the clients of the stack. The Hessian's product with a vector is the derivative of
all that along the vector (Pearlmutter 1994, Fast Exact Multiplication by the Hessian, the R-operator): for weights that
move by V_l, R z_l = W_l R h_(l-1) + V_l h_(l-1), and so on. Autograd's dispatch costs more than the arithmetic of such
networks; Looped and Stacked prove the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, Array, Structure, c_double, c_int64, c_void_p
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedscale_local import native, outbox
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


def make(task: Task, linear: list[nn.Linear], is_compiled: bool) -> Dense:
    """The stacked oracle of a network of these layers, the fastest that there is."""
    # C would write beside a row that has no place for a label.
    has_all_labels = linear[-1].out_features >= (task.dataset.num_classes or 0)
    return Compiled(task, linear) if is_compiled and has_all_labels else Dense(task, linear)


class How(NamedTuple):
    """What becomes of a vector: keep times it, plus scale times its gradient."""

    keep: float
    scale: float


class Dense(Stacked):
    """The stacked oracle of a fully connected network."""

    def __init__(self, task: Task, linear: list[nn.Linear]) -> None:
        super().__init__(task)
        starts, places = iter(task.layout.starts), []
        for layer in linear:
            places.append((next(starts), None if layer.bias is None else next(starts), *layer.weight.shape))
        self.places = places

    def _weights(self, v: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Each layer's weight (clients, out, in) and bias (clients, out), views of the stack."""
        (count, _), (stride, _), start = v.shape, v.stride(), v.storage_offset()
        return [
            (
                v.as_strided((count, rows, columns), (stride, columns, 1), start + weight),
                None if bias is None else v.as_strided((count, rows), (stride, 1), start + bias),
            )
            for weight, bias, rows, columns in self.places
        ]

    def gradient(self, v: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(v)
        return self._walk(v, gradient, batch, How(self.task.weight_decay, 1.0)), gradient

    def descend(self, v: Tensor, batch: Batch, step_size: float, d_hat: Tensor | None = None) -> Tensor:
        """The product that gives a weight's gradient adds it to the weight as well: so it is never written anywhere."""
        if d_hat is not None:
            return super().descend(v, batch, step_size, d_hat)
        return self._walk(v, v, batch, How(1.0 - step_size * self.task.weight_decay, -step_size))

    @torch.no_grad()
    def _walk(self, v: Tensor, to: Tensor, batch: Batch, how: How) -> Tensor:
        """The loss at v (clients,), and to <- keep * v + scale * its gradient (clients, d), which may be in v's place.

        What is not kept is not read, so it may be no number.
        """
        weights = self._weights(v)
        places = weights if to is v else self._weights(to)
        hidden = [batch.x.flatten(2)]
        for level, (weight, bias) in enumerate(weights, start=1):
            hidden.append(_affine(hidden[-1] @ weight.mT, bias, is_hidden=level < len(weights)))
        loss, delta = self._loss(hidden[-1], batch)
        for level in reversed(range(len(weights))):
            (weight, bias), (to_weight, to_bias) = weights[level], places[level]
            if level + 1 < len(weights):
                delta.mul_(hidden[level + 1].sign())
            if bias is not None and to_bias is not None:
                total = delta.sum(1).mul_(how.scale)
                to_bias.copy_(total.add_(bias, alpha=how.keep) if how.keep else total)
            before = delta @ weight if level else delta
            torch.baddbmm(weight, delta.mT, hidden[level], beta=how.keep, alpha=how.scale, out=to_weight)
            delta = before
        return loss

    @torch.no_grad()
    def hessian_vector(self, v: Tensor, batch: Batch, z: Tensor) -> Tensor:
        product = torch.empty_like(v)
        layers = list(
            zip(self._weights(v), self._weights(z.expand_as(v)), self._weights(product), strict=True)
        )
        hidden, moved = [batch.x.flatten(2)], list[Tensor | None]([None])
        for level, ((weight, bias), (along, bias_along), _) in enumerate(layers, start=1):
            change = hidden[-1] @ along.mT
            if bias_along is not None:
                change.add_(bias_along.unsqueeze(1))
            if (before := moved[-1]) is not None:
                change.baddbmm_(before, weight.mT)
            hidden.append(_affine(hidden[-1] @ weight.mT, bias, is_hidden=level < len(layers)))
            moved.append(change if level == len(layers) else change.mul_(hidden[-1].sign()))
        delta, change = self._loss_along(hidden[-1], batch, change)
        for level in reversed(range(len(layers))):
            (weight, _), (along, _), (to, to_bias) = layers[level]
            torch.bmm(change.mT, hidden[level], out=to)
            if (before := moved[level]) is not None:
                to.baddbmm_(delta.mT, before)
            if to_bias is not None:
                to_bias.copy_(change.sum(1))
            if level:
                is_on = hidden[level].sign()
                change = (change @ weight).baddbmm_(delta, along).mul_(is_on)
                delta = (delta @ weight).mul_(is_on)
        return self._decayed(product, z)

    def _loss_along(self, outputs: Tensor, batch: Batch, change: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative of the mean loss with respect to the outputs, and how it changes as they change so."""
        turned = change * _share_of(batch, outputs)
        if self.task.dataset.kind == "classification":
            powers = outputs.softmax(-1)
            turned = powers * (turned - (powers * turned).sum(-1, keepdim=True))
        return self._loss(outputs, batch)[1], turned

    def _loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean loss (clients,) and its derivative with respect to the outputs (clients, B, outputs)."""
        share = _share_of(batch, outputs)
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


class _Network(Structure):
    """What dense.c is told of the networks and their mini-batches."""

    _fields_ = (
        ("layers", c_void_p),
        *((name, c_int64) for name in ("depth", "clients", "size", "inputs", "has_labels")),
        *((name, c_void_p) for name in ("examples", "numbers", "targets", "shares", "room")),
    )


class Compiled(Dense):
    """The same with a client's derivative as one walk in C, forward and backward.

    The x of its batches (clients, B) are the numbers of the examples, where the task has all of them in memory.
    """

    divides = True

    def __init__(self, task: Task, linear: list[nn.Linear]) -> None:
        super().__init__(task, linear)
        self.native = native.library("dense", task.dtype)
        vectors: list[Any] = [*[c_void_p] * 5, *[c_int64] * 4, *[c_double] * 2]
        self.native.steps.argtypes = [POINTER(_Network), c_int64, *vectors]
        self.native.along.argtypes = [POINTER(_Network), *[c_void_p] * 3, *[c_int64] * 2]
        self.layers = torch.tensor(
            [(weight, -1 if bias is None else bias, units) for weight, bias, units, _ in self.places]
        )
        units = self.layers[:, 2]
        self.room = self.places[0][-1] + 2 * int(units.sum() + units.max())
        self.inverse: tuple[Tensor, Tensor] | None = None
        """The D-hat of the last step, and one divided by it."""

    def _inputs(self, index: Tensor) -> Tensor:
        return super()._inputs(index) if self.task.resident is None else index

    def start(self, x: Tensor) -> Tensor:
        return self.empty_like(x).copy_(x)

    def empty_like(self, v: Tensor) -> Tensor:
        """Each client's vector begins at a cache line: a load that goes over two is slow."""
        (count, size), line = v.shape, LINE // v.itemsize
        return outbox.empty((count, -(-size // line) * line), v.dtype)[:, :size]

    def _map(self, function: Any, v: Tensor, batch: Batch, *more: Tensor, **options: Any) -> Any:
        if not batch.x.is_floating_point():
            x = self.task.inputs_of(batch.x.flatten()).unflatten(0, batch.x.shape)
            batch = replace(batch, x=x)
        return super()._map(function, v, batch, *more, **options)

    def descend_all(
        self,
        x: Tensor,
        batches: Iterable[Batch],
        losses: Tensor,
        step_size: float,
        d_hat: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> Tensor:
        """A client takes so many steps before the next one does, so its parameters stay in the cache.

        The first step is the copy: from x, which most often is one vector for all of them, to the client's own.
        """
        if self.task.weight_decay and not (d_hat is None and gradient is None):
            return super().descend_all(x, batches, losses, step_size, d_hat, gradient)
        v, inverse = self.empty_like(x), None
        if d_hat is not None:  # it is the same for a round, where all clients share it
            if self.inverse is None or self.inverse[0] is not d_hat:
                self.inverse = d_hat, d_hat.reciprocal()
            inverse = self.inverse[1].expand_as(x)
        how, batches = How(1.0 - step_size * self.task.weight_decay, -step_size), iter(batches)
        together = 1 if self.task.resident is None else STEPS
        while some := list(islice(batches, together)):
            self._steps(x, v, some, losses, how, inverse, gradient)
            x, gradient = v, None
        return v

    def _walk(self, v: Tensor, to: Tensor, batch: Batch, how: How) -> Tensor:
        losses = v.new_zeros(len(v))
        self._steps(v, to, [batch], losses, how)
        return losses

    def _steps(
        self,
        v: Tensor,
        to: Tensor,
        batches: Sequence[Batch],
        losses: Tensor,
        how: How,
        inverse: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> None:
        """`_walk`, with the losses added up.

        inverse (clients, d): what gradients are multiplied by, entry by entry. gradient (clients, d): where it is
        given, it becomes the first batch's.
        """
        vectors = (v, inverse, to, gradient)
        strides = [0 if vector is None else vector.stride(0) for vector in vectors]
        with self._networks(batches) as networks:
            self.native.steps(networks, len(batches), *map(_pointer, (*vectors, losses)), *strides, *how)

    def hessian_vector(self, v: Tensor, batch: Batch, z: Tensor) -> Tensor:
        product = self.empty_like(v)
        with self._networks([batch]) as networks:
            self.native.along(networks, *map(_pointer, (v, z, product)), v.stride(0), product.stride(0))
        return self._decayed(product, z)

    @contextmanager
    def _networks(self, batches: Sequence[Batch]) -> Iterator[Array[_Network]]:
        """As C takes them; what they point to is there until this ends."""
        room = torch.empty(max(batch.y.shape[1] for batch in batches) * self.room, dtype=self.task.dtype)
        told = [self._told(batch) for batch in batches]
        layers, depth, inputs = _pointer(self.layers), len(self.places), self.places[0][-1]
        networks = [
            _Network(
                layers,
                depth,
                *y.shape,
                inputs,
                not y.is_floating_point(),
                *map(_pointer, (x, rows, y, shares, room)),
            )
            for x, rows, y, shares in told
        ]
        yield (_Network * len(networks))(*networks)

    def _told(self, batch: Batch) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
        """Examples, which of them are in the batch (None: all, as they lie), targets, and shares of the mean."""
        shares = None if batch.mask is None else _shares(batch.mask)
        x, y = batch.x.contiguous(), batch.y.contiguous()
        return (x, None, y, shares) if x.is_floating_point() else (self.task.resident, x, y, shares)


LINE = 64
"""Bytes in a line of the cache."""
STEPS = 64
"""Mini-batches that are looked up before the first of them is walked over, where they are numbers of examples."""


def _affine(z: Tensor, bias: Tensor | None, is_hidden: bool) -> Tensor:
    """z + bias, and the ReLU of that in a hidden layer, in z's place (clients, B, units)."""
    z = z if bias is None else z.add_(bias.unsqueeze(1))
    return z.relu_() if is_hidden else z


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _share_of(batch: Batch, outputs: Tensor) -> float | Tensor:
    """What each example counts in its client's mean, for outputs (clients, B, units)."""
    return 1.0 / outputs.shape[1] if batch.mask is None else _shares(batch.mask).unsqueeze(-1)


def _shares(mask: Tensor) -> Tensor:
    """What each example of a padded batch counts in its client's mean, (clients, B)."""
    return mask / mask.sum(1, keepdim=True)
