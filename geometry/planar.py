"""Power diagrams in the plane as exact polygons, of any order and with or without the ReLU: for pictures.

With affine functions p_i(x) = w_i·x + b_i a cell is where the k largest are those of a set S (`power_diagram`: the k nearest generators of centre w_i
and weight 2·b_i + ‖w_i‖²): the intersection of the half-planes p_i ≥ p_j, i in S, j outside. Behind the ReLU the positive ones of the k largest
count: p_i ≥ 0 for i in S, and where S has fewer than k also p_j ≤ 0 for j outside. Each side of a cell says what lies behind it, so all cells of a
box are found from one of them, side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import SplinterpError

Array = NDArray[np.float64]
Active = frozenset[int]
Box = tuple[float, float, float, float]  # x from, x to, y from, y to

_SLIVER = 1e-9  # of the box's size: corners closer than that are one


class PlanarCells(NamedTuple):
    """The cells of a box.

    Attributes:
        polygons: by their active sets; each [corners, 2], in order around the cell, which is convex.
        neighbours: of each cell those across its sides. box: that all of them fill.
    """

    polygons: dict[Active, Array]
    neighbours: dict[Active, set[Active]]
    box: Box

    def area(self) -> float:
        """Of all cells: the box's, or some are missing."""
        return sum(area(polygon) for polygon in self.polygons.values())


def as_affine(centres: Array, weights: Array) -> tuple[Array, Array]:
    """Generators with centres [G, 2] and weights [G] as affine functions, directions [G, 2] and offsets [G]: ‖x‖² − D_i(x) = 2·p_i(x)."""
    return centres, (weights - np.square(centres).sum(1)) / 2


def slice_weights(centres: Array, origin: Array, axes: Array) -> tuple[Array, Array]:
    """The power diagram that a plane {origin + axesᵀ·u} cuts out of the Voronoi diagram of centres [G, n]: centres [G, 2], weights [G].

    With orthonormal axes [2, n] the squared distance of a point u of the plane to centre c is ‖u − u_c‖² + h_c², u_c the foot of c on the plane and
    h_c its height above it: a power distance of weight −h_c².
    """
    feet = (centres - origin) @ axes.T
    return feet, np.square(feet).sum(1) - np.square(centres - origin).sum(1)


def lifted(centres: Array, weights: Array) -> Array:
    """The points (μ_i, h_i) [G, n + 1], h_i = √(α_max − α_i), whose Voronoi diagram the plane h = 0 cuts in the power diagram of these centres
    [G, n] and weights α [G]: ‖x − μ_i‖² + h_i² = ‖x − μ_i‖² − α_i + α_max."""
    return np.concatenate([centres, np.sqrt(weights.max() - weights)[:, None]], 1)


def planar_cells(directions: Array, offsets: Array, k: int, box: Box, relu: bool = False) -> PlanarCells:
    """All cells of order k in a box, by affine functions of directions [G, 2] and offsets [G].

    Raises:
        SplinterpError: two functions are the same, so that nothing parts them, or k is none of 1 … G.
    """
    functions = np.concatenate([directions, offsets[:, None]], 1)
    if not 1 <= k <= len(functions):
        raise SplinterpError(f"A diagram of order {k} needs at least one and at most {len(functions)} of its generators.")
    if len(np.unique(functions, axis=0)) < len(functions):
        raise SplinterpError("Two generators are the same, and nothing parts their cells; leave one out.")
    corners = np.array([(box[0], box[2]), (box[1], box[2]), (box[1], box[3]), (box[0], box[3])], dtype=np.float64)
    size = float(np.ptp(corners, axis=0).max())
    found: dict[Active, Array] = {}
    across: dict[Active, set[Active]] = {}
    # One point may lie on a border, or in a cell that is a sliver: begin from several.
    inside = np.random.default_rng(0).uniform(corners[0], corners[2], (16, 2))
    waiting = [_active(functions, point, k, relu) for point in inside]
    seen = set(waiting)
    while waiting:
        own = waiting.pop()
        sides, behind = _sides(functions, own, k, relu)
        polygon, cuts = _clipped(corners, sides, _SLIVER * size)
        if len(polygon) < 3:
            continue
        found[own] = polygon
        across[own] = {own - {leaves} | {enters} - {-1} for leaves, enters in (behind[cut] for cut in cuts if cut >= 0)}
        waiting += across[own] - seen
        seen |= across[own]
    return PlanarCells(found, {own: {one for one in sides if one in found} for own, sides in across.items()}, box)


def area(polygon: Array) -> float:
    """Of a polygon [corners, 2]."""
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _active(functions: Array, point: Array, k: int, relu: bool) -> Active:
    values = functions[:, :2] @ point + functions[:, 2]
    largest = np.argsort(-values, kind="stable")[:k]
    return frozenset(int(i) for i in largest if not relu or values[i] > 0)


def _sides(functions: Array, own: Active, k: int, relu: bool) -> tuple[Array, list[tuple[int, int]]]:
    """The functions a·x + b·y + c, [M, 3], that are not negative on a cell; and which generator leaves the set, and which enters it, behind the line
    where one is zero; −1: none."""
    inside, outside = sorted(own), [j for j in range(len(functions)) if j not in own]
    sides, behind = [np.empty((0, 3))], []
    if relu:
        sides.append(functions[inside])
        behind += [(i, -1) for i in inside]
    if len(own) < k:
        sides.append(-functions[outside])
        behind += [(-1, j) for j in outside]
    else:
        sides.append((functions[inside][:, None] - functions[outside]).reshape(-1, 3))
        behind += [(i, j) for i in inside for j in outside]
    return np.concatenate(sides), behind


def _clipped(corners: Array, sides: Array, sliver: float) -> tuple[Array, list[int]]:
    """A convex polygon cut by half-planes [M, 3], and by which of them each of its sides, from corner to next corner, is; −1: by none."""
    polygon, cuts = corners, [-1] * len(corners)
    while len(sides) and len(polygon) >= 3:
        deepest = polygon @ sides[:, :2].T + sides[:, 2]
        cut = int(deepest.min(0).argmin())  # the one that takes most away: few are left to do
        values = deepest[:, cut]
        if values.min() >= 0 or cut in cuts:
            break
        polygon, cuts = _cut(polygon, cuts, values, cut)
        # Without corners that coincide with the next one.
        kept = np.linalg.norm(np.roll(polygon, -1, 0) - polygon, axis=1) > sliver
        polygon, cuts = polygon[kept], [one for one, stays in zip(cuts, kept, strict=True) if stays]
    return polygon, cuts


def _cut(polygon: Array, cuts: list[int], values: Array, cut: int) -> tuple[Array, list[int]]:
    """What is left of a polygon where a function, of these values at its corners, is not negative."""
    kept: list[Array] = []
    told: list[int] = []
    for here, there, a, b, own in zip(polygon, np.roll(polygon, -1, 0), values, np.roll(values, -1), cuts, strict=True):
        if a >= 0:
            kept.append(here)
            told.append(own)
        if (a >= 0) != (b >= 0):
            kept.append(here + (there - here) * (a / (a - b)))
            told.append(cut if a >= 0 else own)
    return np.array(kept).reshape(-1, 2), told
