"""Several encoders of one kind side by side, one for each seed: a step of all costs little more than a step of one.

Their gradients are written out and go into buffers that live as long as the encoder does. A leading axis G runs over the seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

START = -10.0  # the logarithm of free codes to begin with: as good as none


class Codes(Protocol):
    """Where codes come from. `parameters` are float32 tensors whose `.grad` stays the same tensor."""

    parameters: list[Tensor]

    def forward(self) -> Tensor:
        """Codes of the training rows, [G, R, N], not negative."""
        ...

    def backward(self, gradient: Tensor) -> None:
        """Write the parameters' gradients, given that of the codes [G, R, N], which may be overwritten."""
        ...


def parameter(value: Tensor) -> Tensor:
    """A tensor to be trained by gradients that are written, not traced."""
    value = value.contiguous()
    value.grad = torch.zeros_like(value)
    return value


def slope(weights: Tensor) -> Tensor:
    """The buffer of a parameter's gradient."""
    assert weights.grad is not None
    return weights.grad


def top_k(codes: Tensor, k: int) -> Tensor:
    """The k largest of each row, the others 0."""
    values, places = codes.topk(k, dim=-1)
    return torch.zeros_like(codes).scatter_(-1, places, values)


class Encoder:
    """Linear maps, each with a ReLU behind it: one is an SAE's encoder, two are an MLP's. With `k` only the k largest codes stay.

    Args:
        rows: [G, R, M]. layers: to begin with, of each its weight [G, inputs, outputs] and its bias [G, 1, outputs]; all have one, or none has.
            The last has N outputs.
    """

    def __init__(self, rows: Tensor, layers: Sequence[tuple[Tensor, Tensor | None]], k: int | None = None) -> None:
        self.rows, self.k = rows, k
        self.weights = [parameter(weight) for weight, _ in layers]
        self.biases = [parameter(bias) for _, bias in layers if bias is not None]
        self.parameters = [*self.weights, *self.biases]
        shapes = [(*rows.shape[:2], weight.shape[2]) for weight in self.weights]
        self._outputs = [torch.empty(shape) for shape in shapes]
        self._gradients = [torch.empty(shape) for shape in shapes[:-1]]

    def forward(self) -> Tensor:
        return self._codes(self.rows, self._outputs)

    def encode(self, rows: Tensor) -> Tensor:
        """Codes of other rows, [G, R', N]."""
        return self._codes(rows, [torch.empty(*rows.shape[:2], w.shape[2]) for w in self.weights])

    def pre_activations(self, rows: Tensor) -> Tensor:
        """Of the last layer, before its ReLU: [G, R', N]."""
        x = rows
        for i in range(len(self.weights)):
            x = self._layer(i, x.relu() if i else x, torch.empty(*rows.shape[:2], self.weights[i].shape[2]))
        return x

    def _codes(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        for i, out in enumerate(outputs):
            x = self._layer(i, x, out).relu_()
        if self.k is not None:
            outputs[-1].copy_(top_k(x, self.k))
        return x

    def _layer(self, i: int, x: Tensor, out: Tensor) -> Tensor:
        if self.biases:
            return torch.baddbmm(self.biases[i], x, self.weights[i], out=out)
        return torch.bmm(x, self.weights[i], out=out)

    def backward(self, gradient: Tensor) -> None:
        for i in reversed(range(len(self.weights))):
            gradient.mul_(self._outputs[i] > 0)
            x = self._outputs[i - 1] if i else self.rows
            torch.bmm(x.transpose(1, 2), gradient, out=slope(self.weights[i]))
            if self.biases:
                torch.sum(gradient, 1, keepdim=True, out=slope(self.biases[i]))
            if i:
                gradient = torch.bmm(gradient, self.weights[i].transpose(1, 2), out=self._gradients[i - 1])


class FreeCodes:
    """Sparse coding: each row has codes exp(l) of its own.

    Args:
        start: the l to begin with, [G, R, N].
    """

    def __init__(self, start: Tensor) -> None:
        self.logarithms = parameter(start.clone())
        self.parameters = [self.logarithms]
        self._codes = torch.empty_like(self.logarithms)

    @classmethod
    def cold(cls, shape: Sequence[int]) -> FreeCodes:
        """From codes of exp(−10)."""
        return cls(torch.full(tuple(shape), START))

    def forward(self) -> Tensor:
        return torch.exp(self.logarithms, out=self._codes)

    def backward(self, gradient: Tensor) -> None:
        torch.mul(gradient, self._codes, out=slope(self.logarithms))
