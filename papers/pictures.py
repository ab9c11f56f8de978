"""Pictures of plane diagrams by matplotlib, which is imported on the way; for the recipes of SplInterp's figures. Curves: drawing.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry.planar import Active, Array, PlanarCells
from ..report.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, which colour-blind readers tell apart.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS
YELLOW = "#F0E442"
FILLS = (SKY, ORANGE, GREEN, YELLOW, PURPLE, BLUE, VERMILION)
PALE = 0.55  # of a region's colour is white


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, and its axes row by row. It belongs to no window and no backend's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(rows, columns, squeeze=False)
    return made, [ax for row in axes for ax in row]


def frame(ax: Axes, box: Sequence[float], title: str) -> None:
    """A square panel of the plane without ticks."""
    ax.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[], aspect="equal")
    ax.set_title(title, fontsize=12, loc="left")


def draw_cells(ax: Axes, cells: PlanarCells, colour: Callable[[Active], Any] | None = None, edge: float = 0.9) -> None:
    """The cells' polygons, each in a pale colour of its own; without `colour` in few colours, of which neighbours have different ones."""
    from matplotlib.collections import PolyCollection

    if colour is None:
        numbers = coloured(cells)
        colour = lambda own: FILLS[numbers[own] % len(FILLS)]  # noqa: E731
    faces = [pale(colour(own)) for own in cells.polygons]
    ax.add_collection(
        PolyCollection(list(cells.polygons.values()), facecolors=faces, edgecolors="#444444", linewidths=edge, zorder=1)
    )


def outline(ax: Axes, cells: PlanarCells, **style: Any) -> None:
    """The cells' borders alone."""
    from matplotlib.collections import PolyCollection

    told = {"edgecolors": "#222222", "linewidths": 1.0, "linestyles": (0, (4, 3)), "zorder": 2} | style
    ax.add_collection(PolyCollection(list(cells.polygons.values()), facecolors="none", **told))


def pale(colour: Any, share: float = PALE) -> tuple[float, float, float]:
    """A colour mixed with white."""
    from matplotlib.colors import to_rgb

    r, g, b = (share + (1 - share) * part for part in to_rgb(colour))
    return r, g, b


def mixed(colours: Iterable[Any]) -> tuple[float, float, float]:
    """The mean of colours."""
    from matplotlib.colors import to_rgb

    r, g, b = np.mean([to_rgb(colour) for colour in colours], axis=0).tolist()
    return r, g, b


def coloured(cells: PlanarCells) -> dict[Active, int]:
    """A number for each cell, of FILLS or as few more as it comes, of which neighbours have different ones; those of most neighbours first,
    each takes what is taken least."""
    numbers: dict[Active, int] = {}
    used = [0] * len(FILLS)
    for own in sorted(cells.polygons, key=lambda one: (-len(cells.neighbours[one]), sorted(one))):
        taken = {numbers[one] for one in cells.neighbours[own] if one in numbers}
        free = [n for n in range(len(used)) if n not in taken]
        if not free:
            free, used = [len(used)], [*used, 0]
        numbers[own] = min(free, key=lambda n: (used[n], n))
        used[numbers[own]] += 1
    return numbers


def centre_of(polygon: Array) -> tuple[float, float]:
    """The centroid of a polygon's area."""
    following = np.roll(polygon, -1, 0)
    cross = polygon[:, 0] * following[:, 1] - polygon[:, 1] * following[:, 0]
    x, y = ((polygon + following) * cross[:, None]).sum(0) / (3 * cross.sum())
    return float(x), float(y)
