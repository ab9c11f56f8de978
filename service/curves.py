"""A run's curve as SVG, drawn once for all who look at it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..names import is_plain
from ..quantities import is_figure
from ..report.plots import Axis, Series, plot
from .catalogue import read
from .follow import METRICS, lines_from
from .paths import Root

POINTS = 300
MEMBERS = 12
_ROWS, _FVU = Axis("rows trained on"), Axis("FVU", "log")


def curve(root: Root, run: str) -> str | None:
    """FVU against rows of a run, or of the members of a sweep; None where there is nothing to draw."""
    directory = root.inside(run, "run")
    members = read(directory / "sweep.json").get("members")
    folders = {"": directory}
    if isinstance(members, dict):
        folders = {name: directory / name for name in list(members)[:MEMBERS] if is_plain(name)}
    files = []
    for name, folder in folders.items():
        path = folder / METRICS
        if path.is_file():
            found = path.stat()
            files.append((name, path, found.st_size, found.st_mtime_ns))
    return _drawn(tuple(files)) if any(size for _, _, size, _ in files) else None


@lru_cache(maxsize=64)
def _drawn(files: tuple[tuple[str, Path, int, int], ...]) -> str | None:
    series = []
    for name, path, _, _ in files:
        lines = _all_lines(path)
        given = {"": ("fvu", "held_out_fvu")}.get(name, ("held_out_fvu",))
        for key in given:
            points = [(float(line["rows"]), float(line[key])) for line in lines if _has(line, "rows") and _has(line, key)]
            if points:
                told = {"fvu": "on the training batch", "held_out_fvu": "held out"}[key]
                series.append(Series(f"{name} {told}".strip(), _thinned(points), marks=key != "fvu" and len(points) < 40))
    return plot("FVU on the way", _ROWS, _FVU, series) if series else None


def _all_lines(path: Path) -> list[dict[str, Any]]:
    lines, offset = lines_from(path, 0)
    while True:
        more, after = lines_from(path, offset)
        if after <= offset:
            return lines
        lines, offset = lines + more, after


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about POINTS of them, the last one among them."""
    step = -(-len(points) // POINTS)
    return [*points[:-1:step], points[-1]]


def _has(line: dict[str, Any], key: str) -> bool:
    return is_figure(line.get(key))
