"""The sufficient statistics of the decoder: sums over rows, so that they stream, merge by addition, and never hold the
codes of all rows: of one batch at most (sparse on a CPU, dense on a GPU).

Names as in Theorem C.1 of SplInterp (arXiv 2505.11836), one row of codes z [d_sae] to one row of activations x [d_in]:
gram Σ z zᵀ, cross Σ z xᵀ, sum_z Σ z, sum_x Σ x, sum_xx Σ ‖x‖², rows N.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..sae import Codes, SparseCodes, to_csr, to_dense
from .state import State, number

# Below this share of non-zeros the CPU's sparse products beat the dense ones by a wide margin.
_SPARSE_BELOW = 0.1
# The stored sums are the true ones divided by a factor that decays; they are brought up to date before it underflows.
_SMALLEST_FACTOR = 1e-9
_SUMS = ("gram", "cross", "sum_z", "sum_x")


class Statistics:
    """Sums over rows that determine the optimal decoder and its exact loss.

    Products within a batch are taken in the dtype of the rows given, sums over batches in float64. Memory: 8·d_sae·(d_sae + d_in) bytes.
    """

    def __init__(self, d_in: int, d_sae: int, device: str | torch.device = "cpu") -> None:
        self.d_in, self.d_sae = d_in, d_sae
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)  # noqa: E731
        self._gram, self._cross = zeros(d_sae, d_sae), zeros(d_sae, d_in)
        self._sum_z, self._sum_x = zeros(d_sae), zeros(d_in)
        self._sum_xx, self._rows = 0.0, 0.0
        self._factor = 1.0

    @property
    def gram(self) -> Tensor:
        """Σ z zᵀ, float64 [d_sae, d_sae]."""
        return self._settled()._gram

    @property
    def cross(self) -> Tensor:
        """Σ z xᵀ, float64 [d_sae, d_in]."""
        return self._settled()._cross

    @property
    def sum_z(self) -> Tensor:
        """Σ z, float64 [d_sae]."""
        return self._settled()._sum_z

    @property
    def sum_x(self) -> Tensor:
        """Σ x, float64 [d_in]."""
        return self._settled()._sum_x

    @property
    def sum_xx(self) -> float:
        """Σ ‖x‖²."""
        return self._sum_xx * self._factor

    @property
    def rows(self) -> float:
        """N, the number of rows; fractional once they have decayed."""
        return self._rows * self._factor

    @torch.no_grad()
    def add(self, x: Tensor, codes: Codes) -> None:
        """Add rows x [N, d_in] with their codes."""
        weight = 1.0 / self._factor
        if x.device.type == "cpu" and _is_sparse(codes):
            self._add_sparse(x, codes, weight)
        else:
            z = to_dense(codes, self.d_sae).to(x.dtype)
            self._gram.add_(z.T @ z, alpha=weight)
            self._cross.add_(z.T @ x, alpha=weight)
            self._sum_z.add_(z.sum(0, dtype=torch.float64), alpha=weight)
        self._sum_x.add_(x.sum(0, dtype=torch.float64), alpha=weight)
        self._sum_xx += weight * float(torch.linalg.vector_norm(x, dtype=torch.float64) ** 2)
        self._rows += weight * len(x)

    def _add_sparse(self, x: Tensor, codes: Codes, weight: float) -> None:
        z = to_csr(codes, self.d_sae).astype(x.numpy().dtype, copy=False)
        zt = z.T.tocsr()  # one transposed pattern for the Gram matrix and the cross moment
        product = (zt @ z).tocsr()
        # Every (row, column) occurs once in a CSR product, so that adding by index is exact and touches only what is not zero.
        flat = np.repeat(np.arange(self.d_sae, dtype=np.int64) * self.d_sae, np.diff(product.indptr)) + product.indices
        self._gram.view(-1).numpy()[flat] += product.data.astype(np.float64) * weight
        self._cross.add_(torch.from_numpy(zt @ x.numpy()), alpha=weight)
        self._sum_z.add_(torch.from_numpy(z.sum(0, dtype=np.float64)), alpha=weight)

    def decay(self, factor: float) -> None:
        """Weigh all rows so far by `factor` in (0, 1]: an exponential window of 1/(1 − factor) batches. Costs nothing."""
        self._factor *= factor
        if self._factor < _SMALLEST_FACTOR:
            self._settled()

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both sets of rows, as new statistics."""
        merged = Statistics(self.d_in, self.d_sae, self._gram.device)
        merged.absorb(self)
        merged.absorb(other)
        return merged

    def absorb(self, other: Statistics) -> None:
        """Add the sums of other rows to these, in place."""
        self._settled()
        other._settled()
        for name in ("_gram", "_cross", "_sum_z", "_sum_x"):
            getattr(self, name).add_(getattr(other, name))
        self._sum_xx += other._sum_xx
        self._rows += other._rows

    def rescale_latents(self, factors: Tensor) -> None:
        """Change of gauge: the statistics as if every code of latent i had been multiplied by factors[i]; factors [d_sae]."""
        s = factors.to(self._gram)
        self._gram.mul_(s[:, None]).mul_(s)
        self._cross.mul_(s[:, None])
        self._sum_z.mul_(s)

    def loss(self, W_dec: Tensor, b_dec: Tensor) -> float:
        """Σ ‖z·W_dec + b_dec − x‖² over the rows, exact for any W_dec [d_sae, d_in], b_dec [d_in], without another pass."""
        W, b = W_dec.double(), b_dec.double()
        quadratic = (W * (self.gram @ W)).sum() - 2 * (W * self.cross).sum()
        offset = 2 * b @ (self.sum_z @ W - self.sum_x) + self.rows * b @ b
        return float(quadratic + offset) + self.sum_xx

    def variance(self) -> float:
        """Σ ‖x − x̄‖² over the rows: what FVU divides by."""
        return self.sum_xx - float(self.sum_x @ self.sum_x) / max(self.rows, 1e-300)

    def state(self) -> dict[str, Tensor]:
        """The sums as they stand, the factor still apart: bringing them up to date here would round where no one else does."""
        numbers = {name: number(getattr(self, "_" + name)) for name in ("sum_xx", "rows", "factor")}
        return {name: getattr(self, "_" + name) for name in _SUMS} | numbers

    def load_state(self, state: State) -> None:
        """Take the sums back."""
        for name in _SUMS:
            getattr(self, "_" + name).copy_(state[name])
        self._sum_xx, self._rows, self._factor = (float(state[name]) for name in ("sum_xx", "rows", "factor"))

    def _settled(self) -> Statistics:
        if self._factor != 1.0:
            for tensor in (self._gram, self._cross, self._sum_z, self._sum_x):
                tensor.mul_(self._factor)
            self._sum_xx *= self._factor
            self._rows *= self._factor
            self._factor = 1.0
        return self


def _is_sparse(codes: Codes) -> bool:
    if isinstance(codes, SparseCodes):
        return True
    return float(torch.count_nonzero(codes)) < _SPARSE_BELOW * codes.numel()
