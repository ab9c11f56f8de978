"""`splinterp gap`: the amortisation gap as a table, a sentence and a plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..errors import SplinterpError
from ..quantities import counted, format_count, json_safe
from .picture import Picture
from .plots import Axis, Series, plot
from .tables import print_whole

if TYPE_CHECKING:
    from ..evaluate.gap import Gap, Point

HEADS = ("encoder", "budget", "L0", "FVU", "of native", "FLOP/row", "rows/s", "rows")


FILES = ("gap.svg", "gap.md", "gap.json")


@dataclass(frozen=True)
class GapReport:
    """A measured gap, and what it is of: what `splinterp.gap` returns. A notebook shows the plot."""

    gap: Gap
    about: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """What `gap --json` prints."""
        return {**self.about, **as_json(self.gap)}

    @property
    def headline(self) -> str:
        """The gap in a sentence."""
        return headline(self.gap)

    @property
    def picture(self) -> Picture:
        """FVU against L0, a line an encoder."""
        return Picture(gap_plot(self.gap))

    def save(self, directory: Path) -> None:
        """Write gap.svg, gap.md and gap.json into a folder, which is made if need be."""
        directory.mkdir(parents=True, exist_ok=True)
        contents = (self.picture.svg, markdown(self.gap), json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n")
        for name, content in zip(FILES, contents, strict=True):
            (directory / name).write_text(content, encoding="utf-8", errors="replace")

    def _repr_svg_(self) -> str:
        return self.picture.svg


def check_gap_free(directory: Path | None, force: bool) -> None:
    """See that nothing would be replaced unasked. Raises SplinterpError otherwise."""
    if directory is not None and not force and any((directory / name).exists() for name in FILES):
        raise SplinterpError(f"{directory} has a gap already; give another --out, or --force to replace it.")


def as_json(gap: Gap) -> dict[str, Any]:
    """Every point, and the headline in numbers and words, as plain JSON."""
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
        told += f"; OMP needs only {counted(gap.omp_needs, 'latent')} for the native FVU"
    return f"{told}."


def print_gap(console: Console, gap: Gap) -> None:
    """The table, the headline and the notes."""
    table = Table(
        title=f"On {counted(gap.points[0].n_rows, 'held-out row')}, all by the SAE's own decoder", title_justify="left"
    )
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
