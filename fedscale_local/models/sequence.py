"""Next-token models: at each position of (batch, T) int64 tokens, logits for the token that follows.

Both are written with plain operations. The fused kernels behind `scaled_dot_product_attention`, and behind
`nn.GRU` on GPUs, have no second derivative, no forward-mode derivative, or no rule for a stack of models; the
recurrence below is as fast on a CPU as `nn.GRU` and equal to it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedscale_local.errors import ConfigError


class GRU(nn.Module):
    """One layer of gated recurrent units, the equations and the order of gates (r, z, n) of `torch.nn.GRU`.

    Parameters: weight_ih (3 hidden, inside), weight_hh (3 hidden, hidden), bias_ih, bias_hh (3 hidden,), all
    uniform in +-1/sqrt(hidden) at the start.
    """

    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden, inside))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(3 * hidden))
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, T, inside) -> all states (batch, T, hidden), from a zero state."""
        sizes = (2 * self.hidden, self.hidden)
        # One projection for all times, time first, so that each step reads a contiguous piece.
        projected = functional.linear(x.transpose(0, 1), self.weight_ih, self.bias_ih)
        gates, candidates = (part.unbind(0) for part in projected.split(sizes, -1))
        recurrent = self.weight_hh.T
        state = x.new_zeros(x.shape[0], self.hidden)
        states = []
        for gate, candidate in zip(gates, candidates, strict=True):
            from_gate, from_candidate = torch.addmm(self.bias_hh, state, recurrent).split(sizes, -1)
            reset, update = torch.sigmoid(gate + from_gate).chunk(2, -1)
            new = torch.tanh(candidate + reset * from_candidate)
            state = torch.lerp(new, state, update)  # (1 - update) new + update state
            states.append(state)
        return torch.stack(states, 1)


def char_gru(
    input_shape: tuple[int, ...], num_outputs: int, *, embedding: int = 8, hidden: int = 128
) -> nn.Module:
    """Embedding, one GRU layer, linear layer.

    >>> char_gru((80,), 75)(torch.zeros(5, 80, dtype=torch.int64)).shape
    torch.Size([5, 80, 75])
    """
    return nn.Sequential(
        nn.Embedding(num_outputs, embedding), GRU(embedding, hidden), nn.Linear(hidden, num_outputs)
    )


class Attention(nn.Module):
    """Causal self-attention with `heads` heads: position t sees positions 0..t."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, T, width) -> (batch, T, width)."""
        # Each (batch, heads, T, width / heads).
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(x).chunk(3, -1)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        weights = torch.softmax(scores.masked_fill(future, -math.inf), -1)
        return self.output((weights @ value).transpose(1, 2).flatten(-2))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)) with four times the width inside."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, T, width) -> (batch, T, width)."""
        x = x + self.attention(self.norm1(x))
        return x + self.perceptron(self.norm2(x))


class Transformer(nn.Module):
    """Embedding plus learnt positions, `layers` blocks, norm, linear layer."""

    def __init__(self, window: int, num_tokens: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.position = nn.Parameter(0.02 * torch.randn(window, width))
        nn.init.normal_(self.embedding.weight, std=0.02)  # torch's 1.0 would drown the positions
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_tokens)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, T) tokens, T up to the window -> (batch, T, num_tokens)."""
        return self.output(self.norm(self.blocks(self.embedding(x) + self.position[: x.shape[-1]])))


def char_transformer(
    input_shape: tuple[int, ...], num_outputs: int, *, width: int = 64, heads: int = 4, layers: int = 2
) -> nn.Module:
    """A causal transformer, norm first; the window is the length of the data's sequences.

    >>> char_transformer((80,), 75)(torch.zeros(5, 80, dtype=torch.int64)).shape
    torch.Size([5, 80, 75])
    """
    if width % heads:
        raise ConfigError(
            f"model.heads={heads}",
            f"every head needs an equal share of model.width={width}",
            "set model.heads to a divisor of model.width",
        )
    return Transformer(input_shape[0], num_outputs, width, heads, layers)
