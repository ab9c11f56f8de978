"""k-means over a store: centres by scikit-learn's mini-batch k-means, one batch at a time, and the cells that they have."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..store import Store

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
    mean = store.site(site).mean.float()
    kmeans = MiniBatchKMeans(regions, batch_size=min(batch, rows), random_state=seed, compute_labels=False)
    done = 0
    for epoch in range(epochs):
        for x in store.batches(site, batch, seed=seed, epoch=epoch):
            kmeans.partial_fit((x.float() - mean).numpy())
            done += len(x)
            if progress:
                progress(done)
    return torch.from_numpy(kmeans.cluster_centers_).float() + mean


class Cells:
    """The Voronoi cells of centres [R, d_in]: to which of them rows belong."""

    def __init__(self, centres: Tensor, shift: Tensor) -> None:
        """shift: [d_in], near the rows' mean, from which distances are taken so that no digits are lost."""
        self.centres, self._shift = centres, shift.float()
        self._about = centres - self._shift
        self._half = self._about.square().sum(1) / 2

    def of(self, x: Tensor) -> Tensor:
        """The nearest centre of rows [N, d_in]: int64 [N]."""
        return torch.addmm(self._half, x - self._shift, self._about.T, alpha=-1).argmin(1)
