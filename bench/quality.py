"""Held-out FVU of methods × seeds × data sizes on stores, each method at its best learning rate: who makes the better SAE of the same rows.

    splinterp bench quality --store acts.zarr --rows 60k --rows all --seeds 0,1,2

At each size every contender is trained on the same rows in the same batches. Its rate is tuned with the first seed: on a grid, which grows by
factors of two while the best rate lies at an end, by FVU on the store's validation rows. All seeds are then trained at the best rate, and
figures are of the store's held-out rows. A contender as trained and the same one after a refit are two methods, each with its own rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import store as stores
from ..errors import SplinterpError
from ..quantities import format_count
from ..train import TrainConfig, auto_batch_size, auto_lr
from ..train.loop import Progress
from .cells import Cells, key_of
from .contenders import BASELINES, DEFAULT, Method, Place, contend, identity, settings_of, taking_part
from .sizes import Size, auto_epochs, part_of

FACTORS = (1 / 4, 1 / 2, 1.0, 2.0)  # of the automatic rate
MOST_EXTENSIONS = 6  # of a grid, by a factor of two each


@dataclass(frozen=True, kw_only=True)
class QualityBench:
    """What to measure.

    Raises:
        SplinterpError: a value that cannot be.
    """

    stores: tuple[str, ...]
    out: Path
    site: str | None = None
    methods: tuple[str, ...] = DEFAULT
    rows: tuple[int | None, ...] = ()
    """Sizes in one pass; None: all training rows. Empty: that alone, where there are no `shares`."""
    shares: tuple[float, ...] = ()
    """Sizes in several epochs, as shares of `share_of`."""
    share_of: int | None = None
    """None: the store's training rows."""
    epochs: tuple[int, ...] = ()
    """Of the shares, tuned like the rate where there are several; empty: about 2,000 steps."""
    seeds: tuple[int, ...] = (0, 1, 2)
    factors: tuple[float, ...] = FACTORS
    """The grid of rates, in units of `auto_lr`."""
    fractions: tuple[float, ...] = ()
    """Of a one-pass size: what methods other than the baselines are trained on too, at the rate tuned for the whole."""
    batch_size: int | None = None
    """None: `auto_batch_size` of a size's rows."""
    latents: int | None = None
    expansion: int = 8
    k: int = 32
    device: str = "auto"

    def __post_init__(self) -> None:
        for what, values in (("--share", self.shares), ("--fractions", self.fractions)):
            if not all(0 < value <= 1 for value in values):
                raise SplinterpError(f"{what} must be above 0 and at most 1, not {', '.join(f'{v:g}' for v in values)}.")
        if not self.stores or not self.seeds or not self.methods:
            raise SplinterpError("There must be at least one store, one seed and one method.")
        if not self.factors or not all(math.isfinite(f) and f > 0 for f in self.factors):
            raise SplinterpError("--rates must be factors above 0 of the automatic rate, such as 0.25,0.5,1,2.")
        if not all(epochs >= 1 for epochs in self.epochs):
            raise SplinterpError("--epochs must be at least 1.")

    def sizes(self, training_rows: int) -> list[Size]:
        """The sizes for a store with so many training rows."""
        rows = self.rows or (() if self.shares else (None,))
        of = self.share_of or training_rows
        once = [Size(training_rows if n is None else n) for n in rows]
        shares = [max(1, round(share * of)) for share in self.shares]
        return once + [Size(n, self.epochs or (auto_epochs(n, self.batch(n)),)) for n in shares]

    def batch(self, rows: int) -> int:
        """Rows a step."""
        return self.batch_size or auto_batch_size(rows)

    def settings(self, d_in: int, rows: int, epochs: int) -> TrainConfig:
        """What all contenders on rows of width d_in have in common, with the automatic rate and the first seed."""
        return TrainConfig(
            method="adam", activation="topk", d_sae=self.latents or self.expansion * d_in, k=self.k, rows=epochs * rows, different_rows=rows,
            batch_size=self.batch(rows), lr=auto_lr(d_in), seed=self.seeds[0],
        )  # fmt: skip


# Told how far all is: rows trained on, epochs counted, those expected, the cell in hand, its figures.
Report = Callable[[float, float, str, dict[str, float]], None]


