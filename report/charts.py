"""Small charts for the report, as SVG that takes its colours from the page's style sheet, so that they follow its light and dark themes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from ..quantities import format_count
from .plots import Axis, Ruler, Series, tick_text

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 36
SPARK_WIDTH, SPARK_HEIGHT, SPARK_BARS = 220, 44, 32


def lines(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Lines in a frame, one colour each; what cannot be drawn (no finite number, or not above zero on a logarithmic axis) is left out."""
    drawn = [(s.name, [(a, b) for a, b in s.points if _fits(a, x) and _fits(b, y)]) for s in series]
    drawn = [(name, points) for name, points in drawn if points]
    if not drawn:
        return _figure(title, "", "<p>Nothing was recorded.</p>")
    across = Ruler([a for _, points in drawn for a, _ in points], x, LEFT, WIDTH - RIGHT)
    up = Ruler([b for _, points in drawn for _, b in points], y, HEIGHT - BOTTOM, TOP)
    parts = _frame(across, up)
    for n, (name, points) in enumerate(drawn):
        at = [(across(a), up(b)) for a, b in points]
        told = (
            f"{name}: {points[0][1]:.4g} at {format_count(points[0][0])}, {points[-1][1]:.4g} at {format_count(points[-1][0])}"
        )
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
        parts.append(f'<polyline class="line c{n}" points="{path}"><title>{escape(told)}</title></polyline>')
        value = f"{name}: {points[-1][1]:.4g} at {format_count(points[-1][0])}"
        parts.append(
            f'<circle class="dot c{n}" cx="{at[-1][0]:.1f}" cy="{at[-1][1]:.1f}" r="3"><title>{escape(value)}</title></circle>'
        )
    names = "".join(f'<span class="key c{n}">{escape(name)}</span>' for n, (name, _) in enumerate(drawn) if len(drawn) > 1)
    return _figure(title, _svg(WIDTH, HEIGHT, title, parts), f'<p class="keys">{names}</p>' if names else "")


def bars(title: str, x: Axis, edges: np.ndarray, counts: np.ndarray, of: str, told: str = "") -> str:
    """A histogram: counts [n] between edges [n + 1]; every bar says how many `of` something it stands for. `told`: a sentence beneath."""
    if not counts.any():
        return _figure(title, "", "<p>There is nothing to count.</p>")
    across = Ruler([float(edges[0]), float(edges[-1])], x, LEFT, WIDTH - RIGHT)
    up = Ruler([0.0, float(counts.max())], Axis(of), HEIGHT - BOTTOM, TOP)
    bottom, parts = up(0.0), _frame(across, up)
    for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        if count:
            a, b, top = across(low), across(high), up(count)
            label = f"{tick_text(low)} to {tick_text(high)}: {count:,} {of}"
            parts.append(
                f'<rect class="bar" x="{a:.1f}" y="{top:.1f}" width="{max(0.6, b - a - 0.6):.1f}" height="{max(0.8, bottom - top):.1f}">'
                f"<title>{escape(label)}</title></rect>"
            )
    return _figure(title, _svg(WIDTH, HEIGHT, title, parts), f"<p>{escape(told)}</p>" if told else "")


def spark(counts: np.ndarray, end: float) -> str:
    """The histogram of one latent's strengths, counts [n] of equal bins from 0 to `end`, without axes; heights are square roots, or a few
    strong rows would not be seen beside many weak ones."""
    last = int(np.flatnonzero(counts)[-1]) + 1
    per = -(-last // SPARK_BARS)  # bins a bar
    joined = np.add.reduceat(counts[: -(-last // per) * per], np.arange(0, last, per))
    heights = np.sqrt(joined / joined.max()) * (SPARK_HEIGHT - 2)
    width, unit = SPARK_WIDTH / len(joined), end / len(counts)
    path = "".join(
        f"M{i * width:.1f} {SPARK_HEIGHT}v{-h:.1f}h{width - 0.8:.1f}v{h:.1f}z" for i, h in enumerate(heights) if h > 0
    )
    told = f"From 0 to {per * len(joined) * unit:.3g}: most rows ({joined.max():,}) near {(joined.argmax() + 0.5) * per * unit:.3g}. Heights are square roots of counts."
    mark = f'<path class="bar" d="{path}"><title>{escape(told)}</title></path><path class="grid" d="M0 {SPARK_HEIGHT - 0.5}h{SPARK_WIDTH}"/>'
    return _svg(SPARK_WIDTH, SPARK_HEIGHT, "Histogram of activations", [mark])


def _frame(across: Ruler, up: Ruler) -> list[str]:
    parts = []
    for value in up.ticks():
        b = up(value)
        parts.append(f'<path class="grid" d="M{LEFT} {b:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{b + 3.5:.1f}" text-anchor="end">{tick_text(value)}</text>')
    for value in across.ticks():
        a = across(value)
        parts.append(f'<path class="grid" d="M{a:.1f} {HEIGHT - BOTTOM}v4"/>')
        parts.append(f'<text x="{a:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick_text(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across.axis.name)}</text>')
    return parts


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _figure(title: str, picture: str, below: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{picture}{below}</figure>"


def _fits(value: float, axis: Axis) -> bool:
    return abs(value) < 1e100 and (axis.scale == "linear" or value > 1e-100)
