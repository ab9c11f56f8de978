"""Orthogonal matching pursuit, of many rows at once, in the dictionary's Gram matrix; signed and non-negative.

Signed (Pati et al., 1993; by the Gram matrix: Rubinstein, Zibulevsky & Elad, "Batch-OMP", 2008): take the atom that correlates most with
the residual, fit all chosen ones by least squares, and again. Non-negative: take the atom with the largest positive correlation, fit the
chosen ones by non-negative least squares, let go of those that come out at zero (Nguyen et al., "Non-negative orthogonal greedy algorithms", IEEE
Trans. Signal Process. 67, 2019). That is Lawson and Hanson's algorithm for non-negative least squares, stopped at k atoms.

Of the chosen atoms the inverse K of their Gram matrix is kept: with g their products with a new atom, v = (K·g, −1) and s = 1 − gᵀ·K·g,

    K ← K + v·vᵀ/s,    u ← u − v·c/s,    c the new atom's correlation with the residual,

and letting go of an atom j is K ← K − K_j·K_jᵀ/K_jj. These are the updates of a Cholesky factor L, K = L⁻ᵀ·L⁻¹, in a form that has no
order of elimination: atoms leave without a new factorisation, and all of it is element-wise work on small matrices. An atom with s below a
tolerance (in float32 0.2° away) lies in the span of the chosen ones; being the largest correlation, none has much more to give, and the row is done. Values are
refined once at the end, u ← u + K·(A_S·y − G_SS·u).

Every s multiplies the rounding in K by 1/s, so that k correlated atoms can leave nothing of it but rounding. K, g, s and u are float64 therefore, also of
float32 rows; the products with the dictionary, which do not add up, are in the rows' own dtype. A row that rounding would leave with more than ‖y‖² after
all is given its sizes scaled to the length that is best along them, which leaves no more than that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..sae import SparseCodes
from .correlate import Correlations, distinct, largest

# Of non-negative pursuit: atoms tried at most, in units of k; a row lets go of few, and this only bounds what rounding could make it repeat.
TRIES = 4


def pursue(rows: Correlations, k: int, signed: bool, residual: float = 0.0) -> SparseCodes:
    """Sizes of at most k atoms a row: codes [N, k], those not used with zero. Rows end before k at ‖y − x̂‖ ≤ residual·‖y‖."""
    return _signed(rows, k, residual) if signed else _non_negative(rows, k, residual)


def span_tolerance(dtype: torch.dtype) -> float:
    """Below which 1 − gᵀ·K·g, the squared sine between an atom and the chosen ones' span, is rounding."""
    return 1e-5 if dtype is torch.float32 else 1e-10


def noise(rows: Correlations) -> Tensor:
    """What a correlation must exceed to be no rounding, [N, 1]."""
    return rows.squared.sqrt()[:, None] * (16 * torch.finfo(rows.first.dtype).eps)


def _signed(rows: Correlations, k: int, residual: float) -> SparseCodes:
    n, d = rows.first.shape
    tolerance, floor = span_tolerance(rows.first.dtype), noise(rows)
    chosen = torch.zeros(n, k, dtype=torch.int64, device=rows.first.device)
    u, K = _zeros(rows, k), _zeros(rows, k, k)
    used = torch.zeros_like(chosen, dtype=torch.bool)
    alive = used.new_ones(n, 1)
    left, enough = rows.squared[:, None].double(), residual**2 * rows.squared[:, None]
    for w in range(k):
        correlations = rows.after(chosen[:, :w], u[:, :w].to(rows.first)) if w else rows.first
        new = largest(correlations, either_sign=True)
        c = correlations.gather(1, new).double()
        g = rows.between(chosen[:, :w], new).double()
        Kg = _matvec(K[:, :w, :w], g)
        s = 1 - (g * Kg).sum(1, keepdim=True)
        alive = alive & (s > tolerance) & (c.abs() > floor) & (left > enough)
        per_s = torch.where(alive, 1 / s, 0.0)
        v = torch.cat([Kg, Kg.new_full((n, 1), -1.0)], 1)
        K[:, : w + 1, : w + 1].addcmul_((v * per_s)[:, :, None], v[:, None, :])
        change = c * per_s
        u[:, : w + 1].addcmul_(v, change, value=-1)
        left = left.addcmul(c, change, value=-1)
        chosen[:, w : w + 1], used[:, w : w + 1] = new, alive
    u = _bounded(rows, chosen, u + _rest(rows, chosen, u, K))
    return SparseCodes(chosen if bool(used.all()) else distinct(chosen, used, d), u)


class _State(NamedTuple):
    """Of rows of non-negative pursuit: the atoms in each of k slots [N, k], which of these are in use, their sizes u (zero where not), and K
    [N, k, k], zero in rows and columns of slots that are not."""

    chosen: Tensor
    used: Tensor
    u: Tensor
    K: Tensor


