"""What the recipes of SplInterp's figures leave: pages that fetch nothing, tables, and pictures as files; and figures by seed in words."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
img { max-width: 100%; height: auto; display: block; margin: .6em 0; } figure { margin: 2em 0; } figcaption { color: #444; max-width: 60em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; } td { white-space: nowrap; } th:first-child, td:first-child, .words td:nth-child(2), .words th:nth-child(2) { text-align: left; }
.verdict { border-left: 4px solid #0072B2; padding: .2em 1em; background: #f4f8fb; } ul.verdict { padding-left: 2em; }
"""


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
