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

_STRONGEST = 256  # inactive generators whose pairs are bounded in every row
_CANDIDATES = 32  # pairs that are looked at in every row
_ENTRIES = 2**22  # pairs, or pre-activations, at once


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
    at_once = max(1, _ENTRIES // max(len(own.offsets), _STRONGEST * (own.k or 1)))
    found = [_nearest(own, some.double()) for some in x.split(at_once)]
    return Border(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _nearest(own: Generators, x: Tensor) -> Border:
    pre, active, sizes = own.pre_activations(x), own.active(x), own.directions.norm(dim=1)
    none = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    full = active.sum(1) == own.k if own.k is not None else torch.zeros(len(x), dtype=torch.bool, device=x.device)
    single = (pre.abs() / sizes).masked_fill((sizes == 0) | (full[:, None] & ~active), torch.inf)
    distance, place = single.min(1)
    switched_off = active.gather(1, place[:, None])[:, 0]
    switched_on = ~switched_off & distance.isfinite()
    leaves, enters = torch.where(switched_off & distance.isfinite(), place, none), torch.where(switched_on, place, none)
    if full.any() and own.k is not None and own.k < pre.shape[1]:
        swap = _nearest_swap(own, pre[full], active[full], sizes)
        first = swap.distance < distance[full]
        for mine, theirs in zip((distance, leaves, enters), swap, strict=True):
            mine[full] = torch.where(first, theirs, mine[full])
    return Border(distance, leaves, enters)


def _nearest_swap(own: Generators, pre: Tensor, active: Tensor, sizes: Tensor) -> Border:
    """Of rows with K active: the nearest border at which an inactive generator takes an active one's place.

    Among the strongest inactive ones first; all others are further than their weakest could be, or are looked at too.
    """
    n, g = pre.shape
    inside = active.nonzero()[:, 1].view(n, -1)
    others = g - inside.shape[1]
    strongest = pre.masked_fill(active, -torch.inf).topk(min(_STRONGEST, others), dim=1)
    found = _best_pair(own, pre, sizes, inside, strongest.indices)
    if others > _STRONGEST:
        gap = pre.gather(1, inside).amin(1) - strongest.values[:, -1]
        unsure = found.distance > gap / (sizes[inside].amax(1) + sizes.max())
        for row in unsure.nonzero()[:, 0].tolist():
            outside = (~active[row]).nonzero()[:, 0][None]
            one = _best_pair(own, pre[row][None], sizes, inside[row][None], outside)
            for mine, theirs in zip(found, one, strict=True):
                mine[row] = theirs[0]
    return found


def _best_pair(own: Generators, pre: Tensor, sizes: Tensor, inside: Tensor, outside: Tensor) -> Border:
    """The least (p_i − p_j)/‖w_i − w_j‖ of rows [N, G] over i in `inside` [N, K] and j in `outside` [N, M]."""
    (n, k), m = inside.shape, outside.shape[1]
    gaps = (pre.gather(1, inside)[:, :, None] - pre.gather(1, outside)[:, None]).view(n, k * m)
    bound = gaps / (sizes[inside][:, :, None] + sizes[outside][:, None]).view(n, k * m)
    bound = bound.masked_fill(bound.isnan(), torch.inf)

    def exact(rows: Tensor, pairs: Tensor) -> Tensor:
        size = (own.directions[inside[rows, pairs // m]] - own.directions[outside[rows, pairs % m]]).norm(dim=-1)
        return (gaps[rows, pairs] / size).masked_fill(size == 0, torch.inf)

    lowest, pairs = bound.topk(min(_CANDIDATES, k * m), dim=1, largest=False)
    rows = torch.arange(n, device=pre.device)
    distance, place = exact(rows[:, None], pairs).min(1)
    pair = pairs.gather(1, place[:, None])[:, 0]
    for row in (distance > lowest[:, -1]).nonzero()[:, 0].tolist():
        rest = (bound[row] < distance[row]).nonzero()[:, 0]
        if len(rest):
            distances = exact(rest.new_tensor(row), rest)
            best = int(distances.argmin())
            if distances[best] < distance[row]:
                distance[row], pair[row] = distances[best], rest[best]
    return Border(distance, inside[rows, pair // m], outside[rows, pair % m])
