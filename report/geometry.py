"""What `splinterp geometry` and `splinterp spectrum` print and draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..quantities import counted, format_count
from .plots import Axis, Series, plot
from .tables import print_whole


def print_geometry(console: Console, f: Mapping[str, Any]) -> None:
    """An SAE's geometry, a line a figure, with what it means."""
    k, untied = f["k"], f["verified_rows"] - f["tied"]
    diagram = f"power diagram of order {k}" if k else "power diagram of the hyperplanes' cells"
    lines = [
        ("regions are", f"{diagram}, {counted(f['generators'], 'generator' if k else 'hyperplane')}"),
        ("verified", f"{_share(f['verified'], untied)}; besides {f['tied']:,} at a border, as near as float32 tells ({_share(f['agree'], f['verified_rows'])})"),
        ("zero centres", f"{f['zero_centres']:,}"),
        ("duplicate centres", f"{f['duplicate_centres']:,}, of them {f['duplicate_generators']:,} with the same weight"),
        *([("fewer than k active", f"{counted(f['short'], 'row')} of {f['verified_rows']:,}")] if k else []),
        ("regions visited", f"{'' if f['regions_whole'] else 'more than '}{f['regions']:,} by {counted(f['n_rows'], 'row')}; {_visits(f)}"),
        ("map A·x + c", f"x̂ to {f['map_error']:.1e}, on {counted(f['map_rows'], 'row')}"),
        ("nearest border", f"at {f['border_median']:.4g} (median; {f['border_over_norm']:.2%} of ‖x‖), at least {f['border_min']:.3g}"),
        ("behind it", f"another latent in one's place: {f['border_swap']:.1%}; one more or less: {1 - f['border_swap']:.1%}"),
    ]  # fmt: skip
    table = Table(
        title=f"{f['architecture']}, {counted(f['n_rows'], 'row')} ({f['split']})", title_justify="left", show_header=False
    )
    for line in lines:
        table.add_row(*line)
    print_whole(console, table)


def _visits(f: Mapping[str, Any]) -> str:
    """ "700 once, one 12 times"."""
    return f"{f['regions_once']:,} once, one {f['largest_region']:,} times" if f["largest_region"] > 1 else "each once"


def _share(share: float, rows: int) -> str:
    """ "all of 8,134 rows"; 100 % that are rounded would say too much."""
    wrong = 0 if math.isnan(share) else round((1 - share) * rows)
    return f"all of {counted(rows, 'row')}" if not wrong else f"{rows - wrong:,} of {counted(rows, 'row')} ({share:.4%})"


def print_spectrum(console: Console, result: Mapping[str, Any]) -> None:
    """k-means, local PCA and SAEs, a line each; then the bounds on SAEs' own regions."""
    n = result["entries"][0]["n_rows"]
    table = Table(
        title=f"{result['site']} on {counted(n, 'held-out row')}; {counted(result['regions'], 'region')}; {result['bits_per_coefficient']:g} bits a coefficient",
        title_justify="left",
    )
    for name in ("", "FVU", "coefficients", "index bits", "bits a row", "parameters", "unused"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for e in result["entries"]:
        table.add_row(
            e["name"], f"{e['fvu']:.4f}", f"{e['coefficients']:.4g}", f"{e['index_bits']:.1f}", f"{e['bits']:.1f}",
            format_count(e["parameters"]), f"{e['dead_fraction']:.1%}",
        )  # fmt: skip
    print_whole(console, table)
    for b in result["bounds"]:
        console.print(
            f"{b['name']}: on the training rows of its own {counted(b['regions'], 'region')} FVU {b['fvu']:.4f}; an autoencoder affine on each, with its ranks, cannot be below {b['bound']:.4f}.",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def draw_spectrum(result: Mapping[str, Any]) -> str:
    """Held-out FVU against description length, as SVG: local PCA at all prices, from k-means on; the SAEs as points."""
    regions = counted(result["regions"], "region")
    points = lambda entries: [(e["bits"], e["fvu"]) for e in entries]  # noqa: E731
    means, saes = (
        [e for e in result["entries"] if (e["kind"] == "k-means") == first and e["kind"] != "local PCA"]
        for first in (True, False)
    )
    series = [
        Series(f"local PCA, {regions}", points(result["curve"])),
        Series(f"k-means, {regions}", points(means)),
        *(Series(f"{e['name']} ({e['kind']})", points([e])) for e in saes),
    ]
    bits = f"description length, bits a row ({result['bits_per_coefficient']:g} a coefficient)"
    return plot(
        f"{result['site']}: the spectrum from k-means to local PCA", Axis(bits, "log"), Axis("held-out FVU", "log"), series
    )
