"""The decoder of Theorem C.1 without its matrix: conjugate gradients on products (Σ z zᵀ)·V."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SplinterpError
from .decoder import Decoder, Penalties
from .moments import Moments

_ROWS_AT_ONCE = 1024  # of the matrices, so that what is in between stays in the cache


class Solution(NamedTuple):
    """W with A·W ≈ C, the iterations taken, and the largest ‖C_j − A·W_j‖/‖C_j‖ over the columns j."""

    W: Tensor
    iterations: int
    residual: float


@torch.no_grad()
def conjugate_gradients(
    product: Callable[[Tensor], Tensor], C: Tensor, start: Tensor, diagonal: Tensor, tolerance: float, most: int
) -> Solution:
    """A⁻¹ C for a symmetric positive (semi-)definite A [d, d] given by its products, Jacobi-preconditioned, from `start`.

    All columns go through their own recurrences side by side, so that one product with [d, n] serves them all. Where A is singular
    and C in its range, what A does not see of `start` stays as it is. Memory: five matrices [d, n], C and `start` counted in.

    Args:
        product: V -> A·V. C, start: [d, n], float64; `start` is overwritten. diagonal: of A [d]; zero where A's row is.
        tolerance: of the relative residual, of every column. most: iterations.
    """
    inverse = torch.where(diagonal > 0, 1 / torch.where(diagonal > 0, diagonal, 1), 1)[:, None]
    W = start
    R = C - product(W)
    P = inverse * R
    size = C.norm(dim=0).clamp(min=1e-300)
    slices = [slice(a, a + _ROWS_AT_ONCE) for a in range(0, len(C), _ROWS_AT_ONCE)]

    ones = C.new_ones(_ROWS_AT_ONCE)  # a product with them is twice as fast as a sum over rows
    descent = torch.stack([inverse[some, 0] @ R[some].square() for some in slices]).sum(0)
    residual, done = float((R.norm(dim=0) / size).max()), 0
    while residual > tolerance and done < most:
        AP = product(P)
        curvature = torch.stack([ones[: len(P[some])] @ (P[some] * AP[some]) for some in slices]).sum(0)
        # A column that is solved, or along which rounding leaves no curvature, stands still.
        step = torch.where(curvature > 0, descent / torch.where(curvature > 0, curvature, 1), 0)
        before, descent, left = descent, torch.zeros_like(descent), torch.zeros_like(descent)
        for some in slices:
            W[some].addcmul_(P[some], step)
            squared = R[some].addcmul_(AP[some], step, value=-1).square()
            left += ones[: len(squared)] @ squared
            descent += inverse[some, 0] @ squared
        turn = torch.where(before > 0, descent / torch.where(before > 0, before, 1), 0)
        for some in slices:
            P[some].mul_(turn).addcmul_(inverse[some], R[some])
        residual, done = float((left.sqrt() / size).max()), done + 1
    return Solution(W, done, residual)


def solve_by_cg(
    moments: Moments,
    penalties: Penalties | None = None,
    W0: Tensor | None = None,
    b0: Tensor | None = None,
    *,
    start: Tensor | None = None,
    tolerance: float,
    most: int,
) -> Decoder:
    """The decoder of `solve_decoder`, whose arguments these are, to a relative residual of A·W = C.

    The centring −N c z̄ z̄ᵀ and the ridge enter each product as a rank-one term and a multiple of V.

    Args:
        start: W_dec to begin from [d_sae, d_in]; the anchor W0 if left out, or zero.
        tolerance, most: see `conjugate_gradients`; what was reached is in the result.
    """
    p = penalties or Penalties()
    if moments.rows <= 0:
        raise SplinterpError("The decoder cannot be solved from no rows.")
    n, sum_z, sum_x = moments.rows, moments.sum_z, moments.sum_x
    b0 = torch.zeros_like(sum_x) if b0 is None else b0.detach().to(sum_x)
    c, shift = n / (n + p.beta + p.nu), p.alpha + p.mu
    C = torch.addr(moments.cross, sum_z, sum_x + p.nu * b0, alpha=-c / n)
    if W0 is not None and p.mu:
        C.add_(W0.detach().to(C), alpha=p.mu)
    begin = W0 if start is None else start
    begin = torch.zeros_like(C) if begin is None else begin.detach().to(C, copy=True)

    def product(V: Tensor) -> Tensor:
        return moments.product(V).addr_(sum_z, sum_z @ V, alpha=-c / n).add_(V, alpha=shift)

    diagonal = moments.diagonal - c / n * sum_z.square() + shift
    W, iterations, residual = conjugate_gradients(product, C, begin, diagonal, tolerance, most)
    b = p.nu * b0 / (n + p.beta + p.nu) + c * (sum_x - sum_z @ W) / n
    return Decoder(W, b, "cg", 0.0, iterations, residual)
