"""Why TopK's test error peaks at 45 % of the data: open question 3 of SplInterp (arXiv 2505.11836), answered at a size that runs anywhere.

45 % of the paper's 9,000 rows are 4,050, and each dimension's decoder has 4,096 unknowns, with a ridge of next to nothing: the
interpolation threshold of least squares. So the peak must stand at as many rows as latents at any size, with an encoder that was never
trained too, and be gone with a ridge that is chosen on validation rows. All ratios are the paper's: K and rows to latents, and, with the
latents left to the site, latents to dimensions.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..bench.cells import Cells
from ..devices import suitable_threads
from ..errors import SplinterpError
from ..evaluate import evaluate_rows
from ..report.plots import Axis, Series, plot
from ..sae import fired_counts
from ..store import Store
from ..store.files import write_bytes
from ..train import TrainConfig
from .alternation import AT_ONCE, alternate
from .gemma import BATCH, LR, MOST_ROWS, SHARES, SMALLEST, K, N, Sizes, ZScored

NAME = "topk-peak"
PAPERS_RIDGE = 1e-10
RIDGES: dict[str, float | None] = {"1e-10": PAPERS_RIDGE, "auto": None}
ENCODERS = ("trained", "random")

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class TopKPeak:
    """Settings of the recipe.

    Attributes:
        latents: None: as many per dimension as in the paper.
        epochs: of training, each with one solve. seeds: of encoder, rows and their order.
    """

    latents: int | None = None
    epochs: int = 50
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if self.latents is not None and self.latents < SMALLEST:
            raise SplinterpError(
                f"--latents {self.latents} are too few for the smallest share of the data; give {SMALLEST} or more."
            )
        if self.epochs < 1:
            raise SplinterpError(f"--epochs {self.epochs} would train nothing; give at least 1.")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise SplinterpError(
                f"--seeds must be different numbers from 0 on, not {', '.join(map(str, self.seeds)) or 'none'}."
            )


def run(config: TopKPeak, store: Store, site: str, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Fill the folder `out` with `cells.jsonl` (what lies there is not trained again), `topk-peak.json` and `topk-peak.svg`; returns what the
    JSON holds.

    `curves`: of each encoder and ridge the points, by rows: `rows`, their `share` and `rows_per_latent`, the held-out `fvu` of each seed and
    its `mean`, and how many latents `fired` on the rows (mean). `peak`: of each encoder and ridge the point with the highest mean.

    Args:
        progress: told cells done, all cells, and the one in hand.

    Raises:
        SplinterpError: the store has too few rows, or `out` is another process's or damaged.
    """
    sizes = Sizes.of_site(store, site, config.latents)
    total, done = len(SHARES) * len(config.seeds) * len(ENCODERS) * len(RIDGES), 0
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    with closing(Cells(out)) as cells, suitable_threads(store.site(site).d * sizes.latents, torch.device("cpu")):
        for seed in config.seeds:
            data = None
            for share, encoder, ridge in _points():
                rows = sizes.of(N * share)
                if progress:
                    progress(done, total, f"seed {seed}, {rows:,} rows, {encoder} encoder, ridge {ridge}")
                identity = {
                    "recipe": NAME, "store": store.fingerprint, "site": site, "latents": sizes.latents, "rows": rows, "encoder": encoder,
                    "epochs": config.epochs if encoder == "trained" else 0, "ridge": ridge, "seed": seed,
                }  # fmt: skip
                cell = cells.find(identity)
                if cell is None:
                    data = data or ZScored.of(store, site, sizes.rows, seed)
                    cell = cells.add(identity, _cell(data, sizes, rows, identity["epochs"], RIDGES[ridge], seed))
                found.setdefault((encoder, ridge, rows), []).append(cell)
                done += 1
    result = _summed_up(config, sizes, store, site, found)
    write_bytes(out / f"{NAME}.json", (json.dumps(result, indent=2) + "\n").encode())
    write_bytes(out / f"{NAME}.svg", (draw(result) + "\n").encode())
    if progress:
        progress(total, total, "done")
    return result


def _points() -> Iterator[tuple[float, str, str]]:
    for share in SHARES:
        for encoder in ENCODERS:
            for ridge in RIDGES:
                yield share, encoder, ridge


