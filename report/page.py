"""The report as one HTML page: it fetches nothing, a browser is told to let it fetch nothing, and every text in it is escaped.

All of it is there without JavaScript; the script only sorts and searches what is on the page. Nothing is embedded as data.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..quantities import counted, format_count
from .build import ALIKE, Report, alike
from .cards import card
from .charts import bars, lines
from .compare import FIGURES, figures_of, html_table
from .plots import Axis, Series
from .runs import differing, number

POINTS = 300  # of a curve
BINS = 36
MOST_IDS = 400
SORTS = (
    ("interest", "interest"), ("density-down", "most frequent first"), ("density-up", "rarest first"), ("max", "largest activation"),
    ("cosine", "most like another"), ("id", "number"),
)  # fmt: skip


def page(report: Report) -> str:
    """The whole page."""
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">',
        f"<title>{escape(report.name)}: a sparse autoencoder's report</title><style>{style}</style></head><body>",
        *_header(report),
        "<main>",
        *_figures(report),
        *_curves(report),
        *_overview(report),
        *_latents(report),
        *_notes(report),
        f"</main><script>{script}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _header(report: Report) -> list[str]:
    config, told = report.sae.config, report.store.attributes
    kind = config.architecture if config.k is None else f"{config.architecture}, k={config.k}"
    facts = [
        ("site", report.site), ("model", told.get("model") or config.metadata.get("model_name")), ("text", told.get("dataset")),
        ("store", f"{report.store.path}, {counted(report.store.rows, 'row')}"), ("SAE", f"{kind}, {config.d_in:,} → {counted(config.d_sae, 'latent')}"),
    ]  # fmt: skip
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts if value)
    dead = f"{len(report.dead) / config.d_sae:.1%}"
    tiles = [
        ("FVU", "–" if report.run.fvu is None else f"{report.run.fvu:.4f}", "on held-out rows: the share of the variance that is left unexplained"),
        ("L0", f"{report.l0:.1f}", "latents that fire on a row, on average"),
        ("latents", f"{config.d_sae:,}", f"of rows {config.d_in:,} wide"),
        ("dead", dead, f"{len(report.dead):,} latents fire on none of the store's {counted(report.store.rows, 'row')}"),
        ("nearly alike", f"{alike(report):.1%}", f"latents with another one's decoder row at a cosine above {ALIKE:g}"),
    ]  # fmt: skip
    shown = "".join(
        f'<div class="tile" title="{escape(told)}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value, told in tiles
    )
    return [f"<header><h1>{escape(report.name)}</h1>", f'<dl class="facts">{listed}</dl>', f'<div class="tiles">{shown}</div>']


def _figures(report: Report) -> list[str]:
    runs = [report.run, *([report.before] if report.before else []), *report.baselines]
    links = '<nav aria-label="Parts of this page"><a href="#figures">Figures</a><a href="#curves">Training</a><a href="#all">All latents</a><a href="#list">Single latents</a><a href="#notes">Notes</a></nav></header>'
    parts = [links, '<section id="figures"><h2>Figures</h2>']
    told = [verdict for run in report.baselines if (verdict := _verdict(report, run))]
    parts += [f"<p>{escape(sentence)}</p>" for sentence in told]
    parts.append('<div class="side"><div><h3>On held-out rows</h3>')
    parts.append(html_table(("run", *FIGURES), [[run.name, *figures_of(run)] for run in runs], 0 if len(runs) > 1 else None))
    parts.append("<p>Dead: the share of latents that fired on none of them.</p></div>")
    if report.baselines and (settings := differing([report.run, *report.baselines])):
        rows = [[name, *(_told(value) for value in values)] for name, values in settings.items()]
        heads = ("setting", report.run.name, *(run.name for run in report.baselines))
        parts.append(f"<div><h3>Settings that differ</h3>{html_table(heads, rows, None)}</div>")
    parts.append("</div>")
    if own := {name: value for name, value in report.run.settings.items() if value is not None}:
        rows = [[name, _told(value)] for name, value in own.items()]
        parts.append(f"<details><summary>All settings of {escape(report.run.name)}</summary>{html_table(('setting', 'value'), rows, None)}</details>")  # fmt: skip
    return [*parts, "</section>"]


def _verdict(report: Report, baseline: Any) -> str | None:
    """FVU against a baseline's, in a sentence."""
    own, other = report.run.fvu, baseline.fvu
    if own is None or not other:
        return None
    change = own / other - 1
    what = "the same" if abs(change) < 5e-4 else f"{abs(change):.1%} {'lower' if change < 0 else 'higher'}"
    return f"FVU {own:.4f} against {other:.4f} of {baseline.name}: {what}."