def _non_negative(rows: Correlations, k: int, residual: float) -> SparseCodes:
    n, d = rows.first.shape
    u = _zeros(rows, k)
    chosen = torch.zeros(n, k, dtype=torch.int64, device=u.device)
    state = _State(chosen, torch.zeros_like(chosen, dtype=torch.bool), u, _zeros(rows, k, k))
    correlations, alive = rows.first, torch.ones_like(u[:, 0], dtype=torch.bool)
    for w in range(1, k + 1):
        alive = _add_one(rows, correlations, _State(chosen[:, :w], state.used[:, :w], u[:, :w], state.K[:, :w, :w]), residual)
        if w < k:
            correlations = rows.after(chosen[:, :w], u[:, :w].to(rows.first))
    # Rows that let atoms go have room for others: these few rows go on by themselves.
    going = (alive & ~state.used.all(1)).nonzero().squeeze(1)
    for _ in range((TRIES - 1) * k):
        if not len(going):
            break
        some, part = rows.take(going), _State(*(t[going] for t in state))
        alive = _add_one(some, some.after(part.chosen, part.u.to(some.first)), part, residual)
        for whole, t in zip(state, part, strict=True):
            whole[going] = t
        going = going[alive & ~part.used.all(1)]
    u = _bounded(rows, chosen, (u + _rest(rows, chosen, u, state.K)).clamp_(min=0))
    return SparseCodes(distinct(chosen, state.used, d), u)


def _add_one(rows: Correlations, correlations: Tensor, state: _State, residual: float) -> Tensor:
    """Take the best atom into a free slot and fit, in place. Returns whether there was one, [N]."""
    chosen, used, u, K = state
    new = largest(correlations)
    c = correlations.gather(1, new).double()
    place = used.to(torch.int8).argmin(1, keepdim=True)  # a free slot; where there is none the row is not alive
    g = rows.between(chosen, new).double()
    Kg = _matvec(K, g)
    s = 1 - (g * Kg).sum(1, keepdim=True)
    alive = (s > span_tolerance(rows.first.dtype)) & (c > noise(rows)) & ~used.gather(1, place)
    if residual:
        left = rows.squared[:, None] - (u * rows.first.gather(1, chosen)).sum(1, keepdim=True)
        alive &= left > residual**2 * rows.squared[:, None]
    per_s = torch.where(alive, 1 / s, 0.0)
    v = Kg.scatter(1, place, -1.0)
    K.addcmul_((v * per_s)[:, :, None], v[:, None, :])
    chosen.scatter_(1, place, torch.where(alive, new, chosen.gather(1, place)))
    used.scatter_(1, place, alive | used.gather(1, place))
    fitted = u - v * (c * per_s)
    infeasible = (fitted < 0).any(1).nonzero().squeeze(1)
    if len(infeasible):
        part = _State(*(t[infeasible] for t in state))
        fitted[infeasible] = _let_go(part, fitted[infeasible])
        used[infeasible], K[infeasible] = part.used, part.K
    u.copy_(fitted)
    return alive.squeeze(1)


def _let_go(state: _State, fitted: Tensor) -> Tensor:
    """The way from feasible sizes u to the least-squares ones, `fitted`: where an atom reaches zero it is let go, and the rest fitted anew.

    K and `used` are changed in place. Returns the sizes, none below zero.
    """
    _, used, u, K = state
    for _ in range(u.shape[1]):
        share, j = torch.where(fitted < 0, u / (u - fitted), torch.inf).min(1, keepdim=True)
        bound = share < torch.inf
        if not bound.any():
            break
        u = torch.lerp(u, fitted, torch.where(bound, share, 0.0))
        K_j = K.gather(2, j[:, :, None].expand(-1, K.shape[1], 1)).squeeze(2)
        per_K_jj = torch.where(bound, 1 / K_j.gather(1, j), 0.0)
        fitted = fitted - K_j * (fitted.gather(1, j) * per_K_jj)
        K.addcmul_((K_j * -per_K_jj)[:, :, None], K_j[:, None, :])
        gone = torch.zeros_like(used).scatter_(1, j, bound)
        K.masked_fill_(gone[:, :, None] | gone[:, None, :], 0.0)
        u, fitted = u.masked_fill(gone, 0.0), fitted.masked_fill(gone, 0.0)
        used &= ~gone
    return fitted.clamp_(min=0)


def _matvec(K: Tensor, g: Tensor) -> Tensor:
    """Symmetric K [N, w, w] times [N, w]; on a CPU faster than a batched product for matrices this small."""
    return (K * g[:, :, None]).sum(1)


def _rest(rows: Correlations, chosen: Tensor, u: Tensor, K: Tensor) -> Tensor:
    """K·(A_S·y − G_SS·u), [N, k]: what least squares on the residual adds, which is rounding; zero in slots that are not in use."""
    return _matvec(K, rows.after(chosen, u.to(rows.first)).gather(1, chosen).double())


def _bounded(rows: Correlations, chosen: Tensor, u: Tensor) -> Tensor:
    """Sizes u [N, k] in the rows' dtype; those that leave more than ‖y‖² scaled to leave least."""
    u = torch.where(u.isfinite().all(1, keepdim=True), u, 0.0).to(rows.first)
    left = rows.left(chosen, u)
    over = (left > rows.squared).nonzero().squeeze(1)
    if len(over):
        with_y = (u[over] * rows.first[over].gather(1, chosen[over])).sum(1).double()  # ⟨x̂, y⟩
        squared = left[over].double() - rows.squared[over] + 2 * with_y  # ‖x̂‖²
        u[over] *= torch.where(with_y > 0, with_y / squared, 0.0).clamp_(max=1)[:, None].to(u)
    return u


def _zeros(rows: Correlations, *shape: int) -> Tensor:
    return torch.zeros(len(rows.first), *shape, dtype=torch.float64, device=rows.first.device)