def _cell(data: ZScored, sizes: Sizes, rows: int, epochs: int, ridge: float | None, seed: int) -> dict[str, Any]:
    config = TrainConfig(
        method="pam", activation="topk", d_sae=sizes.latents, k=sizes.of(K), rows=max(1, rows * epochs), batch_size=sizes.of(BATCH), lr=LR,
        decoder_steps=False, revive="none", seed=seed,
    )  # fmt: skip
    x = data.train[:rows]
    sae = alternate(x, data.validation, config, epochs, ridge)
    figures = evaluate_rows(sae, data.held_out.split(AT_ONCE))
    fired = int((fired_counts(sae.encode(x), sizes.latents) > 0).sum())
    fvu = float(figures["fvu"])
    return {"fvu": fvu if math.isfinite(fvu) else None, "fired": fired}


def _summed_up(
    config: TopKPeak, sizes: Sizes, store: Store, site: str, found: Mapping[tuple[str, str, int], list[dict[str, Any]]]
) -> dict[str, Any]:
    curves: dict[str, dict[str, list[dict[str, Any]]]] = {encoder: {ridge: [] for ridge in RIDGES} for encoder in ENCODERS}
    shares = {sizes.of(N * share): share for share in SHARES}
    for (encoder, ridge, rows), cells in found.items():
        fvus = [cell["fvu"] for cell in cells]
        mean = None if None in fvus else statistics.fmean(fvus)
        point = {
            "share": shares[rows], "rows": rows, "rows_per_latent": rows / sizes.latents, "fvu": fvus, "mean": mean,
            "fired": statistics.fmean(cell["fired"] for cell in cells),
        }  # fmt: skip
        curves[encoder][ridge].append(point)
    highest = lambda points: max(points, key=lambda p: math.inf if p["mean"] is None else p["mean"])  # noqa: E731
    return {
        "recipe": NAME, "store": str(store.path), "store_fingerprint": store.fingerprint, "site": site, "d_in": store.site(site).d,
        "latents": sizes.latents, "k": sizes.of(K), "batch_size": sizes.of(BATCH), "lr": LR, "epochs": config.epochs,
        "seeds": list(config.seeds), "held_out_rows": min(MOST_ROWS, store.split_rows("held_out")),
        "peak": {encoder: {ridge: highest(points) for ridge, points in by.items()} for encoder, by in curves.items()}, "curves": curves,
    }  # fmt: skip


def draw(result: Mapping[str, Any]) -> str:
    """Held-out FVU against rows per latent, as SVG: the mean of the seeds."""
    series = [
        Series(
            f"{encoder} encoder, ridge {ridge}",
            [(p["rows_per_latent"], math.nan if p["mean"] is None else p["mean"]) for p in points],
        )
        for encoder, by_ridge in result["curves"].items()
        for ridge, points in by_ridge.items()
    ]
    title = f"TopK, {result['latents']:,} latents, k={result['k']}, d_in={result['d_in']}"
    return plot(title, Axis("training rows per latent", "log"), Axis("held-out FVU", "log"), series)


def table(result: Mapping[str, Any]) -> str:
    """A line a number of rows, as Markdown: the mean FVU of the seeds, and how many latents fired under the paper's ridge."""
    columns = [(encoder, ridge) for encoder in ENCODERS for ridge in RIDGES]
    lines = [
        f"{result['site']}, d_in {result['d_in']}, {result['latents']:,} latents, k={result['k']}, {result['epochs']} epochs, "
        f"{len(result['seeds'])} seeds; FVU on {result['held_out_rows']:,} held-out rows.",
        "",
        "| share | rows | rows per latent | latents that fired | " + " | ".join(f"{e}, ridge {r}" for e, r in columns) + " |",
        "|---|---|---|---|" + "---|" * len(columns),
    ]
    for i, p in enumerate(result["curves"][columns[0][0]][columns[0][1]]):
        means = [result["curves"][encoder][ridge][i]["mean"] for encoder, ridge in columns]
        fvus = " | ".join("no number" if m is None else f"{m:.4g}" for m in means)
        lines.append(f"| {p['share']:.0%} | {p['rows']:,} | {p['rows_per_latent']:.2f} | {p['fired']:.0f} | {fvus} |")
    return "\n".join(lines)