class Ledger:
    """What is trained, and what was before.

    Attributes:
        expected, done: rows to train on, epochs counted, and those of them that are done; guessed, as grids may grow.
    """

    def __init__(self, cells: Cells, report: Report) -> None:
        self.cells, self.report = cells, report
        self.expected = self.done = 0.0
        self._asked: set[str] = set()

    def cell(self, contender: str, config: TrainConfig, place: Place, also_refit: bool) -> dict[str, Any]:
        """What came of a contender's training, now or before."""
        own = settings_of(contender, config)
        same = {
            **identity(contender, own), "fingerprint": place.whole.fingerprint, "part": place.part.fingerprint, "site": place.site
        }  # fmt: skip
        found, new = self.cells.find(same), (key := key_of(same)) not in self._asked
        self._asked.add(key)
        if found and (found["trained"] is None or found["refit"] or not also_refit):
            self.expected -= config.rows * new
            return found
        name = f"{contender}, {format_count(config.rows)} rows, lr {config.lr:.3g}, seed {config.seed}"
        begun = self.done
        self.expected = max(self.expected, begun + config.rows)
        self.report(begun, self.expected, name, {})
        told = contend(contender, own, place, also_refit, self._progress(name, begun, config.rows))
        self.done = begun + config.rows
        return self.cells.add(same, {"store": str(place.whole.path), **told})

    def _progress(self, name: str, begun: float, rows: int) -> Progress:
        def progress(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
            so_far = done if stage == "train" else rows
            self.report(begun + so_far, self.expected, f"{name}: {stage}", figures)

        return progress


def run(
    config: QualityBench,
    tell: Callable[[str], None] = lambda sentence: None,
    report: Report = lambda done, expected, cell, figures: None,
) -> Iterator[dict[str, Any]]:
    """Results, one for each store and size: what was trained on, and `methods`, by name.

    Of a method: `lr` and `epochs` (the best), `grid` (validation FVU by epochs and rate), `at_edge` (whether the grid could not be extended far
    enough), and by seed `fvu`, `l0`, `dead`, `seconds`, `rows_per_second`, `curve`; `ratio` of its mean FVU to the baseline's, `fractions`
    (FVU by rows and seed), and `needs` (see `share_needed`).

    Raises:
        SplinterpError: a store has not the rows, or another process works in `out`.
    """
    methods, left_out = taking_part(config.methods)
    if left_out:
        tell(left_out)
    with closing(Cells(config.out)) as cells:
        if len(cells):
            tell(f"{cells.path} has {len(cells)} cells; those that are asked for again are not trained again.")
        ledger = Ledger(cells, report)
        todo = []
        for path in config.stores:
            store = stores.open(path)
            site = store.site(config.site)
            if not store.split_rows("validation"):
                raise SplinterpError(
                    f"{path} has too few rows ({store.rows:,}) to keep some apart for validation; use a larger store."
                )
            for size in config.sizes(store.split_rows("train")):
                config.settings(site.d, size.rows, max(size.epochs, default=1))  # refuses what cannot be
                todo.append((store, site.name, size))
        for n, (store, site, size) in enumerate(todo):
            ledger.expected = ledger.done + sum(_expected(config, methods, size) for _, _, size in todo[n:])
            with part_of(store, site, size.rows) as part:
                yield _at_size(config, methods, ledger, Place(part, store, site, config.device), size)


def _expected(config: QualityBench, methods: list[Method], size: Size) -> float:
    """Rows to train on, epochs counted, if no grid is extended and no cell is there yet."""
    contenders = {m.contender for m in methods}
    others = {c for c in contenders if c not in BASELINES}
    tuning = len(config.factors) * len(contenders) * sum(size.epochs or (1,))
    seeds = (len(config.seeds) - 1) * len(methods) * max(size.epochs, default=1)
    fractions = 0.0 if size.epochs else len(others) * len(config.seeds) * sum(config.fractions)
    return size.rows * (tuning + seeds + fractions)


def _at_size(config: QualityBench, methods: list[Method], ledger: Ledger, place: Place, size: Size) -> dict[str, Any]:
    rows, d_in = place.part.split_rows("train"), place.whole.site(place.site).d
    refitted = {m.contender for m in methods if m.refit}
    results: dict[str, dict[str, Any]] = {}
    for method in methods:
        # Method by method, and a contender's cells are found again for its refit.
        def cell(epochs: int, lr: float, seed: int, method: Method = method) -> dict[str, Any]:
            common = replace(config.settings(d_in, rows, epochs), lr=lr, seed=seed)
            return ledger.cell(method.contender, common, place, method.contender in refitted)

        results[method.name] = _tuned(config, method, cell, size.epochs or (1,), auto_lr(d_in))
    fvus = {name: mean_of(result["fvu"]) for name, result in results.items()}
    baseline = min((name for name in BASELINES if name in fvus), key=lambda name: fvus[name], default=None)
    for method in methods:
        result = results[method.name]
        result["ratio"] = fvus[method.name] / fvus[baseline] if baseline else None
        if method.contender not in BASELINES and not size.epochs and config.fractions:
            result["fractions"] = _fractions(config, method, ledger, place, rows, result["lr"], refitted)
            if baseline:
                points = {n: mean_of(found) for n, found in result["fractions"].items()} | {rows: fvus[method.name]}
                result["needs"] = share_needed(points, fvus[baseline], rows)
    common = config.settings(d_in, rows, 1)
    return {
        "store": str(place.whole.path), "fingerprint": place.whole.fingerprint, "site": place.site, "d_in": d_in, "rows": rows,
        "several_epochs": bool(size.epochs), "held_out_rows": place.whole.split_rows("held_out"), "batch_size": common.batch_size,
        "latents": common.d_sae, "k": common.k, "seeds": list(config.seeds), "baseline": baseline, "methods": results,
    }  # fmt: skip


def _tuned(
    config: QualityBench,
    method: Method,
    cell: Callable[[int, float, int], dict[str, Any]],
    epochs: tuple[int, ...],
    unit: float,
) -> dict[str, Any]:
    """A method at its best rate (and number of epochs), with all seeds."""
    grids = {
        n: tuned(lambda lr, n=n: _fvu(cell(n, lr, config.seeds[0]), method, "validation"), config.factors, unit) for n in epochs
    }
    best = min(((fvu, n, lr) for n, (grid, _) in grids.items() for lr, fvu in grid.items()))
    _, chosen, lr = best
    cells = [cell(chosen, lr, seed) for seed in config.seeds]
    found = [c[method.stage] for c in cells]
    trained_on = [c["settings"]["rows"] for c in cells]
    return {
        "lr": lr,
        "epochs": chosen,
        "grid": {n: grid for n, (grid, _) in grids.items()},
        "at_edge": grids[chosen][1],
        "sources": sorted({c["sources"] for c in cells}),
        "fvu": [_fvu(c, method, "held_out") for c in cells],
        "l0": [f["held_out"]["l0"] if f else math.nan for f in found],
        "dead": [f["held_out"]["dead_fraction"] if f else math.nan for f in found],
        "seconds": [f["seconds"] if f else math.nan for f in found],
        "rows_per_second": [n / f["seconds"] if f else math.nan for n, f in zip(trained_on, found, strict=True)],
        "curve": [_curve(c, method) for c in cells],
    }


def tuned(
    fvu_at: Callable[[float], float], factors: tuple[float, ...], unit: float, extensions: int = MOST_EXTENSIONS
) -> tuple[dict[float, float], bool]:
    """FVU by rate, in order: at `factors` times `unit`, and by further factors of two, so many at most, while the best rate lies at an end.

    Returns also whether the best still lies at an end.
    """
    grid = {lr: fvu_at(lr) for lr in sorted(unit * factor for factor in factors)}
    for _ in range(extensions):
        best = min(grid, key=lambda lr: (grid[lr], lr))
        if min(grid) < best < max(grid):
            return grid, False
        further = best / 2 if best == min(grid) else best * 2
        grid = dict(sorted({**grid, further: fvu_at(further)}.items()))
    best = min(grid, key=lambda lr: (grid[lr], lr))
    return grid, not min(grid) < best < max(grid)


def _fractions(
    config: QualityBench, method: Method, ledger: Ledger, place: Place, rows: int, lr: float, refitted: set[str]
) -> dict[int, list[float]]:
    """Held-out FVU by rows and seed of a method trained on fractions of the rows, with a schedule of its own and the batches of the whole."""
    found = {}
    for fraction in sorted(config.fractions):
        with part_of(place.whole, place.site, max(1, round(fraction * rows))) as part:
            n = part.split_rows("train")
            common = config.settings(place.whole.site(place.site).d, n, 1)
            common = replace(common, lr=lr, batch_size=config.batch(rows))
            at = replace(place, part=part)
            cells = [
                ledger.cell(method.contender, replace(common, seed=seed), at, method.contender in refitted)
                for seed in config.seeds
            ]
            found[n] = [_fvu(c, method, "held_out") for c in cells]
    return found


def share_needed(points: dict[int, float], goal: float, rows: int) -> tuple[str, float] | None:
    """The smallest share of `rows` on which a method comes to the FVU `goal`: ("=", share), interpolated between its `points` (FVU by rows)
    linearly in log FVU by log rows; ("<", share) where the smallest of them is good enough already; None where the largest is not.
    """
    sizes = sorted(points)
    if points[sizes[0]] <= goal:
        return "<", sizes[0] / rows
    for less, more in pairwise(sizes):
        if points[more] <= goal:
            if not math.isfinite(points[less]):
                return "<", more / rows
            way = math.log(points[less] / goal) / math.log(points[less] / points[more])
            return "=", less / rows * (more / less) ** way
    return None


def mean_of(values: list[float]) -> float:
    """The mean; infinite where one of them is."""
    return sum(values) / len(values)


def _fvu(cell: dict[str, Any], method: Method, split: str) -> float:
    """Infinite where training diverged."""
    stage = cell[method.stage]
    fvu = stage[split]["fvu"] if stage else math.inf
    return fvu if math.isfinite(fvu) else math.inf


def _curve(cell: dict[str, Any], method: Method) -> list[tuple[int, float, float]]:
    """Rows, seconds and FVU on the way, and at the end that of all held-out rows, with the time of the last solve or refit."""
    stage = cell[method.stage]
    if not stage:
        return [tuple(point) for point in cell["curve"]]
    solved = method.refit or cell["settings"].get("last_solve")
    way = cell["curve"] if solved else cell["curve"][:-1]
    return [*map(tuple, way), (cell["settings"]["rows"], stage["seconds"], stage["held_out"]["fvu"])]
