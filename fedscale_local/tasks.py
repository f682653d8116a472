"""A task: what a model's outputs cost, and the derivatives of that cost for one client or for a stack.

`Looped` computes one client at a time on one reused module whose parameters are views of a flat buffer. It is the
reference. `Stacked` computes many clients at once with torch.func on a stack (clients, d). Both are oracles in the
sense of curvature.py and agree but for the rounding of other kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.rnn import pad_sequence

from fedscale_local.client_step import LocalResult
from fedscale_local.curvature import Batch, Oracle
from fedscale_local.data.dataset import Dataset, inputs
from fedscale_local.scaling import Memory
from fedscale_local.vector import Layout

RESIDENT_BYTES = 256 * 2**20
"""Up to this size a training set is kept as the model sees it, and not turned from bytes at every step."""
EVALUATED_NUMBERS = 400_000
"""Of inputs that are evaluated at once; what a network of convolutions makes of them is many times as large."""


def losses(kind: str, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per example: the sum of the losses, of the correct answers, and the number of predictions, each (B,).

    classification: cross entropy of logits (B, classes) and labels (B,).  tokens: the same at each of T positions,
    where a target of -1 does not count.  regression: half the squared error of (B, 1) against (B,).
    """
    if kind == "regression":
        half_square = 0.5 * (outputs.squeeze(-1) - y) ** 2
        return half_square, torch.zeros_like(half_square), torch.ones_like(half_square)
    if kind == "tokens":
        counted = (y >= 0).to(outputs.dtype)
        loss = F.cross_entropy(outputs.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="none")
        correct = (outputs.argmax(-1) == y).to(outputs.dtype)
        return loss.view_as(counted).sum(-1), correct.sum(-1), counted.sum(-1)
    loss = F.cross_entropy(outputs, y, reduction="none")
    return loss, (outputs.argmax(-1) == y).to(outputs.dtype), torch.ones_like(loss)


