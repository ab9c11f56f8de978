"""`splinterp gap`: the amortisation gap as a table, a sentence and a plot."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..quantities import format_count, json_safe
from .plots import Axis, Series, plot
from .tables import print_whole

if TYPE_CHECKING:
    from ..evaluate.gap import Gap, Point

HEADS = ("encoder", "budget", "L0", "FVU", "of native", "FLOP/row", "rows/s", "rows")


def as_json(gap: Gap) -> dict[str, Any]:
    """What `gap --json` prints: every point, and the headline in numbers and words."""
    native, omp = gap.points[0], gap.at("omp", gap.k)
    return {
        "k": gap.k,
        "budgets": gap.budgets,
        "points": [{name: json_safe(value) for name, value in asdict(point).items()} for point in gap.points],
        "headline": {
            "native_fvu": json_safe(native.fvu), "native_l0": native.l0, "omp_fvu": json_safe(omp.fvu) if omp else None,
            "omp_of_native": json_safe(omp.of_native) if omp else None, "omp_l0_for_native_fvu": gap.omp_needs, "told": headline(gap),
        },
        "notes": gap.notes,
    }  # fmt: skip


def headline(gap: Gap) -> str:
    """The gap in a sentence."""
    native, omp = gap.points[0], gap.at("omp", gap.k)
    told = f"native FVU {native.fvu:.4f} at L0 {native.l0:.1f}"
    if omp is not None:
        told += f"; OMP {omp.fvu:.4f} at L0 {omp.l0:.1f} ({omp.of_native:.2f} of it)"
    if gap.omp_needs is not None:
        told += f"; OMP needs only {gap.omp_needs} latents for the native FVU"
    return f"{told}."


def print_gap(console: Console, gap: Gap) -> None:
    """The table, the headline and the notes."""
    table = Table(title=f"On {gap.points[0].n_rows:,} held-out rows, all by the SAE's own decoder", title_justify="left")
    for head in HEADS:
        table.add_column(head, justify="left" if head in HEADS[:2] else "right", no_wrap=True)
    for point in gap.points:
        table.add_row(*cells(point))
    print_whole(console, table)
    for line in (headline(gap), *gap.notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def markdown(gap: Gap) -> str:
    """The same table for a file."""
    lines = [f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    lines += [f"| {' | '.join(cells(point))} |" for point in gap.points]
    return "\n".join([*lines, "", headline(gap), *gap.notes]) + "\n"


def cells(point: Point) -> list[str]:
    """The texts of HEADS."""
    k, l1 = point.settings.get("k"), point.settings.get("l1")
    budget = (
        f"λ={l1:.3g}" if l1 is not None else "the encoder's" if point.encoder == "ls" else f"k={k}" if k is not None else "–"
    )
    return [
        point.encoder, budget, f"{point.l0:.1f}", f"{point.fvu:.4f}", f"{point.of_native:.3f}",
        format_count(point.flops), format_count(point.rows_per_second), f"{point.n_rows:,}",
    ]  # fmt: skip


def gap_plot(gap: Gap) -> str:
    """FVU against L0, a line an encoder, as SVG."""
    series = []
    for name, points in groupby(gap.points, key=lambda point: point.encoder):
        found = [(point.l0, point.fvu) for point in points]
        series.append(Series(name, sorted(found), line=len(found) > 1))
    return plot("The amortisation gap", Axis("L0", "log"), Axis("held-out FVU", "log"), series)
