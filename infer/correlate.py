"""Correlations of what is left of a row with the atoms, ⟨y − x̂, a_i⟩: what greedy methods choose by.

By the Gram matrix G they are A·y − G·u, from the rows of G that belong to chosen atoms: on a CPU, at 1,536 atoms of width 384, a fifth of the
dense product's time at eight chosen atoms, and half at 32. Where many are chosen, or G would not fit, the residual's product with
the atoms is taken anew.
"""

from __future__ import annotations

from copy import copy
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sae import kernels_for
from .problem import Dictionary

# How many of a dense product's multiplications take the time of one with gathered rows, which waits for memory.
_GATHERED = 6
_BLOCKS = 16


class Correlations(Protocol):
    """Rows of a problem: `first` [N, d], the correlations of the rows themselves, and `squared` [N], ‖y‖²."""

    first: Tensor
    squared: Tensor

    def after(self, indices: Tensor, sizes: Tensor) -> Tensor:
        """Of what atoms `indices` [N, w] with `sizes` leave: [N, d], new."""
        ...

    def of(self, indices: Tensor, sizes: Tensor) -> Tensor:
        """Of Σ u_j·a_j itself: [N, d], new."""
        ...

    def between(self, indices: Tensor, other: Tensor) -> Tensor:
        """⟨a_i, a_o⟩ of atoms `indices` [N, w] and `other` [N, 1]: [N, w]."""
        ...

    def left(self, indices: Tensor, sizes: Tensor) -> Tensor:
        """‖y − x̂‖² of x̂ = Σ u_j·a_j: [N]."""
        ...

    def take(self, rows: Tensor) -> Correlations:
        """Those of some rows, int64 [M]."""
        ...


class OfDictionary:
    """Correlations of rows y [N, d_in] with all atoms."""

    def __init__(self, y: Tensor, dictionary: Dictionary) -> None:
        self.y, self.atoms, self.gram = y, dictionary.atoms, dictionary.gram
        self.first = y @ self.atoms.T
        self.squared = y.square().sum(1)

    def after(self, indices: Tensor, sizes: Tensor) -> Tensor:
        gathered = self._by_gram(indices.shape[1])
        if gathered is not None:
            return torch.sub(self.first, moved := _sum(indices, sizes, gathered), out=moved)
        return (self.y - _sum(indices, sizes, self.atoms)) @ self.atoms.T

    def of(self, indices: Tensor, sizes: Tensor) -> Tensor:
        gathered = self._by_gram(indices.shape[1])
        if gathered is not None:
            return _sum(indices, sizes, gathered)
        return _sum(indices, sizes, self.atoms) @ self.atoms.T

    def between(self, indices: Tensor, other: Tensor) -> Tensor:
        if self.gram is not None:
            return _entries(self.gram, indices * len(self.gram) + other)
        return torch.bmm(self.atoms[indices], self.atoms[other].transpose(1, 2)).squeeze(2)

    def left(self, indices: Tensor, sizes: Tensor) -> Tensor:
        return (self.y - _sum(indices, sizes, self.atoms)).square_().sum(1)

    def within(self, indices: Tensor) -> Tensor:
        """The Gram matrices of atoms `indices` [N, k]: [N, k, k]."""
        if self.gram is not None:
            return _entries(self.gram, (indices * len(self.gram))[:, :, None] + indices[:, None, :])
        chosen = self.atoms[indices]
        return torch.bmm(chosen, chosen.transpose(1, 2))

    def take(self, rows: Tensor) -> OfDictionary:
        some = copy(self)
        some.y, some.first, some.squared = self.y[rows], self.first[rows], self.squared[rows]
        return some

    def _by_gram(self, width: int) -> Tensor | None:
        """The Gram matrix where `width` of its rows cost less than a dense product."""
        d_sae, d_in = self.atoms.shape
        return self.gram if _GATHERED * width * (d_sae - d_in) <= d_sae * d_in else None


class OnSupport:
    """Correlations with each row's own few atoms: `support` [N, k] of them, of which those that are not `there` [N, k] count as zeros."""

    def __init__(self, y: Tensor, dictionary: Dictionary, support: Tensor, there: Tensor) -> None:
        of_all = OfDictionary(y, dictionary)
        self.first = of_all.first.gather(1, support) * there
        self.squared = of_all.squared
        self.grams = of_all.within(support) * there[:, :, None] * there[:, None, :]

    def after(self, indices: Tensor, sizes: Tensor) -> Tensor:
        return self.first - self.of(indices, sizes)

    def of(self, indices: Tensor, sizes: Tensor) -> Tensor:
        dense = torch.zeros_like(self.first).scatter_add_(1, indices, sizes)
        return torch.bmm(self.grams, dense[:, :, None]).squeeze(2)

    def between(self, indices: Tensor, other: Tensor) -> Tensor:
        k = self.grams.shape[1]
        return self.grams.view(-1, k * k).gather(1, indices * k + other)

    def left(self, indices: Tensor, sizes: Tensor) -> Tensor:
        dense = torch.zeros_like(self.first).scatter_add_(1, indices, sizes)
        return self.squared - (dense * (self.first + self.after(indices, sizes))).sum(1)

    def take(self, rows: Tensor) -> OnSupport:
        some = copy(self)
        some.first, some.squared, some.grams = self.first[rows], self.squared[rows], self.grams[rows]
        return some


def _sum(indices: Tensor, sizes: Tensor, rows: Tensor) -> Tensor:
    """Σ_j sizes_j·rows[indices_j], [N, d]."""
    if kernels := kernels_for(rows):
        return kernels.decode(indices, sizes, rows, rows.new_zeros(rows.shape[1]))
    return F.embedding_bag(indices, rows, per_sample_weights=sizes, mode="sum")


def _entries(matrix: Tensor, places: Tensor) -> Tensor:
    """Entries of a matrix at places among all of them, in their shape; on a CPU twice as fast as by indexing."""
    return matrix.view(-1).index_select(0, places.reshape(-1)).view(places.shape)


def largest(scores: Tensor, either_sign: bool = False) -> Tensor:
    """Where each row of scores [N, d] is largest, or largest in magnitude: int64 [N, 1].

    On a CPU argmax along a row takes several times as long as maxima across blocks of it and an argmax among those.
    """
    n, d = scores.shape
    if d % _BLOCKS or d < _BLOCKS**2:
        return (scores.abs() if either_sign else scores).argmax(1, keepdim=True)
    blocks = scores.view(n, _BLOCKS, d // _BLOCKS)
    columns = blocks.amax(1)
    if either_sign:  # two passes that read, instead of one that writes and one that reads
        columns = torch.maximum(columns, blocks.amin(1).neg_())
    column = columns.argmax(1, keepdim=True)
    block = blocks.gather(2, column[:, None].expand(n, _BLOCKS, 1)).squeeze(2)
    return column.add_((block.abs() if either_sign else block).argmax(1, keepdim=True), alpha=d // _BLOCKS)


def distinct(indices: Tensor, used: Tensor, d: int) -> Tensor:
    """The indices [N, k] where they are `used`, and elsewhere atoms of the d that the row does not use: distinct within a row."""
    place = torch.where(used, indices, d)  # those that are not used mark nothing
    marks = torch.zeros(len(indices), d + 1, dtype=torch.int8, device=indices.device).scatter_(1, place, 1)[:, :d]
    spare = marks.sort(dim=1, stable=True).indices[:, : indices.shape[1]]
    order = (~used).long().cumsum(1).sub_(1).clamp_(min=0)
    return torch.where(used, indices, spare.gather(1, order))
