"""The decoder in closed form: Theorem C.1 of SplInterp (arXiv 2505.11836), in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SplinterpError
from .gram import Statistics

_ROWS_AT_ONCE = 256  # of a Gram matrix, so that what is in between stays in the cache


@dataclass(frozen=True)
class Penalties:
    """The decoder's penalties, for a loss that is a *sum* over rows: α‖W‖² + β‖b‖² + μ‖W − W₀‖² + ν‖b − b₀‖².

    Attributes:
        alpha: weight decay of W_dec. beta: weight decay of b_dec. mu: pull of W_dec towards its anchor. nu: pull of b_dec towards its anchor.
    """

    alpha: float = 0.0
    beta: float = 0.0
    mu: float = 0.0
    nu: float = 0.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "mu", "nu"):
            if not getattr(self, name) >= 0:
                raise SplinterpError(f"The penalty {name}={getattr(self, name)} must be zero or positive.")


@dataclass(frozen=True)
class Decoder:
    """A solved decoder, float64.

    Attributes:
        W_dec: [d_sae, d_in]. b_dec: [d_in].
        how: "cholesky", "cholesky in float32", "cholesky+jitter" (rounding made the matrix indefinite and the ridge had to be raised by
            `jitter`), "eigh", or "cg" (conjugate gradients, without the matrix).
        jitter: what was added to the diagonal beyond the penalties.
        iterations, residual: of conjugate gradients: how many, and the largest relative residual of a column.
    """

    W_dec: Tensor
    b_dec: Tensor
    how: str
    jitter: float
    iterations: int | None = None
    residual: float | None = None


def solve_decoder(
    statistics: Statistics,
    penalties: Penalties | None = None,
    W0: Tensor | None = None,
    b0: Tensor | None = None,
    quick: bool = False,
) -> Decoder:
    """argmin over (W, b) of Σ_r ‖z_r·W + b − x_r‖² + α‖W‖² + β‖b‖² + μ‖W − W₀‖² + ν‖b − b₀‖² (Theorem C.1).

    With c = N/(N + β + ν):
        A = Σ z zᵀ − N c z̄ z̄ᵀ + (α + μ) I,   C = Σ z xᵀ − c z̄ (N x̄ + ν b₀)ᵀ + μ W₀,
        W = A⁻¹ C,   b = ν b₀/(N + β + ν) + c (x̄ − z̄·W).

    Args:
        statistics: the sums over rows.
        W0: the anchor of W_dec [d_sae, d_in]; zero if left out. b0: the anchor of b_dec [d_in]; zero if left out.
        quick: factorise in float32, in half the time, where the matrix is so well conditioned that it hardly matters.
    """
    p = penalties or Penalties()
    if statistics.rows <= 0:
        raise SplinterpError("The decoder cannot be solved from no rows.")
    gram, cross, sum_z, sum_x, n = statistics.gram, statistics.cross, statistics.sum_z, statistics.sum_x, statistics.rows
    b0 = torch.zeros_like(sum_x) if b0 is None else b0.to(sum_x)
    c = n / (n + p.beta + p.nu)
    shift = p.alpha + p.mu
    C = torch.addr(cross, sum_z, sum_x + p.nu * b0, alpha=-c / n)
    if W0 is not None and p.mu:
        C.add_(W0.to(C), alpha=p.mu)
    W, how, jitter = (
        _solve_quickly(_centred(gram, sum_z, c / n, shift, torch.float32), C) if quick else None
    ) or _solve_positive(_centred(gram, sum_z, c / n, shift, torch.float64), C)
    b = p.nu * b0 / (n + p.beta + p.nu) + c * (sum_x - sum_z @ W) / n
    return Decoder(W, b, how, jitter)


def _centred(gram: Tensor, sum_z: Tensor, weight: float, shift: float, dtype: torch.dtype) -> Tensor:
    """Σ z zᵀ − weight·(Σ z)(Σ z)ᵀ + shift·I [d, d], by parts, so that nothing else of that size is made."""
    A = torch.empty_like(gram, dtype=dtype)
    for part, rows, z in zip(A.split(_ROWS_AT_ONCE), gram.split(_ROWS_AT_ONCE), sum_z.split(_ROWS_AT_ONCE), strict=True):
        part.copy_(torch.addr(rows, z, sum_z, alpha=-weight))
    A.diagonal().add_(shift)
    return A


def _solve_quickly(A: Tensor, C: Tensor) -> tuple[Tensor, str, float] | None:
    """A⁻¹ C by a Cholesky factorisation of A in float32; None where rounding could be felt."""
    factor, failed = torch.linalg.cholesky_ex(A)
    if failed or not _well_conditioned(factor, 1e-3):
        return None
    return torch.cholesky_solve(C.to(A.dtype), factor).to(C.dtype), "cholesky in float32", 0.0


def _solve_positive(A: Tensor, C: Tensor) -> tuple[Tensor, str, float]:
    """A⁻¹ C for a symmetric positive semi-definite A [d, d], which is overwritten: Cholesky; the ridge raised if that fails; then eigh."""
    unit = float(A.diagonal().abs().mean()) or 1.0
    jitter = 0.0
    for relative in (0.0, 1e-14, 1e-12, 1e-10):
        A.diagonal().add_(relative * unit - jitter)
        jitter = relative * unit
        factor, failed = torch.linalg.cholesky_ex(A)
        if not failed and _well_conditioned(factor, 1e-8):
            return torch.cholesky_solve(C, factor), "cholesky" if not relative else "cholesky+jitter", jitter
    A.diagonal().sub_(jitter)
    values, vectors = torch.linalg.eigh(A)
    keep = values > values[-1].clamp(min=0) * len(A) * torch.finfo(A.dtype).eps
    inverse = torch.where(keep, 1 / torch.where(keep, values, 1), 0)  # the minimum-norm solution
    return vectors @ (inverse[:, None] * (vectors.T @ C)), "eigh", 0.0


def _well_conditioned(factor: Tensor, least: float) -> bool:
    diagonal = factor.diagonal()
    return bool(diagonal.min() > least * diagonal.max())
