"""How far a row is from the border of its region, and which region lies behind it.

A region is an intersection of half-spaces, so that the distance from a row within it to its border is the least distance to any of their
hyperplanes: those that are no facet lie no nearer. With pre-activations p they are

- p_i = 0 for an active latent i, which the ReLU switches off, and, where fewer than K are active (always, without a K), for an inactive one, which it
  switches on: at |p_i| / ‖w_i‖;
- p_i = p_j for an active i and an inactive j, where K are active: at (p_i − p_j) / ‖w_i − w_j‖.

Behind the nearest one lies the neighbouring region. ‖w_i − w_j‖ ≤ ‖w_i‖ + ‖w_j‖ bounds the distances of all pairs from below without a product; only
pairs whose bound is below the best distance found are looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .power_diagram import Generators

_CANDIDATES = 32  # pairs that are looked at in every row
_ENTRIES = 2**22  # pairs at once


class Border(NamedTuple):
    """The nearest border of each of N rows.

    Attributes:
        distance: float64 [N]; infinite where the region has no border.
        leaves, enters: int64 [N], the generators that behind it are active no more, and newly; −1: none.
    """

    distance: Tensor
    leaves: Tensor
    enters: Tensor


@torch.no_grad()
def nearest_border(own: Generators, x: Tensor) -> Border:
    """The nearest border of rows [N, d_in], in float64."""
    g = len(own.offsets)
    at_once = max(1, _ENTRIES // (g * (own.k or 1)))
    found = [_nearest(own, some.double()) for some in x.split(at_once)]
    return Border(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _nearest(own: Generators, x: Tensor) -> Border:
    pre, active, sizes = own.pre_activations(x), own.active(x), own.directions.norm(dim=1)
    none = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    full = active.sum(1) == own.k if own.k is not None else torch.zeros(len(x), dtype=torch.bool, device=x.device)
    single = (pre.abs() / sizes).masked_fill((sizes == 0) | (full[:, None] & ~active), torch.inf)
    distance, place = single.min(1)
    switched_off = active.gather(1, place[:, None])[:, 0]
    leaves, enters = torch.where(switched_off, place, none), torch.where(switched_off, none, place)
    if full.any() and own.k is not None and own.k < pre.shape[1]:
        swap = _nearest_swap(own, x[full], pre[full], active[full], sizes)
        first = swap.distance < distance[full]
        for mine, theirs in zip((distance, leaves, enters), swap, strict=True):
            mine[full] = torch.where(first, theirs, mine[full])
    return Border(distance, leaves, enters)


def _nearest_swap(own: Generators, x: Tensor, pre: Tensor, active: Tensor, sizes: Tensor) -> Border:
    """Of rows with K active: the nearest border at which an inactive generator takes an active one's place."""
    n, g = pre.shape
    k = own.k or 0
    inside = active.nonzero()[:, 1].view(n, k)
    gaps = pre.gather(1, inside)[:, :, None] - pre[:, None, :]
    bound = gaps / (sizes[inside][:, :, None] + sizes)
    bound = bound.nan_to_num(torch.inf).masked_fill(active[:, None, :], torch.inf).view(n, k * g)
    gaps = gaps.view(n, k * g)

    def exact(rows: Tensor, pairs: Tensor) -> Tensor:
        apart = own.directions[inside[rows, pairs // g]] - own.directions[pairs % g]
        size = apart.norm(dim=-1)
        return (gaps[rows, pairs] / size).masked_fill((size == 0) | bound[rows, pairs].isinf(), torch.inf)

    lowest, pairs = bound.topk(min(_CANDIDATES, k * g), dim=1, largest=False)
    rows = torch.arange(n, device=x.device)
    distance, place = exact(rows[:, None], pairs).min(1)
    pair = pairs.gather(1, place[:, None])[:, 0]
    for row in (distance > lowest[:, -1]).nonzero()[:, 0].tolist():
        rest = (bound[row] < distance[row]).nonzero()[:, 0]
        if len(rest):
            distances = exact(rest.new_tensor(row), rest)
            best = int(distances.argmin())
            if distances[best] < distance[row]:
                distance[row], pair[row] = distances[best], rest[best]
    return Border(distance, inside[rows, pair // g], pair % g)
