"""Figures 5, 6 and 7."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...geometry.planar import Array, PlanarCells, as_affine, planar_cells, slice_weights
from ..pictures import (
    BLACK,
    BLUE,
    FILLS,
    GREEN,
    VERMILION,
    centre_of,
    coloured,
    draw_cells,
    figure,
    frame,
    mixed,
    outline,
    pale,
)
from .data import Figure5

OF_CLASS = (BLUE, VERMILION, GREEN)
MARKS = ("o", "s", "^")
LABEL = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "boxstyle": "round,pad=0.15"}


def figure_5(
    data: Figure5, labels: NDArray[np.int64], centroids: Array, voronoi: PlanarCells, clusters: PlanarCells, power: PlanarCells
) -> Any:
    """Voronoi, nearest neighbour, k-means and power diagram, in a square."""
    made, (a, b, c, d) = figure(10, 10.4, 2, 2)
    titles = ("a) Voronoi diagram", "b) Nearest neighbour (k = 1)", "c) k-means, k = 3", "d) Power diagram")
    for ax, title in zip((a, b, c, d), titles, strict=True):
        frame(ax, voronoi.box, title)
    same = coloured(voronoi)
    of = {own: FILLS[n % len(FILLS)] for own, n in same.items()}
    draw_cells(a, voronoi, of.__getitem__)
    draw_cells(b, voronoi, lambda own: OF_CLASS[data.classes[next(iter(own))]], edge=0.4)
    draw_cells(c, clusters, lambda own: OF_CLASS[next(iter(own))])
    draw_cells(d, power)
    outline(d, voronoi)
    for ax in (a, d):
        ax.scatter(*data.points.T, c=BLACK, s=36, zorder=5)
    for n, (colour, mark) in enumerate(zip(OF_CLASS, MARKS, strict=True)):
        some = {"c": colour, "marker": mark, "zorder": 5}
        b.scatter(*data.points[data.classes == n].T, s=60, edgecolors="white", label=f"class {n}", **some)
        c.scatter(*data.rows[labels == n].T, s=14, alpha=0.8, linewidths=0, **some)
    c.scatter(*centroids.T, c="white", marker="*", s=320, edgecolors=BLACK, linewidths=1.4, zorder=6)
    b.legend(loc="lower right", fontsize=10)
    _weights(d, data.points, data.weights)
    return made


def figure_6(centres: Array, weights: Array, voronoi: PlanarCells, power: PlanarCells, second: PlanarCells) -> Any:
    """Voronoi, power, and second-order power diagram, side by side; a generator keeps its colour, a pair has both."""
    made, (a, b, c) = figure(15, 5.4, 1, 3)
    for ax, title in (
        (a, "Voronoi diagram: all α = 0"),
        (b, "Power diagram"),
        (c, "Second-order power diagram: the two nearest"),
    ):
        frame(ax, voronoi.box, title)
        ax.scatter(*centres.T, c=BLACK, s=30, zorder=5)
    for ax, cells in ((a, voronoi), (b, power), (c, second)):
        draw_cells(ax, cells, lambda own: mixed(FILLS[i] for i in own))
    outline(b, voronoi)
    _weights(b, centres, weights)
    for n, (x, y) in enumerate(centres):
        for ax in (a, c):
            ax.annotate(str(n), (x, y), (5, 4), textcoords="offset points", fontsize=10, fontweight="bold", zorder=6)
    for own, polygon in second.polygons.items():
        if np.ptp(polygon, axis=0).min() > 0.45:
            x, y = centre_of(polygon)
            near = np.abs(centres - (x, y)) < (0.6, 0.3)
            y -= 0.4 * near.all(1).any()  # beside a generator's own number
            c.text(x, y, "{" + ", ".join(map(str, sorted(own))) + "}", ha="center", va="center", fontsize=9, zorder=4)
    return made


def _weights(ax: Any, centres: Array, weights: Array) -> None:
    from matplotlib.patches import Circle

    for n, ((x, y), weight) in enumerate(zip(centres, weights, strict=True)):
        ax.add_patch(Circle((x, y), weight**0.5, fill=False, edgecolor=VERMILION, linewidth=1.5, zorder=3))
        _label(ax, f"{n}: α={weight:.1f}", (x, y), centres)


def _label(ax: Any, told: str, at: tuple[float, float], others: Array) -> None:
    """Above a point; below it where another point is too near above."""
    away = others - at
    below = ((np.abs(away[:, 0]) < 0.9) & (away[:, 1] > 0) & (away[:, 1] < 0.55)).any()
    shift = (0, -15) if below else (0, 7)
    ax.annotate(told, at, shift, textcoords="offset points", ha="center", fontsize=8.5, bbox=LABEL, zorder=6)


def figure_7(points: Array, weights: Array, floor: PlanarCells, height: str, top: float) -> Any:
    """Points in space above the plane 0, and how it cuts their Voronoi diagram; left with two upright slices as walls, right from above."""
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    made, _ = figure(14, 6.6, 1, 1)
    made.clear()
    space, above = made.add_subplot(1, 2, 1, projection="3d"), made.add_subplot(1, 2, 2)
    left, right, front, back = floor.box
    # The walls x = left and y = back; a point u of each is (along the wall, up).
    walls = {
        "x": (np.array([left, 0, 0]), np.array([[0, 1, 0], [0, 0, 1]]), (front, back, 0.0, top)),
        "y": (np.array([0, back, 0]), np.array([[1, 0, 0], [0, 0, 1]]), (left, right, 0.0, top)),
    }
    drawn = [(floor, np.zeros(3), np.eye(3)[:2])]
    drawn += [
        (planar_cells(*as_affine(*slice_weights(points, origin, axes)), 1, box), origin, axes)
        for origin, axes, box in walls.values()
    ]
    numbers = coloured(_joined([cells for cells, _, _ in drawn]))
    for cells, origin, axes in drawn:
        faces = [pale(FILLS[numbers[own] % len(FILLS)]) for own in cells.polygons]
        placed = [origin + polygon @ axes for polygon in cells.polygons.values()]
        space.add_collection3d(Poly3DCollection(placed, facecolors=faces, edgecolors="#444444", linewidths=0.8, zorder=0))
    for n, (x, y, z) in enumerate(points):
        colour = FILLS[numbers[frozenset((n,))] % len(FILLS)] if frozenset((n,)) in numbers else "white"
        space.plot([x, x], [y, y], [0, z], color=BLACK, linewidth=0.9, linestyle=":", zorder=8)
        space.scatter(x, y, z, color=[colour], edgecolors=BLACK, s=70, depthshade=False, zorder=10)
        space.scatter(x, y, 0, color=BLACK, marker="x", s=18, depthshade=False, zorder=9)
    space.set(xlim=(left, right), ylim=(front, back), zlim=(0, top), xticks=[], yticks=[], xlabel="x", ylabel="y")
    space.set_zlabel(height if height == "h" else "height above the plane")
    space.set_box_aspect((right - left, back - front, top))
    space.view_init(elev=27, azim=-57)
    space.computed_zorder = False
    space.set_title("Voronoi diagram in space, cut by planes", fontsize=12)
    frame(above, floor.box, "The plane below: a power diagram")
    draw_cells(above, floor, lambda own: FILLS[numbers[own] % len(FILLS)])
    with_cell = np.array([frozenset((n,)) in floor.polygons for n in range(len(points))])
    above.scatter(*points[with_cell, :2].T, c=BLACK, s=30, zorder=5)
    above.scatter(*points[~with_cell, :2].T, c="white", edgecolors=BLACK, s=22, zorder=5)
    for at, weight in zip(points[with_cell, :2], weights[with_cell], strict=True):
        _label(above, f"α={weight:.2f}", tuple(at), points[with_cell, :2])
    return made


def _joined(some: list[PlanarCells]) -> PlanarCells:
    """Cells of several planes with all their neighbours, so that a generator can have one colour in all of them."""
    neighbours: dict[Any, set[Any]] = {}
    for cells in some:
        for own, sides in cells.neighbours.items():
            neighbours.setdefault(own, set()).update(sides)
    return PlanarCells({own: polygon for cells in some for own, polygon in cells.polygons.items()}, neighbours, some[0].box)
