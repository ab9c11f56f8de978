"""E1's points, and what is fitted to them without gradients: k-means, and local PCA in its regions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...geometry import Cells, LocalPCA, RegionMoments

CLUSTERS = 3
KMEANS_SEED = 42  # as in the authors' scripts
_MEMORY = 2**24


def points(seed: int, n: int = 100) -> Tensor:
    """n points [n, 2] of three clusters, float32: 40 % on a level line, 30 % in a square, the rest on a diagonal; the scripts' draws, but seeded."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda size: torch.randn(size, generator=draw)  # noqa: E731
    line, square = int(0.4 * n), int(0.3 * n)
    rest = n - line - square
    along = torch.linspace(0, 1, rest)
    return torch.cat([
        torch.stack([torch.linspace(-1.5, 0, line) + 0.1 * normal(line), -0.8 + 0.1 * normal(line)], 1),
        0.8 * torch.rand(square, 2, generator=draw) + torch.tensor([-0.4, 0.4]),
        torch.stack([0.8 + along + 0.15 * normal(rest), along - 0.5 + 0.15 * normal(rest)], 1),
    ])  # fmt: skip


class Regions(NamedTuple):
    """k-means' regions of some points, and the PCA in each. centres: float64 [R, 2]."""

    centres: Tensor
    pca: LocalPCA

    def of(self, x: Tensor) -> Tensor:
        """The regions of points [N, 2]: int64 [N]."""
        return Cells(self.centres.float(), torch.zeros(2)).of(x)

    def mse(self, x: Tensor, rank: int) -> float:
        """Of points [N, 2], reconstructed by the mean of their region (rank 0) and its first axes."""
        return mse(self.reconstructed(x, rank), x)

    def reconstructed(self, x: Tensor, rank: int) -> Tensor:
        """float64 [N, 2]."""
        return self.pca.reconstruct(x, self.of(x), torch.full((len(self.centres),), rank))


def kmeans_regions(x: Tensor, clusters: int) -> Regions:
    """By scikit-learn's k-means from ten beginnings of k-means++; at most as many clusters as there are points."""
    from sklearn.cluster import KMeans

    tries: dict[str, Any] = {"n_init": 10}  # whose annotation says str, of its default
    found: Any = KMeans(min(clusters, len(x)), random_state=KMEANS_SEED, **tries).fit(x.double().numpy())
    return Regions(torch.from_numpy(found.cluster_centers_), pca_of(x, torch.from_numpy(found.labels_).long()))


def pca_of(x: Tensor, labels: Tensor) -> LocalPCA:
    """The PCA of points [N, 2] in each of the regions that labels, int64 [N], name."""
    moments = RegionMoments(torch.zeros(int(labels.max()) + 1, 2), _MEMORY)
    moments.add(x, labels)
    return moments.solve()


def mse(reconstructed: Tensor, x: Tensor) -> float:
    """The mean square over points and dimensions, as the scripts have it."""
    return float((reconstructed.double() - x.double()).square().mean())
