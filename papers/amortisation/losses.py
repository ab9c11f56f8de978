"""What codes are trained by: to give the rows back with few, or to be the true codes. Gradients are written out."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .encoders import parameter, slope


class Loss(Protocol):
    """Of G sets of codes at once, each with a loss of its own."""

    parameters: list[Tensor]

    def backward(self, codes: Tensor) -> Tensor:
        """The gradient of the codes [G, R, N], in a buffer that the next call overwrites; writes those of `parameters`."""
        ...

    def value(self, codes: Tensor) -> Tensor:
        """[G]."""
        ...


class Reconstruction:
    """MSE + `l1` · mean |S|, both means over all entries; X̂ = S·D, with a bias if there is one.

    Args:
        rows: [G, R, M]. dictionary: [G, N, M]; where it learns, its rows have norm 1 whenever a step begins. bias: [G, 1, M], learns too.
    """

    def __init__(self, rows: Tensor, dictionary: Tensor, l1: float, learn: bool, bias: Tensor | None = None) -> None:
        self.rows, self.l1, self.learn, self.bias = rows, l1, learn, bias
        self.dictionary = parameter(dictionary.clone()) if learn else dictionary
        self.parameters = [self.dictionary] if learn else []
        if bias is not None:
            self.parameters.append(bias)
        self._residual = torch.empty_like(rows)
        self._gradient = torch.empty(*rows.shape[:2], dictionary.shape[1])
        self._penalty = l1 / (rows.shape[1] * dictionary.shape[1])

    def backward(self, codes: Tensor) -> Tensor:
        if self.learn:
            self.normalise()
        residual = self._residual_of(codes).mul_(2 / (self.rows.shape[1] * self.rows.shape[2]))
        if self.learn:
            torch.bmm(codes.transpose(1, 2), residual, out=slope(self.dictionary))
        if self.bias is not None:
            torch.sum(residual, 1, keepdim=True, out=slope(self.bias))
        torch.bmm(residual, self.dictionary.transpose(1, 2), out=self._gradient)
        return self._gradient.add_(self._penalty)  # codes are not negative, and where they are 0 no gradient passes

    def normalise(self) -> None:
        """Give the atoms norm 1."""
        self.dictionary.div_(self.dictionary.norm(dim=2, keepdim=True))

    def value(self, codes: Tensor) -> Tensor:
        return self.mse(codes) + self.l1 * codes.mean((1, 2))

    def mse(self, codes: Tensor) -> Tensor:
        """[G]."""
        return self._residual_of(codes).square().mean((1, 2))

    def _residual_of(self, codes: Tensor) -> Tensor:
        torch.bmm(codes, self.dictionary, out=self._residual).sub_(self.rows)
        return self._residual if self.bias is None else self._residual.add_(self.bias)


class Cosine:
    """− mean over latents of the cosine between a latent's codes and the true ones, over the rows: supervised."""

    EPSILON = 1e-8  # as torch's cosine_similarity has it, for latents that never fire

    def __init__(self, true: Tensor) -> None:
        self.true = true / true.norm(dim=1, keepdim=True).clamp(min=self.EPSILON)
        self.parameters: list[Tensor] = []
        self._gradient = torch.empty_like(true)

    def backward(self, codes: Tensor) -> Tensor:
        norms = codes.norm(dim=1, keepdim=True).clamp_(min=self.EPSILON)
        cosines = (codes * self.true).sum(1, keepdim=True).div_(norms)
        scale = -1 / (norms * codes.shape[2])
        torch.mul(codes, cosines / norms, out=self._gradient)
        return torch.sub(self.true, self._gradient, out=self._gradient).mul_(scale)

    def value(self, codes: Tensor) -> Tensor:
        norms = codes.norm(dim=1).clamp(min=self.EPSILON)
        return -((codes * self.true).sum(1) / norms).mean(1)
