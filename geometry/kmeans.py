"""k-means over a store: centres by scikit-learn's mini-batch k-means, one batch at a time, and the cells that they have."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..store import Site, Store

BATCH = 4096
Progress = Callable[[int], None]


def kmeans_centres(
    store: Store, site: str, regions: int, epochs: int, seed: int = 0, progress: Progress | None = None
) -> Tensor:
    """Centres of a site's training rows, float32 [regions, d_in], by mini-batch k-means (Sculley 2010) begun with k-means++ on the first batch.

    Batches are shuffled as in training, and seeded; they are never all in memory.

    Args:
        progress: told rows done, of epochs times the training rows.

    Raises:
        SplinterpError: more regions than training rows.
    """
    from sklearn.cluster import MiniBatchKMeans

    rows, batch = store.split_rows("train"), max(BATCH, 4 * regions)
    if regions > rows:
        raise SplinterpError(f"--regions {regions:,} must be at most the {rows:,} training rows of {store.path}.")
    info = store.site(site)
    mean, unit = info.mean.float(), size_of(info)
    kmeans = MiniBatchKMeans(regions, batch_size=min(batch, rows), random_state=seed, compute_labels=False)
    done = 0
    for epoch in range(epochs):
        for x in store.batches(site, batch, seed=seed, epoch=epoch):
            kmeans.partial_fit(((x.float() - mean) / unit).numpy())
            done += len(x)
            if progress:
                progress(done)
    return torch.from_numpy(kmeans.cluster_centers_).float() * unit + mean


def size_of(site: Site) -> float:
    """A power of two near the typical entry of a site's rows: in its units squares are far from float32's ends, and nothing is rounded."""
    typical = site.rms_norm / site.d**0.5
    return 2.0 ** max(-100, min(math.frexp(typical)[1], 100))


class Cells:
    """The Voronoi cells of centres [R, d_in]: to which of them rows belong."""

    def __init__(self, centres: Tensor, shift: Tensor, unit: float = 1.0) -> None:
        """shift: [d_in], near the rows' mean, from which distances are taken so that no digits are lost. unit: `size_of` their site."""
        self.centres, self._shift, self._unit = centres, shift.float(), unit
        self._about = (centres - self._shift) / unit
        self._half = self._about.square().sum(1) / 2

    def of(self, x: Tensor) -> Tensor:
        """The nearest centre of rows [N, d_in]: int64 [N]."""
        return torch.addmm(self._half, (x - self._shift) / self._unit, self._about.T, alpha=-1).argmin(1)
