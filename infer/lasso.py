"""Codes with an ℓ1 penalty: for each row y the sizes u that minimise ½‖y − u·A‖² + λ·Σ|u_i|, A the unit-norm atoms; signed or not negative.

ISTA (Daubechies et al., 2004) takes proximal gradient steps of length 1/L, L the largest eigenvalue of A·Aᵀ; the objective never rises.
FISTA (Beck & Teboulle, 2009) takes them from an extrapolated point, and forgets its momentum, row by row, where it points uphill
(O'Donoghue & Candès, "Adaptive restart for accelerated gradient schemes", 2015). Coordinate descent takes for each row the coordinate
whose exact minimiser is furthest away (Gauss-Southwell), which costs one row of the Gram matrix; with few codes that are not zero it is the fastest of them. The
locally competitive algorithm (Rozell et al., "Sparse coding via thresholding and local competition", 2008) is the neurons' way there:
τ·v̇ = A·y − v − (A·Aᵀ − I)·u with u = soft threshold of v at λ, in Euler steps dt/τ.

A row is done when its duality gap shows it within `gap_tolerance`·½‖y‖² of the optimum, and does not wait for others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..sae import decode, sparse_if_sparse
from .correlate import OfDictionary, largest
from .problem import Dictionary

_EVERY = 20  # steps between looks at the gap
_EVERY_COORDINATE = 64
# dt/τ of the locally competitive algorithm, unless 1/L, beyond which it may swing, is less.
LCA_RATE = 0.1


class Lasso(NamedTuple):
    """The problem of some rows y [N, d_in]: `rows` has their correlations with the atoms."""

    rows: OfDictionary
    dictionary: Dictionary
    l1: float
    signed: bool

    def correlations(self, u: Tensor) -> Tensor:
        """A·(y − u·A) of sizes u [N, d_sae]: [N, d_sae]."""
        # On a CPU few sizes that are not zero are worth looking for; a GPU would wait for their number.
        sizes = sparse_if_sparse(u) if u.device.type == "cpu" else u
        atoms = self.dictionary.atoms
        return (self.rows.y - decode(sizes, atoms, atoms.new_zeros(()))) @ atoms.T

    def shrink(self, v: Tensor, by: float) -> Tensor:
        """Soft threshold: of signed sizes both ways, else max(0, v − by)."""
        return torch.nn.functional.softshrink(v, by) if self.signed else (v - by).clamp_(min=0)

    def gap(self, u: Tensor, correlations: Tensor) -> Tensor:
        """Objective less the dual's value at the residual, scaled to be feasible: [N], never below the distance to the optimum."""
        penalty, squared = self.l1 * u.abs().sum(1), self.rows.squared
        with_y = squared - (u * self.rows.first).sum(1)  # ⟨residual, y⟩
        left = with_y - (u * correlations).sum(1)  # ‖residual‖²
        top = (correlations.abs() if self.signed else correlations).amax(1)
        scale = torch.where(top > self.l1, self.l1 / top, 1.0)
        return left / 2 + penalty - scale * with_y + scale * scale * left / 2

    def take(self, some: Tensor) -> Lasso:
        """The problem of some rows, int64 [M]."""
        return self._replace(rows=self.rows.take(some))


State = tuple[Tensor, ...]  # what a method keeps of its rows; the sizes come first


def gap_tolerance(dtype: torch.dtype) -> float:
    """Of the duality gap, as a part of ½‖y‖²."""
    return 1e-5 if dtype is torch.float32 else 1e-9


def ista(lasso: Lasso, steps: int, start: Tensor) -> Tensor:
    """Sizes [N, d_sae], from those of `start`."""
    length = 1 / lasso.dictionary.lipschitz

    def step(lasso: Lasso, state: State) -> State:
        (u,) = state
        return (lasso.shrink(torch.add(u, lasso.correlations(u), alpha=length), lasso.l1 * length),)

    return _solve(lasso, (start,), step, steps)


def fista(lasso: Lasso, steps: int, start: Tensor) -> Tensor:
    """Sizes [N, d_sae], from those of `start`."""
    length = 1 / lasso.dictionary.lipschitz

    def step(lasso: Lasso, state: State) -> State:
        u, v, t = state
        new = lasso.shrink(torch.add(v, lasso.correlations(v), alpha=length), lasso.l1 * length)
        change = new - u
        uphill = ((v - new) * change).sum(1, keepdim=True) > 0
        t = torch.where(uphill, 1.0, t)
        t_new = (1 + (1 + 4 * t * t).sqrt()) / 2
        return new, torch.addcmul(new, change, torch.where(uphill, 0.0, (t - 1) / t_new)), t_new

    return _solve(lasso, (start, start, start.new_ones(len(start), 1)), step, steps)


def coordinate_descent(lasso: Lasso, steps: int, start: Tensor) -> Tensor:
    """Sizes [N, d_sae], from those of `start`; a step is one coordinate of each row."""

    def step(lasso: Lasso, state: State) -> State:
        u, correlations = state
        change = lasso.shrink(u + correlations, lasso.l1).sub_(u)
        j = largest(change, either_sign=True)
        moved = change.gather(1, j)
        # In place: these are this solver's own.
        return u.scatter_add_(1, j, moved), correlations.sub_(lasso.rows.of(j, moved))

    state = (start.clone(), lasso.correlations(start))
    return _solve(lasso, state, step, steps, _EVERY_COORDINATE, lambda _, state: state[1])


def lca(lasso: Lasso, steps: int, rate: float | None) -> Tensor:
    """Sizes [N, d_sae], from rest. `rate` is dt/τ; None: LCA_RATE, or 1/L where that is less."""
    rate = min(LCA_RATE, 1 / lasso.dictionary.lipschitz) if rate is None else rate

    def step(lasso: Lasso, state: State) -> State:
        u, v = state
        v = torch.lerp(v, lasso.correlations(u).add_(u), rate)
        return lasso.shrink(v, lasso.l1), v

    zeros = torch.zeros_like(lasso.rows.first)
    return _solve(lasso, (zeros, zeros), step, steps)


def _solve(
    lasso: Lasso,
    state: State,
    step: Callable[[Lasso, State], State],
    steps: int,
    every: int = _EVERY,
    correlations: Callable[[Lasso, State], Tensor] = lambda lasso, state: lasso.correlations(state[0]),
) -> Tensor:
    """Steps until every row is done, at most `steps`; rows that are done take none any more."""
    u = state[0].clone()
    going = torch.arange(len(u), device=u.device)
    for i in range(1, steps + 1):
        if not len(going):
            break
        state = step(lasso, state)
        if i == steps:
            u[going] = state[0]
        elif i % every == 0:
            gap = lasso.gap(state[0], correlations(lasso, state))
            done = gap <= gap_tolerance(u.dtype) / 2 * lasso.rows.squared
            if done.any():
                u[going[done]] = state[0][done]
                rest = (~done).nonzero().squeeze(1)
                going, lasso, state = going[rest], lasso.take(rest), tuple(t[rest] for t in state)
    return u
