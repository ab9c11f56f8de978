"""That the polygons are the regions they are drawn for: compared, at every point of a grid, with what finds a region without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...geometry.planar import Active, Array, Box, PlanarCells

SIDE = 160  # points along the box
OFF = ((5**0.5 - 1) / 2, 2**0.5 - 1)  # of a square: irrational shares, so that no point lies on a border between round numbers


def grid(box: Box, side: int = SIDE) -> Array:
    """Points [side², 2] that fill a box, one in each of equal squares."""
    sides = zip((box[:2], box[2:]), OFF, strict=True)
    across, up = (low + (np.arange(side) + off) * (high - low) / side for (low, high), off in sides)
    return np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)


def located(cells: PlanarCells, points: Array) -> list[Active]:
    """The cell in whose polygon each point [N, 2] lies; the empty set: none."""
    found: list[Active] = [frozenset()] * len(points)
    for own, polygon in cells.polygons.items():
        near = np.flatnonzero(((points >= polygon.min(0)) & (points <= polygon.max(0))).all(1))
        along, away = np.roll(polygon, -1, 0) - polygon, points[near][:, None] - polygon
        turns = along[:, 0] * away[..., 1] - along[:, 1] * away[..., 0]
        for i in near[(turns >= 0).all(1) | (turns <= 0).all(1)]:
            found[i] = own
    return found


def agreement(cells: PlanarCells, told: Callable[[Array], list[Active]], side: int = SIDE) -> dict[str, Any]:
    """At how many points of the grid `told` finds the cell whose polygon they lie in."""
    points = grid(cells.box, side)
    agree = sum(a == b for a, b in zip(located(cells, points), told(points), strict=True))
    return {"points": len(points), "agree": agree}


def nearest(centres: Array, weights: Array, k: int = 1) -> Callable[[Array], list[Active]]:
    """The k least power distances ‖x − μ_i‖² − α_i, from the differences."""

    def told(points: Array) -> list[Active]:
        distances = np.square(points[:, None] - centres).sum(2) - weights
        return [frozenset(row) for row in np.argpartition(distances, k - 1, axis=1)[:, :k].tolist()]

    return told


def nearest_in_space(centres: Array, height: float = 0.0) -> Callable[[Array], list[Active]]:
    """The nearest of centres [G, 3] to points of the plane at a height, by a k-d tree: knows of no weights."""
    from scipy.spatial import KDTree

    tree = KDTree(centres)

    def owners(points: Array) -> list[Active]:
        found: Any = tree.query(np.column_stack([points, np.full(len(points), height)]))[1]
        return [frozenset((i,)) for i in found.tolist()]

    return owners
