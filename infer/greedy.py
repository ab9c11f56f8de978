"""Matching pursuit and gradient pursuit, of many rows at once, signed and non-negative.

Both choose like orthogonal matching pursuit, by the largest correlation with the residual. Matching pursuit (Mallat & Zhang, 1993) takes that
atom's contribution and never looks back at the others; an atom may be taken again. Gradient pursuit (Blumensath & Davies, "Gradient pursuits", IEEE Trans. Signal
Process. 56, 2008) takes instead of the least-squares fit one step along the gradient g of the chosen atoms' sizes, of the length that is best
along it, ‖g‖²/‖Σ g_j·a_j‖². Non-negative: sizes that would fall below zero stay there, and where that bends the step, its best length along
the bent direction, up to the whole of it, is taken; the error never rises.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sae import SparseCodes
from .correlate import Correlations, distinct, largest
from .omp import noise


def matching_pursuit(rows: Correlations, k: int, signed: bool, residual: float = 0.0) -> SparseCodes:
    """k steps: sizes of at most k atoms a row, codes [N, k]. Rows end before at ‖y − x̂‖ ≤ residual·‖y‖."""
    correlations, floor = rows.first.clone(), noise(rows)
    sizes = torch.zeros_like(correlations)
    left, enough = rows.squared[:, None].clone(), residual**2 * rows.squared[:, None]
    for _ in range(k):
        new = largest(correlations, either_sign=signed)
        c = correlations.gather(1, new)
        c = torch.where(((c.abs() if signed else c) > floor) & (left > enough), c, 0.0)
        sizes.scatter_add_(1, new, c)
        left = left - c * c
        correlations -= rows.of(new, c)
    indices = sizes.abs().topk(k, dim=1).indices
    return SparseCodes(indices, sizes.gather(1, indices))


def gradient_pursuit(rows: Correlations, k: int, signed: bool, residual: float = 0.0) -> SparseCodes:
    """k steps, each with a new atom: codes [N, k], those not used with zero. Rows end before at ‖y − x̂‖ ≤ residual·‖y‖."""
    n, d = rows.first.shape
    correlations, floor = rows.first.clone(), noise(rows)
    chosen = torch.zeros(n, k, dtype=torch.int64, device=correlations.device)
    u, used = correlations.new_zeros(n, k), torch.zeros_like(chosen, dtype=torch.bool)
    alive = torch.ones(n, 1, dtype=torch.bool, device=correlations.device)
    left, enough = rows.squared[:, None].clone(), residual**2 * rows.squared[:, None]
    for w in range(1, k + 1):
        # Chosen atoms are not chosen again.
        of_chosen = correlations.gather(1, chosen[:, : w - 1])
        new = largest(correlations.scatter_(1, chosen[:, : w - 1], 0.0 if signed else -torch.inf), either_sign=signed)
        c = correlations.gather(1, new)
        correlations.scatter_(1, chosen[:, : w - 1], of_chosen)
        alive = alive & ((c.abs() if signed else c) > floor) & (left > enough)
        chosen[:, w - 1 : w], used[:, w - 1 : w] = new, alive
        S, sizes = chosen[:, :w], u[:, :w]
        g = torch.where(alive, torch.cat([of_chosen, c], 1), 0.0)
        if not signed:
            g = torch.where((sizes > 0) | (g > 0), g, 0.0)
        change, moved, length = _exact_step(rows, S, g, g)
        if not signed:
            bent = (sizes + change < 0).any(1).nonzero().squeeze(1)
            if len(bent):
                some, S_b, sizes_b = rows.take(bent), S[bent], sizes[bent]
                straight = (sizes_b + change[bent]).clamp_(min=0) - sizes_b
                change[bent], moved[bent], length[bent] = _exact_step(some, S_b, g[bent], straight, at_most=1.0)
        sizes += change
        left = left - (change * (2 * g - length * moved.gather(1, S))).sum(1, keepdim=True)
        correlations.addcmul_(moved, length, value=-1)
    return SparseCodes(chosen if bool(used.all()) else distinct(chosen, used, d), u if signed else u.clamp_(min=0))


def _exact_step(
    rows: Correlations, S: Tensor, g: Tensor, direction: Tensor, at_most: float = torch.inf
) -> tuple[Tensor, Tensor, Tensor]:
    """The best step along a direction [N, w] in the sizes of atoms S, whose correlations are g: that step, the direction's correlations with
    all atoms [N, d], and its length in units of it [N, 1]."""
    moved = rows.of(S, direction)
    squared = (direction * moved.gather(1, S)).sum(1, keepdim=True)
    length = torch.where(squared > 0, (direction * g).sum(1, keepdim=True) / squared, 0.0).clamp_(max=at_most)
    return direction * length, moved, length
