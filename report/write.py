"""`write_report`: a run and its store in, one HTML page out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SplinterpError
from ..store import Store
from ..store.files import write_bytes
from ..store.places import Location
from .build import LATENTS, Progress, as_json, make_report
from .page import page
from .statistics import LatentStatistics


def write_report(
    run: str | Path,
    store: Location | Store | None = None,
    out: str | Path = "report.html",
    *,
    site: str | None = None,
    model: str | None = None,
    baselines: Sequence[str | Path] = (),
    latents: int = LATENTS,
    ids: Sequence[int] = (),
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
    statistics: LatentStatistics | None = None,
) -> dict[str, Any]:
    """Write the report of a run (or any SAE in SAELens's format) as one HTML file that fetches nothing, and return its figures.

    The site's rows are read once, in memory that does not grow with them; then, for the chosen contexts, the columns once and the rows around.

    Args:
        store: None: the one that the run was trained on. site: None: the SAE's own.
        model: whose unembedding gives tokens; None: the store's, where it is `tiny` or a local directory.
        baselines: runs to compare figures and curves with. latents: how many to show, of which `ids` come first.
        force: replace what is at `out`. progress: hears (stage, done, of how many). statistics: of this SAE on this site, where they are known.

    Raises:
        SplinterpError: something is missing, or does not go together, or `out` exists.
    """
    run, out = Path(run), Path(out)
    if out.exists() and not force:
        raise SplinterpError(f"{out} exists already; give another --out, or --force to replace it.")
    if not out.parent.is_dir():
        raise SplinterpError(f"There is no folder {out.parent} to write the report to; make it, or give another --out.")
    report = make_report(
        run, store, site=site, model=model, baselines=baselines, latents=latents, ids=ids, device=device, progress=progress, statistics=statistics
    )  # fmt: skip
    content = page(report).encode(errors="replace")
    write_bytes(out, content)
    return {**as_json(report), "out": str(out), "bytes": len(content)}
