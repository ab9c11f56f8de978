"""What `bench quality` found, to be read: Markdown tables, and plots as SVG."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report.plots import Axis, Series, plot
from .cells import sources

FVU = Axis("held-out FVU", "log")


def tables(result: Mapping[str, Any]) -> str:
    """A store and a size: a line a method at its best rate, one on the rows that it needs, and the grids of rates."""
    r, methods = result, result["methods"]
    rows = f"{r['rows']:,} rows" + (", several epochs" if r["several_epochs"] else ", one pass")
    lines = [
        f"{r['site']} of {Path(r['store']).name}, d_in {r['d_in']}, {rows}, batch {r['batch_size']}, {r['latents']:,} latents, k={r['k']}, "
        f"{len(r['seeds'])} seeds; FVU on {r['held_out_rows']:,} held-out rows, rates by FVU on validation rows.",
        "",
        f"| method | lr |{' epochs |' if r['several_epochs'] else ''} FVU | ± | of {r['baseline'] or 'the baseline'} | L0 | dead, % | seconds | rows/s |",
        "|---|---|" + "---|" * (7 + r["several_epochs"]),
    ]
    for name, m in methods.items():
        epochs = f" {m['epochs']} |" if r["several_epochs"] else ""
        ratio = "–" if m["ratio"] is None else f"{m['ratio']:.3f}"
        lines.append(
            f"| {name} | {m['lr']:.3g} |{epochs} {_mean(m['fvu']):.4f} | {_spread(m['fvu']):.4f} | {ratio} | {_mean(m['l0']):.1f} "
            f"| {100 * _mean(m['dead']):.1f} | {_mean(m['seconds']):.1f} | {_mean(m['rows_per_second']):.0f} |"
        )
    for name, m in methods.items():
        if "fractions" in m:
            lines += ["", _needs(name, m, r)]
    lines += ["", *_grids(methods, r["several_epochs"])]
    edges = [name for name, m in methods.items() if m["at_edge"]]
    if edges:
        lines += [
            "",
            f"Note: of {', '.join(edges)} the best rate lies at the end of the grid, which was extended as far as it may be.",
        ]
    foreign = [name for name, m in methods.items() if m["sources"] != [sources()]]
    if foreign:
        lines += ["", f"Note: cells of {', '.join(foreign)} were made by other sources of splinterp than these."]
    return "\n".join(lines)


def _needs(name: str, m: Mapping[str, Any], r: Mapping[str, Any]) -> str:
    found = ", ".join(f"{_mean(fvus):.4f} after {n:,} rows" for n, fvus in m["fractions"].items())
    if r["baseline"] is None:
        return f"{name}: {found}."
    if m["needs"] is None:
        return f"{name}: {found}; it does not come to {r['baseline']}'s final FVU."
    how, share = m["needs"]
    return f"{name}: {found}; {r['baseline']}'s final FVU after {'less than ' if how == '<' else ''}{share:.2f} of the rows."


def _grids(methods: Mapping[str, Mapping[str, Any]], several_epochs: bool) -> list[str]:
    """Validation FVU of the first seed by rate."""
    rates = sorted({lr for m in methods.values() for grid in m["grid"].values() for lr in grid})
    lines = ["| validation FVU at lr | " + " | ".join(f"{lr:.3g}" for lr in rates) + " |", "|---|" + "---|" * len(rates)]
    for name, m in methods.items():
        for epochs, grid in m["grid"].items():
            best = min(grid.values())
            cells = ["" if lr not in grid else f"**{grid[lr]:.4f}**" if grid[lr] == best else f"{grid[lr]:.4f}" for lr in rates]
            after = f", {epochs} epochs" if several_epochs else ""
            lines.append(f"| {name}{after} | " + " | ".join(cells) + " |")
    return lines


def draw(results: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Write the plots into `out`: of each store and size FVU against tokens and against seconds, of each store FVU against its sizes."""
    plots = {}
    for r in results:
        about = f"{Path(r['store']).name}, {r['site']}, {r['rows']:,} rows"
        name = f"{_name(r)}-{r['rows']}{'-epochs' * r['several_epochs']}"
        for what, axis, at in (("tokens", "rows trained on", 0), ("seconds", "seconds", 1)):
            lines = [Series(m, _middle(told["curve"], at)) for m, told in r["methods"].items()]
            plots[f"{name}-{what}.svg"] = plot(about, Axis(axis, "log"), FVU, lines)
    for several in (False, True):
        for key in dict.fromkeys((r["fingerprint"], r["site"]) for r in results):
            of = [r for r in results if (r["fingerprint"], r["site"]) == key and r["several_epochs"] == several]
            if len(of) > 1:
                name = f"{_name(of[0])}-sizes{'-epochs' * several}.svg"
                plots[name] = plot(f"{Path(of[0]['store']).name}, {key[1]}", Axis("training rows", "log"), FVU, _by_size(of))
    for name, text in plots.items():
        (out / name).write_text(text + "\n", encoding="utf-8")
    return [out / name for name in plots]


def for_json(value: Any) -> Any:
    """The same with None for each number that JSON has not: those of a run that diverged."""
    if isinstance(value, dict):
        return {key: for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_size(of: Sequence[Mapping[str, Any]]) -> list[Series]:
    of = sorted(of, key=lambda r: r["rows"])
    series = []
    for name in dict.fromkeys(name for r in of for name in r["methods"]):
        found = [(r["rows"], r["methods"][name]["fvu"]) for r in of if name in r["methods"]]
        series.append(Series(name, [(n, _mean(fvus)) for n, fvus in found], [_spread(fvus) for _, fvus in found]))
    return series


def _middle(curves: Sequence[Sequence[Sequence[float]]], at: int) -> list[tuple[float, float]]:
    """The mean curve of several seeds, which have their points at the same rows; of those that did not diverge."""
    longest = max(map(len, curves))
    whole = [curve for curve in curves if len(curve) == longest]
    return [(_mean([p[at] for p in points]), _mean([p[2] for p in points])) for points in zip(*whole, strict=True)]


def _name(r: Mapping[str, Any]) -> str:
    """Part of a file's name, which no other store and site has."""
    store = Path(r["store"]).name.removesuffix(".zarr")
    return re.sub(r"[^A-Za-z0-9.]+", "_", f"{store}_{r['fingerprint'][:6]}_{r['site']}")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _spread(values: Sequence[float]) -> float:
    """The standard deviation; zero of a single value."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0
