"""Pictures of plane diagrams by matplotlib, which is imported on the way, and pages that hold them; for the recipes of SplInterp's figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry.planar import Active, Array, PlanarCells
from ..report.plots import COLOURS
from ..store.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, which colour-blind readers tell apart.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS
YELLOW = "#F0E442"
FILLS = (SKY, ORANGE, GREEN, YELLOW, PURPLE, BLUE, VERMILION)
PALE = 0.55  # of a region's colour is white
DPI = 150
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
img { max-width: 100%; height: auto; display: block; margin: .6em 0; } figure { margin: 2em 0; } figcaption { color: #444; max-width: 60em; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; } td { white-space: nowrap; } th:first-child, td:first-child, .words td:nth-child(2), .words th:nth-child(2) { text-align: left; }
.verdict { border-left: 4px solid #0072B2; padding: .2em 1em; background: #f4f8fb; } ul.verdict { padding-left: 2em; }
"""


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, and its axes row by row. It belongs to no window and no backend's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(rows, columns, squeeze=False)
    return made, [ax for row in axes for ax in row]


def save(made: Figure, out: Path, name: str) -> str:
    """Leave NAME.png and NAME.svg in the folder `out`, the same bytes whenever the picture is; returns the SVG."""
    import matplotlib

    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawn = io.BytesIO()
        made.savefig(drawn, format="svg", metadata={"Date": None})
        raster = io.BytesIO()
        made.savefig(raster, format="png", dpi=DPI, metadata={"Software": None})
    write_bytes(out / f"{name}.svg", drawn.getvalue())
    write_bytes(out / f"{name}.png", raster.getvalue())
    return drawn.getvalue().decode()


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


def html_page(title: str, parts: Iterable[str]) -> str:
    """One page that fetches nothing."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{STYLE}</style>'
    return "\n".join(
        [f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n<h1>{escape(title)}</h1>', *parts, "</body></html>\n"]
    )


def html_picture(drawn: str, told: str, caption: str) -> str:
    """An SVG within a page, with what it shows in words for who cannot see it, and a caption."""
    coded = base64.b64encode(drawn.encode()).decode()
    return f'<figure><img src="data:image/svg+xml;base64,{coded}" alt="{escape(told)}"><figcaption>{escape(caption)}</figcaption></figure>'


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: bool = False) -> str:
    """Every text escaped. words: whether the second column has words, too, not figures."""
    lines = ["<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    kind = ' class="words"' if words else ""
    return f'<div class="wide"><table{kind}>' + "\n".join(lines) + "</table></div>"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Its lines."""
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in rows)]


def mean_sd(values: Sequence[float]) -> dict[str, Any]:
    """Of a figure by seed; the standard deviation is that of a sample."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"values": list(values), "mean": float(np.mean(values)), "sd": sd}


def told(figures: Mapping[str, Any]) -> str:
    """`mean_sd` in words."""
    return f"{figures['mean']:.3g} ± {figures['sd']:.2g}"
