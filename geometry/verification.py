"""Whether an SAE's active sets are those of its power diagram, row by row, with ties counted apart.

A row is tied where the float32 encoder may be on the wrong side of a border that the row lies at: where some latent outside the active set
could by its rounding (`Generators.tolerance`) come before one inside, or a positive pre-activation be none. What is counted is the active
set, the positive part of the top K, since x̂ depends on nothing else; which latents TopK selects beyond those that the ReLU leaves is of no
effect. Rows with fewer than K active are counted, and verified like the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sae import SAE
from .polyhedral import arrangement_generators
from .power_diagram import EPSILON_64, ROUNDINGS, PowerDiagram, active_generators, generators, power_distances

_ENTRIES = 2**22  # distances at once


@dataclass
class Verification:
    """Counts over rows.

    Attributes:
        rows: all. tied: those at a border. agree: active set and diagram agree. agree_untied: of those that are not tied.
        short: rows with fewer than k active.
    """

    rows: int = 0
    tied: int = 0
    agree: int = 0
    agree_untied: int = 0
    short: int = 0

    @property
    def share(self) -> float:
        """Of the rows that are not tied those that agree; NaN where all are tied."""
        return self.agree_untied / (self.rows - self.tied) if self.rows > self.tied else float("nan")

    def count(self, agree: Tensor, tied: Tensor) -> None:
        """Add rows, bool [N] each."""
        self.rows += len(agree)
        self.tied += int(tied.sum())
        self.agree += int(agree.sum())
        self.agree_untied += int((agree & ~tied).sum())


class DiagramCheck:
    """The check of a topk or abstopk SAE against its power diagram, batch by batch."""

    def __init__(self, sae: SAE) -> None:
        self.sae, self.diagram, self.generators = sae, PowerDiagram.of(sae), generators(sae)
        self.counts = Verification()

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Rows [N, d_in] in float32, encoded as they are everywhere; their power distances in float64."""
        diagram = self.diagram
        for some in x.split(max(1, _ENTRIES // len(diagram.weights))):
            active = active_generators(self.sae, self.sae.encode(some))
            distances = diagram.distances(some)
            pre = (some.double().square().sum(1, keepdim=True) - distances) / 2
            nearest = diagram.active(distances, some)
            tolerance = self.generators.tolerance(some) + _rounding_64(some, diagram)
            self.counts.count((active == nearest).all(1), tied_rows(pre, tolerance, nearest, diagram.k))
            self.counts.short += int((active.sum(1) < diagram.k).sum())


def _rounding_64(x: Tensor, diagram: PowerDiagram) -> Tensor:
    """How far the power distances' halves may be off themselves: [N, G]."""
    sizes = diagram.centres.square().sum(1) + diagram.weights.abs()
    return ROUNDINGS * x.shape[1] ** 0.5 * EPSILON_64 * (x.double().square().sum(1, keepdim=True) + sizes)


def tied_rows(pre: Tensor, tolerance: Tensor, active: Tensor, k: int) -> Tensor:
    """Which rows lie at a border: pre, tolerance and active [N, G] -> bool [N]."""
    inside = torch.where(active, pre - tolerance, torch.inf).amin(1)
    outside = torch.where(active, -torch.inf, pre + tolerance).amax(1)
    full = active.sum(1) == k
    return (inside <= 0) | torch.where(full, inside <= outside, outside >= 0)


@torch.no_grad()
def check_arrangement(sae: SAE, x: Tensor) -> Verification:
    """The check of a standard or jumprelu SAE: of the generators of all cells that rows [N, d_in] visit, is the one of a row's own cell nearest?

    Cells are those of the SAE's own float32 codes. A row is tied where some pre-activation is as near to its threshold as rounding tells. It
    takes N·(cells) distances.
    """
    affine = generators(sae)
    cells, own = active_generators(sae, sae.encode(x)).unique(dim=0, return_inverse=True)
    centres, weights = arrangement_generators(affine, cells)
    counts, sizes = Verification(), centres.square().sum(1) + weights.abs()
    at_once = max(1, _ENTRIES // max(len(cells), len(affine.offsets)))
    for some, place in zip(x.split(at_once), own.split(at_once), strict=True):
        distances = power_distances(some, centres, weights)
        mine = distances.gather(1, place[:, None])
        others = distances.scatter(1, place[:, None], torch.inf)
        rounding = ROUNDINGS * x.shape[1] ** 0.5 * EPSILON_64 * (some.double().square().sum(1, keepdim=True) + sizes)
        at_border = (affine.pre_activations(some).abs() <= affine.tolerance(some)).any(1)
        counts.count((others > mine).all(1), at_border | (others - mine <= 2 * rounding).any(1))
    return counts
