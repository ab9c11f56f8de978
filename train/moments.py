"""What the optimal decoder and its exact loss are made from, whether or not the Gram matrix is ever formed."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Moments(Protocol):
    """Sums over rows x [d_in] with their codes z [d_sae]; tensors in float64."""

    @property
    def cross(self) -> Tensor:
        """Σ z xᵀ, [d_sae, d_in]."""
        ...

    @property
    def sum_z(self) -> Tensor:
        """Σ z, [d_sae]."""
        ...

    @property
    def sum_x(self) -> Tensor:
        """Σ x, [d_in]."""
        ...

    @property
    def sum_xx(self) -> float:
        """Σ ‖x‖²."""
        ...

    @property
    def rows(self) -> float:
        """N."""
        ...

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of Σ z zᵀ, [d_sae]."""
        ...

    def product(self, V: Tensor) -> Tensor:
        """(Σ z zᵀ)·V for a float64 V [d_sae, n]."""
        ...


def squared_error(moments: Moments, W_dec: Tensor, b_dec: Tensor) -> float:
    """Σ ‖z·W_dec + b_dec − x‖² over the rows, exact for any W_dec [d_sae, d_in], b_dec [d_in]."""
    W, b = W_dec.double(), b_dec.double()
    quadratic = (W * moments.product(W)).sum() - 2 * (W * moments.cross).sum()
    offset = 2 * b @ (moments.sum_z @ W - moments.sum_x) + moments.rows * b @ b
    return float(quadratic + offset) + moments.sum_xx


def variance(moments: Moments) -> float:
    """Σ ‖x − x̄‖² over the rows: what FVU divides by."""
    return moments.sum_xx - float(moments.sum_x @ moments.sum_x) / max(moments.rows, 1e-300)


def mean_diagonal(moments: Moments) -> float:
    """The mean of the diagonal of the centred Gram matrix: the unit in which a relative ridge is given."""
    centred = moments.diagonal - moments.sum_z.square() / max(moments.rows, 1e-300)
    return float(centred.clamp(min=0).mean())
