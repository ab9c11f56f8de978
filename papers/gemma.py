"""SplInterp's Gemma setting (arXiv 2505.11836, E3) in proportion: its numbers, scaled to the latents that a site has, and rows as it has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..store import Store
from ..train.rows import Rows
from .alternation import AT_ONCE

# The paper's: dimensions, latents, K, training rows, batch, rate, and the shares of the rows.
D_IN, D_SAE, K, N, BATCH, LR = 2304, 4096, 320, 9000, 256, 1e-3
SHARES = (0.01, 0.05, 0.10, 0.25, 0.40, 0.45, 0.50, 0.65, 0.75, 0.85, 1.0)
SMALLEST = 64  # latents: with fewer, 1 % of the rows are hardly one
MOST_ROWS = 8192  # of validation and held-out rows


@dataclass(frozen=True)
class Sizes:
    """The paper's numbers, in proportion to the latents."""

    latents: int

    @classmethod
    def of_site(cls, store: Store, site: str, latents: int | None) -> Sizes:
        """With so many latents; None: as many per dimension as in the paper.

        Raises:
            SplinterpError: that makes too few of them, or the store has too few rows.
        """
        d = store.site(site).d
        sizes = cls(latents or round(d * D_SAE / D_IN))
        if sizes.latents < SMALLEST:
            raise SplinterpError(
                f"{site} has {d} dimensions, which makes {sizes.latents} latents; give --latents, {SMALLEST} or more."
            )
        needed, there = sizes.rows, store.split_rows("train")
        if there < needed or not store.split_rows("validation"):
            raise SplinterpError(
                f"{store.path} has {there:,} training and {store.split_rows('validation'):,} validation rows, and {sizes.latents:,} latents "
                f"need {needed:,} and some; harvest more, or give fewer --latents."
            )
        return sizes

    @property
    def rows(self) -> int:
        """Training rows."""
        return self.of(N)

    def of(self, papers: float) -> int:
        """One of the paper's numbers, in proportion."""
        return max(1, round(papers * self.latents / D_SAE))


@dataclass(frozen=True)
class ZScored:
    """Rows of mean 0 and mean square 1 in every dimension over the training rows, which are shuffled; float32."""

    train: Tensor
    validation: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, store: Store, site: str, needed: int, seed: int, over_all: bool = False) -> ZScored:
        """Of the store's training rows `needed` by `seed`, and of the others what there is, to MOST_ROWS; `over_all`: the held-out rows have
        their part in mean and spread too, as in the paper's code."""
        rows = Rows.of(store, site, torch.device("cpu"))
        train = torch.cat(list(rows.training(AT_ONCE, needed, seed)))
        order = torch.randperm(needed, generator=torch.Generator().manual_seed(seed))
        validation, held_out = (torch.cat(list(rows.once(split, AT_ONCE)))[:MOST_ROWS] for split in ("validation", "held_out"))
        over = torch.cat([train, held_out]) if over_all else train
        mean, spread = over.mean(0), over.std(0).clamp(min=1e-6)
        return cls(*((x - mean) / spread for x in (train[order], validation, held_out)))