def _curves(report: Report) -> list[str]:
    if not report.curves:
        return ['<section id="curves"><h2>Training</h2><p>Nothing was recorded of it.</p></section>']
    rows = Axis("rows trained on", "log")

    def against(title: str, key: str, scale: Any = "linear") -> str:
        series = [Series(name, thinned([(line.get("rows"), line.get(key)) for line in found])) for name, found in report.curves]
        return lines(title, rows, Axis(title, scale), series)

    return [
        '<section id="curves"><h2>Training</h2><div class="charts">',
        against("Held-out FVU", "held_out_fvu", "log"),
        against("Training FVU", "fvu", "log"),
        against("L0", "l0"),
        against("Dead latents", "dead"),
        *_half_steps(report, rows),
        "</div></section>",
    ]


def _half_steps(report: Report, rows: Axis) -> list[str]:
    """PAM's objective before and after its solves; nothing where no run measured it."""
    ends = {"the encoder": "objective_after_encoder", "the solve": "objective_after_decoder"}
    series = [
        Series(f"{name}, after {end}", thinned([(line.get("rows"), line.get(key)) for line in found]))
        for name, found in report.curves
        for end, key in ends.items()
    ]
    there = [one for one in series if one.points]
    return [lines("Objective at the half-steps", rows, Axis("objective", "log"), there)] if there else []


def thinned(points: Sequence[tuple[Any, Any]]) -> list[tuple[float, float]]:
    """The points that are two numbers, at most POINTS of them, the last one included."""
    there = [(a, b) for a, b in ((number(a), number(b)) for a, b in points) if a is not None and b is not None]
    kept = np.unique(np.linspace(0, len(there) - 1, min(POINTS, len(there))).round().astype(int))
    return [there[i] for i in kept]


def _overview(report: Report) -> list[str]:
    density, cosines, norms = report.density, report.directions.cosines[:, :1].ravel(), report.directions.norms
    alive = density[density > 0]
    l0, l0_edges = _whole_numbers(report.statistics.l0)
    parts = ['<section id="all"><h2>All latents</h2><div class="charts three">']
    parts.append(bars("L0: latents a row", Axis("latents that fire"), l0_edges, l0, "rows"))
    if len(alive):
        low = 10 ** np.floor(np.log10(alive.min()))
        edges = np.geomspace(low, 1, BINS + 1)
        counts = np.histogram(alive.clip(low, 1), edges)[0]
        without = f"Without {len(report.dead):,} dead ones." if len(report.dead) else "None is dead."
        parts.append(bars("How often latents fire", Axis("share of rows", "log"), edges, counts, "latents", without))
    if len(alive):
        largest = np.abs(report.statistics.strongest.values[density > 0, 0])
        edges = np.geomspace(largest.min() * 0.999, largest.max() * 1.001, BINS + 1)
        told = f"Median {np.median(largest):.3g}, from {largest.min():.3g} to {largest.max():.3g}."
        parts.append(bars("Largest activations", Axis("of a latent, over the store", "log"), edges, np.histogram(largest, edges)[0], "latents", told))  # fmt: skip
    parts.append(_histogram("Decoder norms", "‖row of W_dec‖", norms))
    if len(cosines):
        parts.append(_histogram("Nearest neighbour", "largest cosine to another decoder row", cosines, (min(0.0, float(cosines.min())), 1.0)))  # fmt: skip
    parts.append(_histogram("Encoder and decoder", "cosine of a latent's column and row", report.directions.encoder, (min(0.0, float(report.directions.encoder.min())), 1.0)))  # fmt: skip
    parts.append("</div>")
    parts += _pairs(report)
    if len(report.dead):
        ids = ", ".join(map(str, report.dead[:MOST_IDS].tolist()))
        more = f", … and {len(report.dead) - MOST_IDS:,} more" if len(report.dead) > MOST_IDS else ""
        parts.append(f"<details><summary>{len(report.dead):,} dead latents</summary><p>{ids}{more}</p></details>")
    return [*parts, "</section>"]


