"""`splinterp compare`: runs beside one another, in the terminal and as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..quantities import format_count, format_seconds
from .plots import Axis, Series, plot
from .runs import RunSeen, different_stores, differing
from .tables import print_whole

FVU = Axis("held-out FVU", "log")
FIGURES = ("FVU", "L0", "dead", "rows", "time")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1340px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } .best { font-weight: bold; } .note { color: #a33; } .wide { overflow-x: auto; }
.plots { display: flex; flex-wrap: wrap; gap: 12px; } svg { max-width: 100%; height: auto; }
"""


def as_json(runs: Sequence[RunSeen], lacking: Sequence[str]) -> dict[str, Any]:
    """What `compare --json` prints."""
    return {
        "runs": [
            {
                "run": run.name, "finished": run.finished, "fvu": run.fvu, "l0": run.l0, "dead_fraction": run.dead, "rows": run.rows,
                "seconds": run.seconds, "store": run.store, "store_fingerprint": run.fingerprint, "site": run.site,
                "curve": [{"rows": n, "seconds": s, "held_out_fvu": fvu} for n, s, fvu in run.curve],
            }
            for run in runs
        ],
        "differing": differing(runs),
        "notes": notes(runs, lacking),
    }  # fmt: skip


def notes(runs: Sequence[RunSeen], lacking: Sequence[str]) -> list[str]:
    """Sentences that belong beside the figures."""
    stores = different_stores(runs)
    return [*([stores] if stores else []), *lacking]


def print_comparison(console: Console, runs: Sequence[RunSeen]) -> None:
    """A line a run: its figures, and the settings in which the runs differ; the lowest FVU is marked."""
    settings, best = differing(runs), _best(runs)
    table = Table(title="On held-out rows (dead: fired on none of them); settings that differ", title_justify="left")
    table.add_column("run", no_wrap=True)
    for name in (*FIGURES, *map(_head, settings)):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for i, run in enumerate(runs):
        cells = [run.name, *figures_of(run), *(_told(values[i]) for values in settings.values())]
        table.add_row(*map(Text, cells), style="bold" if i == best else None)
    print_whole(console, table)


def page(runs: Sequence[RunSeen], lacking: Sequence[str]) -> str:
    """The whole HTML page: every text in it is escaped, and it fetches nothing."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{len(runs)} runs compared</title><style>{STYLE}</style></head><body>",
        f"<h1>{len(runs)} runs compared</h1>",
        *body(runs, lacking),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def body(runs: Sequence[RunSeen], lacking: Sequence[str]) -> list[str]:
    """What stands on the page below its title."""
    settings, best = differing(runs), _best(runs)
    figures = [[run.name, *figures_of(run)] for run in runs]
    differ = [[run.name, *(_told(values[i]) for values in settings.values())] for i, run in enumerate(runs)]
    return [
        *(f'<p class="note">{escape(note)}</p>' for note in notes(runs, lacking)),
        "<h2>Figures</h2><p>On held-out rows; dead: the share of latents that fired on none of them.</p>",
        html_table(("run", *FIGURES), figures, best),
        "<h2>Settings that differ</h2>",
        html_table(("run", *map(_head, settings)), differ, best) if settings else "<p>None.</p>",
        "<h2>Curves</h2><p>Held-out FVU on the way, on part of the held-out rows; the last point of a finished run is its final FVU, on all of "
        "them, with the time of its last solve.</p>",
        '<div class="plots">',
        *plots(runs),
        "</div>",
    ]


def plots(runs: Sequence[RunSeen]) -> list[str]:
    """FVU against tokens, against seconds, and against L0 (with the runs that no other beats in both)."""
    curves = [(run.name, run.curve) for run in runs]
    points = [(run.name, (run.l0, run.fvu)) for run in runs if run.l0 is not None and run.fvu is not None]
    front = Series("not beaten in both", pareto([point for _, point in points]), marks=False)
    return [
        plot("Against tokens", Axis("rows trained on", "log"), FVU, [Series(n, [(p[0], p[2]) for p in c]) for n, c in curves]),
        plot("Against seconds", Axis("seconds", "log"), FVU, [Series(n, [(p[1], p[2]) for p in c]) for n, c in curves]),
        plot(
            "FVU and L0", Axis("L0"), FVU, [Series(n, [p], line=False) for n, p in points] + [front] * (len(front.points) > 1)
        ),
    ]


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other point beats in one coordinate without losing in the other, by the first coordinate."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], best: int | None) -> str:
    """A table; every text in it is escaped, and the row `best` stands out."""
    lines = ['<div class="wide"><table><tr>' + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    for i, row in enumerate(rows):
        lines.append(
            f"<tr{' class=best' if i == best else ''}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        )
    return "\n".join([*lines, "</table></div>"])


def figures_of(run: RunSeen) -> list[str]:
    """The texts of FIGURES."""
    return [
        _or_dash(run.fvu, lambda v: f"{v:.4f}"), _or_dash(run.l0, lambda v: f"{v:.1f}"), _or_dash(run.dead, lambda v: f"{v:.1%}"),
        _or_dash(run.rows, format_count), _or_dash(run.seconds, format_seconds),
    ]  # fmt: skip


def _head(setting: str) -> str:
    """Of a setting's column; no figure's."""
    return f"{setting}, set" if setting in FIGURES else setting


def _or_dash(value: float | None, told: Callable[[float], str]) -> str:
    return "–" if value is None else told(value)


def _told(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _best(runs: Sequence[RunSeen]) -> int | None:
    """The finished run with the lowest FVU; None where there are not two, or they are of different rows."""
    found = {i: run.fvu for i, run in enumerate(runs) if run.finished and run.fvu is not None}
    if len(found) < 2 or different_stores(runs):
        return None
    return min(found, key=lambda i: found[i])
