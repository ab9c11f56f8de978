"""Figures as papers have them: by matplotlib, without its global state, as images that a page may hold. Import it inside commands."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ..report.plots import COLOURS

STYLE: Any = {
    "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "legend.fontsize": 8.5, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "figure.dpi": 100, "svg.fonttype": "path", "svg.hashsalt": "splinterp",
}  # fmt: skip
MARKS = ("o", "s", "^", "D", "v", "P", "X")
LARGEST = 1e30  # that is drawn
MARGINS = (0.75, 0.15, 0.55, 0.35)


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order of x, `spread` the half length of an error bar at each. `place`: of the colour and mark. What is no number is left out."""

    name: str
    points: Sequence[tuple[float, float | None]]
    spread: Sequence[float] | None = None
    place: int = 0
    marks: bool = True


def panels(
    rows: int, columns: int, width: float = 4.2, height: float = 3.3, margins: tuple[float, float, float, float] = MARGINS
) -> tuple[Figure, list[Axes]]:
    """A figure of rows × columns panels of so many inches each, and its axes, row by row.

    Args:
        margins: of every panel, in inches: left, right, bottom, top. (To have them found takes matplotlib twice as long as to draw.)
    """
    left, right, bottom, top = margins
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows))
        axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=left / (width * columns), right=1 - right / (width * columns), bottom=bottom / (height * rows), top=1 - top / (height * rows),
        wspace=(left + right) / (width - left - right), hspace=(bottom + top) / (height - bottom - top),
    )  # fmt: skip
    return figure, list(axes.reshape(-1))


@matplotlib.rc_context(STYLE)
def lines(
    axes: Axes, title: str, x: str, y: str, drawn: Sequence[Line], *, log_x: bool = False, log_y: bool = False,
    ticks: Sequence[tuple[float, str]] = (), legend: bool = True,
) -> None:  # fmt: skip
    """Lines with error bars; `ticks`: the values of x that are told, and how (where there are none, and x is not logarithmic: whole numbers). Where there is nothing to draw, the panel says so."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    for line in drawn:
        kept = [i for i, (_, b) in enumerate(line.points) if _fits(b, log_y)]
        if not kept:
            continue
        at, values = [line.points[i][0] for i in kept], [float(line.points[i][1] or 0) for i in kept]
        low_high = None
        if line.spread is not None:
            up = [line.spread[i] for i in kept]
            # On a logarithmic axis a bar never reaches zero.
            low_high = np.array([[min(s, 0.9 * v) if log_y else s for s, v in zip(up, values, strict=True)], up])
        axes.errorbar(
            at, values, yerr=low_high, color=COLOURS[line.place % len(COLOURS)], marker=MARKS[line.place % len(MARKS)] if line.marks else None,
            label=line.name, linewidth=1.6, markersize=4.5, capsize=2.5, elinewidth=1,
        )  # fmt: skip
    if not axes.lines and not axes.containers:
        axes.text(0.5, 0.5, "no numbers", transform=axes.transAxes, ha="center")
        return
    if ticks:
        axes.xaxis.set_major_locator(NullLocator())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([value for value, _ in ticks], [told for _, told in ticks])
    elif not log_x:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if log_y:
        _plain_decades(axes)
    if legend:
        axes.legend()


def images(axes: Axes, pixels: np.ndarray, title: str, diverging: bool = False) -> None:
    """Images [N, h, w] of 8 bits side by side, in grey, or from blue through white to red."""
    strip = np.concatenate([np.pad(image, 1, constant_values=255) for image in pixels], axis=1)
    axes.imshow(strip, cmap="RdBu_r" if diverging else "gray_r", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, loc="left")
    axes.set_axis_off()


def img(figure: Figure, told: str, form: str = "svg") -> str:
    """An <img> that holds the figure (svg, or png where it is made of pixels); `told` is for those who do not see it."""
    held = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(held, format=form, metadata={"Date": None} if form == "svg" else None, dpi=120)
    kind = {"svg": "svg+xml", "png": "png"}[form]
    return f'<img alt="{escape(told, quote=True)}" src="data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}">'


def _fits(value: float | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and abs(value) < LARGEST and (not log or value > 0)


def _plain_decades(axes: Axes) -> None:
    """Numbers as one writes them, and some between the powers of ten where there are few of these."""
    low, high = axes.get_ylim()
    few = high / low < 40
    subs = (1.0, 2.0, 5.0) if few and high / low > 3 else tuple(float(n) for n in range(1, 10)) if few else (1.0,)
    if high / low < 2:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
