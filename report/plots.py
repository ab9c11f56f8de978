"""Line and point plots as SVG: text that any browser shows and any page may hold, without a drawing library or a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from ..quantities import format_count

# Okabe and Ito's colours, which colour-blind readers tell apart; lines beyond them are dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 34, 48
LEGEND_LINE = 18
MOST_TICKS = 9
LARGEST = 1e100  # that is drawn
ALIKE = 1e-6  # a relative difference that is not

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Series:
    """One line or cloud of points (x, y), in order of x; `spread` is the half length of a bar at each point. Points that are no finite
    numbers (or absurdly large ones), or not above zero on a logarithmic axis, are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[float] | None = None
    line: bool = True
    marks: bool = True


@dataclass(frozen=True)
class Axis:
    """What it says, and how it runs."""

    name: str
    scale: Scale = "linear"


def plot(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """An <svg> element; every text in it is escaped. Where there is nothing to draw, it says so."""
    drawn = [(s, [i for i, (a, b) in enumerate(s.points) if _fits(a, x) and _fits(b, y)]) for s in series]
    drawn = [(s, places) for s, places in drawn if places]
    height = HEIGHT + LEGEND_LINE * len(drawn)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    if not drawn:
        return "\n".join([*parts, f'<text x="{LEFT}" y="{HEIGHT / 2}">There is nothing to draw.</text>', "</svg>"])
    across = Ruler([s.points[i][0] for s, places in drawn for i in places], x, LEFT, WIDTH - RIGHT)
    up = Ruler([b for s, places in drawn for i in places for b in _ends(s, i, y)], y, HEIGHT - BOTTOM, TOP)
    parts += _frame(across, up)
    for n, (s, places) in enumerate(drawn):
        colour, dash = COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)]
        at = [(across(s.points[i][0]), up(s.points[i][1])) for i in places]
        if s.line and len(at) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dash}"/>'
            )
        for (a, b), i in zip(at, places, strict=True):
            if s.spread and s.spread[i] > 0:
                low, high = (up(value) for value in _ends(s, i, y))
                parts.append(f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
            if s.marks or len(at) == 1:
                told = f"{s.name}: {format_count(s.points[i][0])}, {s.points[i][1]:.4g}"
                parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"><title>{escape(told)}</title></circle>')
        line = HEIGHT + LEGEND_LINE * n
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + 24}" y1="{line}" y2="{line}" stroke="{colour}" stroke-width="2.4" stroke-dasharray="{dash}"/>'
            f'<text x="{LEFT + 32}" y="{line + 4}">{escape(s.name)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


class Ruler:
    """From values to pixels along one axis, with a little room at both ends."""

    def __init__(self, values: Sequence[float], axis: Axis, first: float, last: float) -> None:
        self.axis, self.first, self.last = axis, first, last
        low, high = (self._of(f(values)) for f in (min, max))
        span, size = high - low, max(abs(low), abs(high))
        around_one = (0.5 * size if axis.scale == "linear" else 0) or 0.2
        room = 0.04 * span if span > ALIKE * max(size, 1e-6) else around_one
        self.low, self.high = low - room, high + room

    def __call__(self, value: float) -> float:
        return self.first + (self._of(value) - self.low) / (self.high - self.low) * (self.last - self.first)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.axis.scale == "log" else value

    def ticks(self) -> list[float]:
        """Round values within the axis, about five."""
        if self.axis.scale == "linear":
            return _round_steps(self.low, self.high)
        # In a span of less than a decade, round values as on a linear axis.
        low, high = 10**self.low, 10**self.high
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for steps in ((1, 2, 3, 5), (1, 3), (1,)):
            found = [m * 10.0**e for e in decades for m in steps if low <= m * 10.0**e <= high]
            if len(found) <= MOST_TICKS:
                return found if len(found) > 2 else [t for t in _round_steps(low, high) if t > 0]
        return found[:: -(-len(found) // MOST_TICKS)]


def _round_steps(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next((m * unit for m in (1, 2, 5) if m * unit >= rough), 10 * unit)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _frame(across: Ruler, up: Ruler) -> list[str]:
    """Grid lines, their values, and what the axes say."""
    parts = []
    for value in across.ticks():
        a = across(value)
        parts.append(f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{a:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick_text(value)}</text>')
    for value in up.ticks():
        b = up(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{b:.1f}" y2="{b:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{b + 4:.1f}" text-anchor="end">{tick_text(value)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 14}" text-anchor="middle">{escape(across.axis.name)}</text>'
    )
    parts.append(f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{escape(up.axis.name)}</text>')
    return parts


def _fits(value: float, axis: Axis) -> bool:
    return abs(value) < LARGEST and (axis.scale == "linear" or value > 1 / LARGEST)


def _ends(s: Series, i: int, axis: Axis) -> tuple[float, float]:
    """Both ends of a point's bar, or twice the point; on a logarithmic axis a bar never reaches zero."""
    value, spread = s.points[i][1], s.spread[i] if s.spread else 0.0
    low = value - spread
    return (low if _fits(low, axis) else value), value + spread


def tick_text(value: float) -> str:
    """A value as an axis has it."""
    return format_count(value) if abs(value) >= 1000 else f"{value:.4g}"
