"""Rows as training sees them: from a store's site, normalised, in float32, on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..store import Store
from ..store.batches import Split
from .group import ALONE, Group

_OF_ROUNDING = (
    1e-3  # share of the rows' mean square below which their variance is measured instead of being told by the difference
)
_MEASURED_ROWS = 65_536  # at most


@dataclass(frozen=True)
class Rows:
    """A site's rows, normalised: (x − mean)/scale, so that they have mean 0 and mean square 1 per dimension over the store.

    Attributes:
        mean: [d_in] float32. scale: in the store's units. group: the ranks that share the training rows.
    """

    store: Store
    site: str
    mean: Tensor
    scale: float
    device: torch.device
    group: Group = ALONE

    @classmethod
    def of(cls, store: Store, site: str, device: torch.device, group: Group = ALONE) -> Rows:
        """The rows of `site`, normalised by the statistics that the store keeps of it.

        Raises:
            SplinterpError: the rows are all alike.
        """
        info = store.site(site)
        square, of_mean = info.rms_norm**2, float(info.mean @ info.mean)
        variance = square - of_mean
        if variance <= _OF_ROUNDING * square:  # the store's norms are of float32: this may be nothing but rounding
            variance = _measured_variance(store, site)
        if not variance > 0:
            raise SplinterpError(
                f"All rows of {site} in {store.path} are alike: there is nothing to train on; name another --site."
            )
        return cls(store, site, info.mean.to(device, torch.float32), (variance / info.d) ** 0.5, device, group)

    def normalise(self, x: Tensor) -> Tensor:
        """Rows [N, d_in] of the store -> normalised float32 rows on the device, in memory of their own."""
        return x.to(self.device, torch.float32, copy=True).sub_(self.mean).div_(self.scale)

    def training(self, batch_size: int, total: int, seed: int, skip: int = 0) -> Iterator[Tensor]:
        """Batches [batch_size, d_in] of normalised training rows, `total` rows in all, epoch after epoch; only the last may be smaller.

        What is left at an epoch's end begins the next epoch's first batch, so that there are ceil(total/batch_size) batches. Of each
        batch a rank has its share, [n·r/W, n·(r+1)/W) of n rows, which is empty where there are too few.

        Args:
            skip: how many of the rows, of all ranks, have been trained on: whole batches. They are not read.
        """
        start, group = -(-skip // batch_size), self.group
        for x in self.store.stream(
            self.site, batch_size, total, seed=seed, rank=group.rank, world=group.world, start=start, device=self.device
        ):
            yield self.normalise(x)

    def once(self, split: Split, batch_size: int) -> Iterator[Tensor]:
        """Every row of a split ("train", "validation" or "held_out") once, in the store's order, in normalised batches."""
        for x in self.store.batches(self.site, batch_size, split=split, shuffle=False, device=self.device):
            yield self.normalise(x)

    def dealt(self, split: Split, batch_size: int) -> Iterator[Tensor]:
        """As `once`, but of the batches every rank has others."""
        for x in self.store.dealt(self.site, batch_size, self.group.rank, self.group.world, split=split, device=self.device):
            yield self.normalise(x)


def _measured_variance(store: Store, site: str) -> float:
    """The mean of ‖x − x̄‖² over the first training rows, in float64."""
    n, total, squared, first = 0, torch.zeros(()), 0.0, None
    for x in store.batches(site, 4096, split="train", shuffle=False):
        rows = x.double()
        first = rows[0].clone() if first is None else first  # sums about one of the rows lose no digits
        rows -= first
        n, total, squared = n + len(rows), total + rows.sum(0), squared + float(rows.square().sum())
        if n >= _MEASURED_ROWS:
            break
    return squared / max(n, 1) - float(total.square().sum()) / max(n, 1) ** 2


def raw_rows(store: Store, site: str, device: torch.device, split: Split) -> Iterator[Tensor]:
    """Every row of a split once, in the store's order and units: float32 batches [≤ 4096, d_in] on the device."""
    for x in store.batches(site, 4096, split=split, shuffle=False, device=device):
        yield x.to(device, torch.float32, copy=True)


def check_width(d_in: int, source: str, store: Store, site: str) -> None:
    """See that an SAE from `source` takes rows as wide as a site's. Raises SplinterpError otherwise."""
    d = store.site(site).d
    if d != d_in:
        raise SplinterpError(
            f"The SAE in {source} takes rows of width {d_in}, but {site} of {store.path} has {d}; name another --site."
        )