def _histogram(title: str, axis: str, values: np.ndarray, ends: tuple[float, float] | None = None) -> str:
    low, high = ends or (float(values.min()), float(values.max()))
    if high - low < 1e-3 * max(abs(low), abs(high), 1e-30):  # unit norms, up to rounding
        low, high = low - 0.05 * max(abs(low), 1e-3), high + 0.05 * max(abs(high), 1e-3)
    counts, edges = np.histogram(values.astype(np.float64).clip(low, high), BINS, (low, high))
    told = f"Median {np.median(values):.3g}, from {values.min():.3g} to {values.max():.3g}."
    return bars(title, Axis(axis), edges, counts, "latents", told)


def _whole_numbers(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of 0, 1, 2, … in at most BINS bars of whole numbers, from just below the least to just above the most."""
    there = np.flatnonzero(counts)
    low, high = max(0, int(there[0]) - 2), min(len(counts), int(there[-1]) + 3)  # one bar alone is no picture
    width = -(-(high - low) // BINS)
    starts = np.arange(low, high, width)
    return np.add.reduceat(counts[:high], starts), np.append(starts, starts[-1] + width) - 0.5


def _pairs(report: Report) -> list[str]:
    """The pairs of latents that are most alike."""
    cosines, nearest = report.directions.cosines, report.directions.nearest
    if not cosines.size:
        return []
    pairs: dict[tuple[int, int], float] = {}
    for i in np.argsort(-cosines[:, 0], kind="stable")[:24].tolist():
        a, b = sorted((i, int(nearest[i, 0])))
        pairs.setdefault((a, b), float(cosines[i, 0]))
    density = report.density
    rows = [[f"{a} and {b}", f"{c:.3f}", f"{density[a]:.2%}, {density[b]:.2%}"] for (a, b), c in list(pairs.items())[:12]]
    table = html_table(("latents", "cosine", "fire on"), rows, None)
    return [f"<details><summary>The pairs that are most alike</summary>{table}</details>"]


def _latents(report: Report) -> list[str]:
    shown = {one.latent for one in report.latents}
    options = "".join(f'<option value="{value}">{name}</option>' for value, name in SORTS)
    return [
        '<section id="list"><h2>Single latents</h2>',
        f"<p>{len(shown):,} of {report.sae.config.d_sae:,}, in turn from the rare, the middling and the frequent third, the most interesting first. "
        "The darker a token, the larger the latent's activation there; point at it for the figure. The token a context was chosen for is underlined.</p>",
        '<form id="tools" role="search"><label>Search <input id="search" type="search" placeholder="number, or text in contexts" autocomplete="off" '
        'title="Press / to come here, Escape to clear"></label>',
        '<label><input id="only" type="checkbox"> shaded tokens only</label>',
        f'<label>Sort by <select id="sort"><option value="given">turns, as chosen</option>{options}</select></label>',
        '<button id="open" type="button" aria-pressed="false">Open all</button><output id="count" aria-live="polite"></output></form>',
        '<div id="latents">',
        *(card(one, shown) for one in report.latents),
        "</div>",
        '<p id="none" hidden>No latent on this page fits. <code>splinterp report … --latent NUMBER</code> puts a particular one here.</p></section>',
    ]


def _notes(report: Report) -> list[str]:
    s = report.statistics
    own = [
        f"Statistics of latents are over all {s.strongest.n_rows:,} rows of the store, those trained on included; FVU, L0 and dead in the table are over its held-out rows alone.",
        "Interest is contrast times spread. Contrast: a latent's 16th largest activation over its mean activation where it fires. Spread: the share of different documents among its 16 strongest rows.",
        "Latents are chosen in turn from the rare, the middling and the frequent third, and in each from those whose strongest rows are mostly one token and the others; "
        "left for last are those that fire on fewer than 64 rows, or on more than 2 % of them and more than twice as often as the mean latent.",
        f"Fifths (80–100 %, …) are of a random sample of {s.sample_rows.shape[1]} of a latent's firings, strongest first. Shading is in tenths of the latent's largest activation.",
        "⋮ stands where the store lacks a row (as it does for BOS, at the head of a document), � for part of a character.",
    ]  # fmt: skip
    if report.sae.config.architecture == "abstopk":
        own.append("Codes may be negative here; strengths are magnitudes.")
    listed = "".join(f"<li>{escape(note)}</li>" for note in [*report.notes, *own])
    footer = f"<footer>Made by splinterp {escape(__version__)} from {format_count(s.strongest.n_rows)} rows. This page is one file and fetches nothing.</footer>"
    return [f'<section id="notes"><h2>Notes</h2><ul>{listed}</ul></section>', footer]


def _told(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
