"""Regions of an SAE: the affine map of one, and how many of them rows visit.

A region is the set of rows with the same active set S (|z|-TopK: with the same signs too). On it the SAE is x̂ = A·x + c, with slope
A = W_dec[S]ᵀ·W_enc[:, S]ᵀ, of rank at most |S|, and c = b_enc[S]·W_dec[S] + b_dec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..sae import SAE, to_dense

# Regions that `Visits` tells apart: 24 bytes each, and as much again while they are merged.
MOST_REGIONS = 2**24
_PENDING = 2**18  # rows between two merges


@dataclass(frozen=True)
class RegionMap:
    """The SAE on one region, x̂ = down·(up·x) + offset, in float64: its slope is A = down @ up.

    Attributes:
        latents: int64 [r], the active set. up: [r, d_in], their encoder columns. down: [d_in, r], their decoder rows. offset: [d_in].
    """

    latents: Tensor
    up: Tensor
    down: Tensor
    offset: Tensor

    @property
    def slope(self) -> Tensor:
        """A, [d_in, d_in]."""
        return self.down @ self.up

    def __call__(self, x: Tensor) -> Tensor:
        """Rows [N, d_in] -> reconstructions as if they lay in this region, float64 [N, d_in]."""
        return x.double() @ self.slope.T + self.offset


def region_map(sae: SAE, x: Tensor) -> RegionMap:
    """The affine map of the region in which a row x [d_in] lies, by the SAE's codes in float64."""
    plain = sae.to(dtype=torch.float64).plain()
    latents = to_dense(plain.encode(x[None].double()), sae.config.d_sae)[0].nonzero()[:, 0]
    down = plain.W_dec[latents].T
    return RegionMap(latents, plain.W_enc[:, latents].T, down, down @ plain.b_enc[latents] + plain.b_dec)


@torch.no_grad()
def affine_error(sae: SAE, x: Tensor) -> float:
    """The largest ‖(A·x + c) − x̂‖/‖x̂‖ of rows [N, d_in], each by its own region's map with A multiplied out, all in float64."""
    double = sae.to(dtype=torch.float64)
    hats = double(x.double())
    errors = [(region_map(sae, row)(row[None])[0] - hat).norm() / hat.norm() for row, hat in zip(x, hats, strict=True)]
    return float(torch.stack(errors).nan_to_num(0.0).max())


def fingerprints(active: Tensor, seed: int = 0) -> Tensor:
    """A 128-bit number for each active set, bool [N, G] -> int64 [N, 2]: the sum of random numbers of its members, modulo 2⁶⁴ twice.

    Of n different sets two share one with probability below n²/2¹²⁹.
    """
    numbers = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, (active.shape[1], 2), dtype=np.int64, endpoint=True)
    rows, members = active.nonzero(as_tuple=True)
    table = torch.from_numpy(numbers).to(active.device)
    return table.new_zeros(len(active), 2).index_add_(0, rows, table[members])


class Visited(NamedTuple):
    """Regions that rows visited.

    Attributes:
        regions: how many. whole: whether that is all of them; otherwise there are more, and the first MOST_REGIONS were told apart.
        once: regions visited by one row. largest: rows in the region with most.
    """

    regions: int
    whole: bool
    once: int
    largest: int


class Visits:
    """Counts distinct regions over batches, by their fingerprints; memory grows with the regions, not with the rows, and is bounded."""

    def __init__(self, most: int = MOST_REGIONS) -> None:
        self.most, self.whole = most, True
        self._known, self._counts = np.empty(0, "i8,i8"), np.empty(0, np.int64)
        self._pending: list[np.ndarray] = []

    def add(self, active: Tensor) -> None:
        """Rows' active sets, bool [N, G]."""
        self._pending.append(fingerprints(active).cpu().contiguous().numpy().view("i8,i8")[:, 0])
        if sum(map(len, self._pending)) >= _PENDING:
            self._merge()

    def figures(self) -> Visited:
        """What was visited so far."""
        self._merge()
        counts = self._counts
        return Visited(len(counts), self.whole, int((counts == 1).sum()), int(counts.max(initial=0)))

    def _merge(self) -> None:
        found, counts = np.unique(np.concatenate([self._known[:0], *self._pending]), return_counts=True)
        self._pending = []
        keys, inverse = np.unique(np.concatenate([self._known, found]), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate([self._counts, counts]), len(keys)).astype(np.int64)
        if len(keys) > self.most:
            known = np.isin(keys, self._known)
            kept = known | (np.cumsum(~known) <= self.most - len(self._known))
            keys, counts, self.whole = keys[kept], counts[kept], False
        self._known, self._counts = keys, counts
