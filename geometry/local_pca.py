"""Piecewise-affine autoencoders on given regions: the region's mean (k-means, rank 0), and its mean plus PCA (SplInterp, Theorem 2.6).

On given regions, with a price λ for every coefficient, the optimal piecewise-affine autoencoder is in region r x̂ = m_r + V_r·V_rᵀ·(x − m_r), with m_r the
region's mean and V_r the eigenvectors of its covariance with the K_r = #{σ_j > λ} eigenvalues above λ. Its cost a row is Σ_{j>K_r} σ_j + λ·K_r. So no
autoencoder that is affine on each of these regions, with a slope of rank at most K_r there, has a lower error on the rows that the means and
covariances come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..quantities import format_bytes


def rank_rule(eigenvalues: Tensor, price: float) -> Tensor:
    """K_r = #{j : σ_j > λ} of each region: eigenvalues [R, d] (or [d]) -> int64 [R] (or a scalar)."""
    return (eigenvalues > price).sum(-1)


def region_cost(eigenvalues: Tensor, price: float) -> Tensor:
    """The optimal cost a row, Σ_{j>K} σ_j + λK = Σ_j min(σ_j, λ): eigenvalues [R, d] (or [d]) -> [R] (or a scalar)."""
    return eigenvalues.clamp(max=price).sum(-1)


class RegionMoments:
    """Running float64 sums of rows by region, around a shift of each region's own: n_r, Σ(x − s_r) and Σ(x − s_r)(x − s_r)ᵀ.

    It takes regions·d_in²·8 bytes.

    Attributes:
        shift: [R, d_in], near the regions' means, so that no digits are lost. counts: int64 [R].
    """

    def __init__(self, shift: Tensor, memory: int) -> None:
        """memory: bytes that the second moments may take.

        Raises:
            SplinterpError: they take more.
        """
        regions, d = shift.shape
        self.check(regions, d, memory)
        self.shift = shift.double()
        self.counts = torch.zeros(regions, dtype=torch.int64)
        self._sums = torch.zeros(regions, d, dtype=torch.float64)
        self._squares = torch.zeros(regions, d, d, dtype=torch.float64)

    @staticmethod
    def check(regions: int, d_in: int, memory: int) -> None:
        """See that the second moments fit. Raises SplinterpError otherwise."""
        if (needed := moments_bytes(regions, d_in)) > memory:
            raise SplinterpError(
                f"The covariances of {regions:,} regions of width {d_in:,} take {format_bytes(needed)}, more than the {format_bytes(memory)} that "
                f"they may; at most {memory // moments_bytes(1, d_in):,} --regions fit, or raise --memory."
            )

    def add(self, x: Tensor, regions: Tensor) -> None:
        """Rows [N, d_in] and their regions, int64 [N]."""
        order = regions.argsort(stable=True)
        found, counts = regions[order].unique_consecutive(return_counts=True)
        self.counts[found] += counts
        for region, rows in zip(found.tolist(), x[order].split(counts.tolist()), strict=True):
            away = rows.double() - self.shift[region]
            self._sums[region] += away.sum(0)
            self._squares[region].addmm_(away.T, away)

    def solve(self) -> LocalPCA:
        """The regions' PCA. The second moments become the axes, in place: these sums are of no use afterwards."""
        n = self.counts.clamp(min=1)[:, None]
        means = self._sums / n
        eigenvalues = torch.zeros_like(means)
        for region in range(len(n)):
            covariance = self._squares[region].div_(n[region]).addr_(means[region], means[region], alpha=-1)
            values, vectors = torch.linalg.eigh(covariance)
            eigenvalues[region] = values.flip(0).clamp(min=0)
            self._squares[region] = vectors.flip(1)
        return LocalPCA(self.shift + means, eigenvalues, self._squares, self.counts)


def moments_bytes(regions: int, d_in: int) -> int:
    """What the second moments of regions take."""
    return 8 * regions * d_in**2


@dataclass(frozen=True)
class LocalPCA:
    """The PCA of each of R regions, in float64.

    Attributes:
        means: [R, d_in]; of regions without rows their shift. eigenvalues: [R, d_in] of the covariances, descending.
        axes: [R, d_in, d_in], eigenvectors in columns, in their order. counts: int64 [R], rows that they come from.
    """

    means: Tensor
    eigenvalues: Tensor
    axes: Tensor
    counts: Tensor

    def coefficients(self, x: Tensor, regions: Tensor) -> Tensor:
        """Rows [N, d_in] in their regions' axes, Vᵀ(x − m): float64 [N, d_in]. Rows are best ordered by region."""
        out = torch.empty(x.shape, dtype=torch.float64)
        for region in regions.unique().tolist():
            here = regions == region
            out[here] = (x[here].double() - self.means[region]) @ self.axes[region]
        return out

    def reconstruct(self, x: Tensor, regions: Tensor, ranks: Tensor) -> Tensor:
        """x̂ = m + V_K·V_Kᵀ·(x − m), with the first K = ranks[r] axes of each row's region: float64 [N, d_in]."""
        out = torch.empty(x.shape, dtype=torch.float64)
        for region in regions.unique().tolist():
            here, basis = regions == region, self.axes[region][:, : int(ranks[region])]
            out[here] = self.means[region] + (x[here].double() - self.means[region]) @ basis @ basis.T
        return out

    def training_error(self, ranks: Tensor) -> float:
        """Σ‖x − x̂‖² over the rows that the PCA comes from, with the first ranks[r] axes: Σ_r n_r·Σ_{j>K_r} σ_j."""
        return float(self.counts.double() @ left_over(self.eigenvalues, ranks))


def left_over(energies: Tensor, ranks: Tensor) -> Tensor:
    """Σ_{j>K_r} of energies [R, d] by axis: [R]."""
    beyond = torch.arange(energies.shape[1]) >= ranks[:, None]
    return (energies * beyond).sum(1)