def mean_loss(kind: str, outputs: Tensor, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mini-batch loss, a mean over predictions, and their number."""
    loss, _, count = losses(kind, outputs, y)
    if mask is not None:
        loss, count = loss * mask, count * mask
    num_predictions = count.sum()
    return loss.sum() / num_predictions.clamp(min=1), num_predictions


def sampled_targets(kind: str, outputs: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """Targets drawn from the model's own output: y's shape and kind; noise uniform in [0, 1), normal for regression."""
    outputs = outputs.detach()
    if kind == "regression":
        return outputs.squeeze(-1) + noise
    cumulative = outputs.softmax(-1).cumsum(-1)
    drawn = (noise.unsqueeze(-1) >= cumulative).sum(-1).clamp(max=outputs.shape[-1] - 1)
    return torch.where(y >= 0, drawn, y)


class Task:
    """A model, its data set's kind of loss, and the layout of its parameters.

    module: moved to `dtype`; its parameters that require a gradient are the flat vector (d,), its floating-point
    buffers (BatchNorm statistics) travel beside it and are averaged, never scaled.
    weight_decay: adds (weight_decay / 2) |v|^2 to every local objective and so to all of its derivatives; reported
    losses are without it.
    """

    def __init__(
        self, module: nn.Module, dataset: Dataset, dtype: torch.dtype, weight_decay: float = 0.0
    ) -> None:
        self.module = module.to(dtype)
        self.dataset, self.dtype, self.weight_decay = dataset, dtype, weight_decay
        # How the engine has chosen to compute it: see `become`.
        self.is_compiled, self.memory_format, self.precision = False, "channels_last", "full"
        self.device = torch.device("cpu")
        self.layout = Layout.of((n, p) for n, p in self.module.named_parameters() if p.requires_grad)
        persistent = self.module.state_dict().keys()
        self.buffer_layout = Layout.of(
            (n, b) for n, b in self.module.named_buffers() if b.is_floating_point() and n in persistent
        )
        # A client's steps count batches, for one; whoever computed it, that is no part of the result.
        self.untrained = {
            n: t.clone() for n, t in self.module.state_dict().items() if not t.is_floating_point()
        }
        self.initial_params = self.layout.join(dict(self.module.named_parameters())).detach().clone()
        self.initial_buffers = (
            self.buffer_layout.join(dict(self.module.named_buffers())).clone()
            if self.buffer_layout.names
            else torch.zeros(0, dtype=dtype)
        )

    def to(self, device: torch.device) -> None:
        """Compute there from now on. What travels, `initial_params` too, is in host memory wherever that is."""
        if device != self.device:
            self.device = device
            self.module.to(device)
            self._forget("looped", "stacked", "resident", "stored", "labels")

    def become(self, is_compiled: bool, memory_format: str, precision: str = "full") -> None:
        """Compute in this way from now on.

        is_compiled: what dense.Compiled is for. memory_format: of images, "channels_last" or "contiguous". precision:
        of products in the forward pass, "full" or "bfloat16".
        """
        self.is_compiled, self.memory_format, self.precision = is_compiled, memory_format, precision
        self._forget("stacked", "resident")

    def _forget(self, *made: str) -> None:
        for name in made:
            self.__dict__.pop(name, None)

    def there(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; nobody waits until it has arrived."""
        return tensor.to(self.device, non_blocking=True)

    def outputs(self, x: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        """The module's outputs for inputs x, with its own parameters or with these, by name.

        With bfloat16 torch.autocast decides which operations take it; parameters, gradients and outputs have `dtype`.
        """
        mixed: AbstractContextManager[Any] = nullcontext()
        if self.precision == "bfloat16":
            mixed = torch.autocast(self.device.type, torch.bfloat16)
        with mixed:
            outputs = (
                self.module(x) if params is None else torch.func.functional_call(self.module, params, (x,))
            )
        return outputs.to(self.dtype)

    @cached_property
    def is_random(self) -> bool:
        """Does a forward pass draw random numbers (dropout)?"""
        return any(isinstance(m, _DropoutNd) and m.p > 0 for m in self.module.modules())

    @cached_property
    def is_stackable(self) -> bool:
        """Can clients be stacked? Not with running statistics, which a forward pass changes, nor with dropout."""
        running = (isinstance(m, _NormBase) and m.track_running_stats for m in self.module.modules())
        return not self.is_random and not any(running)

    @cached_property
    def numbers_per_example(self) -> int:
        """Numbers that the forward pass of one more example leaves for the backward pass."""
        kept: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            kept[-1] += tensor.numel()
            return tensor

        for rows in ([0], [0, 0]):
            kept.append(0)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                self.module(self.inputs(self.there(self.dataset.x[rows])))
        return kept[1] - kept[0]

    @cached_property
    def looped(self) -> Looped:
        return Looped(self)

    @cached_property
    def stacked(self) -> Stacked:
        from fedscale_local import dense

        linear = dense.layers(self) if self.precision == "full" else None
        return Stacked(self) if linear is None else dense.make(self, linear, self.is_compiled)

    @cached_property
    def reads_images(self) -> bool:
        """Does a convolution read images?"""
        is_image = self.dataset.kind != "tokens" and len(self.dataset.input_shape) == 3
        return is_image and any(isinstance(m, nn.Conv2d) for m in self.module.modules())

    @property
    def takes_channels_last(self) -> bool:
        return self.memory_format == "channels_last" and self.reads_images

    def inputs(self, x: Tensor) -> Tensor:
        """What the model sees of stored examples x; it may lie in the same memory."""
        seen = inputs(self.dataset, x, self.dtype)
        return _channels_last(seen) if self.takes_channels_last else seen

    @cached_property
    def resident(self) -> Tensor | None:
        """All training inputs as the model sees them, in the order of memory, where that is not too much to keep."""
        if self.dataset.x.numel() * self.dtype.itemsize > RESIDENT_BYTES:
            return None
        seen = self.inputs(self.there(self.dataset.x))
        return seen.movedim(1, -1) if self.takes_channels_last else seen

    @cached_property
    def stored(self) -> Tensor:
        """All training inputs as they are stored, on the device."""
        return self.there(self.dataset.x)

    @cached_property
    def labels(self) -> Tensor:
        """All training targets, on the device."""
        return self.targets(self.there(self.dataset.y))

    def examples(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the training examples `indices` (B,), in host memory or on the device."""
        indices = self.there(indices)
        return self.inputs_of(indices), self.labels.index_select(0, indices)

    def inputs_of(self, indices: Tensor) -> Tensor:
        """What the model sees of the training examples `indices` (B,), which are on the device."""
        if self.resident is None:
            return self.inputs(self.stored[indices])
        x = self.resident.index_select(0, indices)  # by index alone it would take twice as long
        return x.movedim(-1, 1) if self.takes_channels_last else x

    def targets(self, y: Tensor) -> Tensor:
        return y.to(self.dtype) if self.dataset.kind == "regression" else y

    def noise(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """The draws for sampled_targets, as y."""
        draw = torch.randn if self.dataset.kind == "regression" else torch.rand
        return draw(y.shape, generator=generator, dtype=torch.float64).to(self.dtype)

    @torch.no_grad()
    def evaluate(self, params: Tensor, buffers: Tensor, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        """Mean loss and accuracy (None for regression) over examples x, y, which may be many."""
        total = torch.zeros(3, dtype=torch.float64)
        for _, parts in self._parts(params, buffers, x, y):
            total += torch.stack([values.sum(dtype=torch.float64) for values in parts]).cpu()
        loss, correct, count = total.tolist()
        return loss / count, None if self.dataset.kind == "regression" else correct / count

    @torch.no_grad()
    def evaluate_each(
        self, params: Tensor, buffers: Tensor, x: Tensor, y: Tensor, owner: Tensor, num_clients: int
    ) -> Tensor:
        """Mean loss and accuracy of each client over its own of the examples x, y, (2, clients) float64.

        owner: (n,) int64, the client of each example, num_clients for nobody's. NaN for a client without examples.
        """
        total = torch.zeros(3, num_clients + 1, dtype=torch.float64)
        for part, parts in self._parts(params, buffers, x, y):
            total.index_add_(1, owner[part], torch.stack([values.double() for values in parts]).cpu())
        return total[:2, :num_clients] / total[2, :num_clients]

    def _parts(
        self, params: Tensor, buffers: Tensor, x: Tensor, y: Tensor
    ) -> Iterator[tuple[slice, tuple[Tensor, Tensor, Tensor]]]:
        """Which examples, and their `losses`, a chunk at a time."""
        module = self.looped.load(params, buffers).eval()
        chunk = max(1, min(1024, EVALUATED_NUMBERS // max(1, x[:1].numel())))
        for start in range(0, len(x), chunk):
            part = slice(start, start + chunk)
            outputs = module(self.inputs(self.there(x[part].clone())))  # a module may change what it is given
            yield part, losses(self.dataset.kind, outputs, self.targets(self.there(y[part])))

    def named(self, params: Tensor, buffers: Tensor) -> dict[str, Tensor]:
        """Parameters and buffers by name, as load_state_dict takes them; what nobody trains is as it was built."""
        averaged = self.layout.split(params) | self.buffer_layout.split(buffers)
        rest = {n: t.cpu() for n, t in self.module.state_dict().items() if n not in averaged}
        return averaged | rest | self.untrained


def _channels_last(images: Tensor) -> Tensor:
    """Images (n, C, H, W) with a pixel's channels side by side. One channel is, and nothing but the strides says so."""
    _, channels, height, width = images.shape
    if channels == 1 and images.is_contiguous():
        return images.as_strided(images.shape, (height * width, 1, width, 1))
    return images.clone(memory_format=torch.channels_last)


class Looped(Oracle):
    """One client at a time: the task's module, its parameters and gradients views of two flat vectors."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.params = torch.zeros(task.layout.size, dtype=task.dtype, device=task.device)
        self.grads = torch.zeros_like(self.params)
        named = dict(task.module.named_parameters())
        self.tensors = [named[name] for name in task.layout.names]
        views = task.layout.split(self.params), task.layout.split(self.grads)
        for name, tensor in zip(task.layout.names, self.tensors, strict=True):
            tensor.data, tensor.grad = views[0][name], views[1][name]

    def load(self, params: Tensor, buffers: Tensor) -> nn.Module:
        """The module with these parameters (d,) and buffers."""
        self.params.copy_(params)
        if self.task.buffer_layout.names:
            named = dict(self.task.module.named_buffers())
            for name, value in self.task.buffer_layout.split(buffers).items():
                named[name].copy_(value)
        return self.task.module

    def buffers(self) -> Tensor:
        """The module's floating-point buffers as they are now."""
        layout, buffers = self.task.buffer_layout, self.task.initial_buffers
        return layout.join(dict(self.task.module.named_buffers())).cpu() if layout.names else buffers

    def gather(self, vectors: Sequence[Tensor]) -> Tensor:
        (vector,) = vectors
        return self.task.there(vector)

    def gather_memories(self, memories: Sequence[Memory]) -> Memory:
        (memory,) = memories
        return Memory(self.task.there(memory.value), memory.clock)

    def pick(self, result: LocalResult, row: int) -> LocalResult:
        return result

    def batch(self, indices: Sequence[Tensor], noise: Sequence[Tensor]) -> Batch:
        """The mini-batch of the training examples indices[0] (B,)."""
        (index,) = indices
        x, y = self.task.examples(index)
        return Batch(x, y, noise=self.task.there(noise[0]) if noise else None)

    def batches(
        self, parts: Sequence[Sequence[Tensor]], noises: Sequence[Sequence[Tensor] | None]
    ) -> Iterator[Batch]:
        """The mini-batches of the local steps, whose training examples are parts[0]."""
        ((own,), (noise,)) = parts, noises
        for step, index in enumerate(own):
            yield self.batch([index], [] if noise is None else [noise[step]])

    def start(self, x: Tensor) -> Tensor:
        return self.params.copy_(x)

    def finish(self, v: Tensor) -> Tensor:
        return v.clone()

    def _loss(self, v: Tensor, batch: Batch) -> Tensor:
        assert v.data_ptr() == self.params.data_ptr(), "the point must be the working copy from start()"
        return mean_loss(self.task.dataset.kind, self.task.outputs(batch.x), batch.y)[0]

    def _decayed(self, v: Tensor, derivative: Tensor, direction: Tensor | float) -> Tensor:
        decay = self.task.weight_decay
        return derivative.add_(direction, alpha=decay) if decay else derivative

    def gradient(self, v: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        self.grads.zero_()
        loss = self._loss(v, batch)
        loss.backward()
        return loss.detach(), self._decayed(v, self.grads, v)

    def gradient_at(self, point: Tensor, batch: Batch) -> Tensor:
        here, gradient_here = self.params.clone(), self.grads.clone()
        gradient = self.gradient(self.params.copy_(point), batch)[1].clone()
        self.params.copy_(here)
        self.grads.copy_(gradient_here)
        return gradient

    def hessian_vector(self, v: Tensor, batch: Batch, z: Tensor) -> Tensor:
        loss = self._loss(v, batch)
        gradients = torch.autograd.grad(loss, self.tensors, create_graph=True, materialize_grads=True)
        dot = (torch.cat([g.flatten() for g in gradients]) * z).sum()
        product = torch.autograd.grad(dot, self.tensors, materialize_grads=True)
        return self._decayed(v, torch.cat([part.flatten() for part in product]), z)

    def gauss_newton(self, v: Tensor, batch: Batch) -> Tensor:
        assert batch.noise is not None, "the Gauss-Newton statistic needs the batch's noise"
        kind = self.task.dataset.kind
        outputs = self.task.outputs(batch.x)
        loss, count = mean_loss(kind, outputs, sampled_targets(kind, outputs, batch.y, batch.noise))
        gradients = torch.autograd.grad(loss, self.tensors, materialize_grads=True)
        g_hat = torch.cat([part.flatten() for part in gradients])
        return self._decayed(v, count * g_hat * g_hat, torch.ones_like(v))


class Stacked(Oracle):
    """Many clients at once: the same module as a function of a stack (clients, d), mapped by torch.func."""

    def __init__(self, task: Task) -> None:
        self.task = task
        kind, layout = task.dataset.kind, task.layout

        def outputs(params: Tensor, x: Tensor) -> Tensor:
            return task.outputs(x, layout.split(params))

        def loss(params: Tensor, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
            return mean_loss(kind, outputs(params, x), y, mask)[0]

        def product(params: Tensor, x: Tensor, y: Tensor, mask: Tensor | None, z: Tensor) -> Tensor:
            return torch.func.grad(lambda p: (torch.func.grad(loss)(p, x, y, mask) * z).sum())(params)

        def sampled_loss(
            params: Tensor, x: Tensor, y: Tensor, mask: Tensor | None, noise: Tensor
        ) -> tuple[Tensor, Tensor]:
            out = outputs(params, x)
            return mean_loss(kind, out, sampled_targets(kind, out, y, noise), mask)

        self._gradient = torch.func.grad_and_value(loss)
        self._product = product
        self._sampled = torch.func.grad(sampled_loss, has_aux=True)

    def gather(self, vectors: Sequence[Tensor]) -> Tensor:
        """(clients, d), to read: a vector that all share is there once, and others cross to the device together."""
        if all(vector is vectors[0] for vector in vectors):
            return self.task.there(vectors[0]).expand(len(vectors), -1)
        return self.task.there(torch.stack(list(vectors)))

    def gather_memories(self, memories: Sequence[Memory]) -> Memory:
        """The clients' clocks may differ: one (clients, 1) tensor of them."""
        clocks = torch.tensor([[float(memory.clock)] for memory in memories], dtype=torch.float64)
        values = torch.stack([memory.value for memory in memories])
        return Memory(self.task.there(values), self.task.there(clocks))

    def pick(self, result: LocalResult, row: int) -> LocalResult:
        """One client's part of the stack's result."""

        def own(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or tensor.dim() < 2 else tensor[row]

        memory = result.memory and Memory(result.memory.value[row], int(result.memory.clock[row]))  # type: ignore[index]
        return LocalResult(
            result.params[row],
            result.loss[row],
            own(result.statistic),
            own(result.momentum),
            memory,
            own(result.d_hat),
            {name: vector[row] if vector.dim() > 1 else vector for name, vector in result.state.items()},
        )

    def batch(self, indices: Sequence[Tensor], noise: Sequence[Tensor]) -> Batch:
        """The leading clients' mini-batches, one index tensor each, padded to the longest with masked examples."""
        sizes = [part.shape[0] for part in indices]
        shape, mask = (len(sizes), max(sizes)), None
        if min(sizes) == shape[1]:
            index = torch.cat(list(indices))
        else:
            index = pad_sequence(list(indices), batch_first=True).flatten()
            is_there = torch.arange(shape[1]) < torch.tensor(sizes).unsqueeze(1)
            mask = self.task.there(is_there.to(self.task.dtype))
        index = self.task.there(index)
        x, y = self._inputs(index), self.task.labels.index_select(0, index)
        drawn = self.task.there(pad_sequence(list(noise), batch_first=True)) if noise else None
        return Batch(x.unflatten(0, shape), y.unflatten(0, shape), mask, drawn, slice(0, len(sizes)))

    def batches(
        self, parts: Sequence[Sequence[Tensor]], noises: Sequence[Sequence[Tensor] | None]
    ) -> Iterator[Batch]:
        """The mini-batches of the local steps, each with those clients that still step; they come first."""
        sizes = {index.shape[0] for own in parts for index in own}
        if len(sizes) == 1 and len(parts[0]) == len(parts[-1]) and noises[0] is None:
            # Most often all are alike: then what does not depend on v is looked up for all steps together.
            clients, steps = len(parts), len(parts[0])
            index = self.task.there(torch.stack([torch.cat(list(own)) for own in parts]))
            index = index.unflatten(1, (steps, *sizes)).transpose(0, 1).flatten(1)  # (steps, clients * B)
            labels = self.task.labels.index_select(0, index.flatten()).unflatten(0, (steps, clients, *sizes))
            for own, y in zip(index, labels, strict=True):
                yield Batch(self._inputs(own).unflatten(0, (clients, *sizes)), y, rows=slice(0, clients))
            return
        for step in range(len(parts[0])):
            active = [i for i, own in enumerate(parts) if len(own) > step]
            drawn = [noise[step] for i in active if (noise := noises[i]) is not None]
            yield self.batch([parts[i][step] for i in active], drawn)

    def _inputs(self, index: Tensor) -> Tensor:
        """The x of a batch of these training examples (n,)."""
        return self.task.inputs_of(index)

    def at(self, x: Tensor) -> Tensor:
        return x

    def start(self, x: Tensor) -> Tensor:
        """The stack's own copy of x (clients, d)."""
        return x.clone(memory_format=torch.contiguous_format)

    def finish(self, v: Tensor) -> Tensor:
        return v

    def _map(
        self, function: Any, v: Tensor, batch: Batch, *more: Tensor, dims: tuple[int | None, ...] = ()
    ) -> Any:
        in_dims = (0, 0, 0, None if batch.mask is None else 0, *dims)
        return torch.func.vmap(function, in_dims=in_dims)(v, batch.x, batch.y, batch.mask, *more)

    def gradient(self, v: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        gradient, loss = self._map(self._gradient, v, batch)
        return loss, self._decayed(gradient, v)

    def gradient_at(self, point: Tensor, batch: Batch) -> Tensor:
        return self.gradient(point, batch)[1]

    def hessian_vector(self, v: Tensor, batch: Batch, z: Tensor) -> Tensor:
        return self._decayed(self._map(self._product, v, batch, z, dims=(None,)), z)

    def gauss_newton(self, v: Tensor, batch: Batch) -> Tensor:
        assert batch.noise is not None, "the Gauss-Newton statistic needs the batch's noise"
        g_hat, count = self._map(self._sampled, v, batch, batch.noise, dims=(0,))
        return self._decayed(count.unsqueeze(-1) * g_hat * g_hat, torch.ones_like(v))

    def _decayed(self, derivative: Tensor, direction: Tensor) -> Tensor:
        decay = self.task.weight_decay
        return derivative + decay * direction if decay else derivative
