"""`splinterp reproduce mnist` and `reproduce llm`: train what is missing, sum up, decide the claims, and leave one page and one JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...bench.cells import Cells
from ...devices import SMALL_MATRIX, suitable_threads
from ...errors import SplinterpError
from ...quantities import json_safe
from ...store import Store
from ...store.files import write_bytes
from . import experiments
from .claims import decided
from .data import Activations, Data, mnist
from .experiments import Extent, Job, Point
from .settings import PRESETS, Preset, Site, llm_site, mnist_site
from .work import Outcome, Progress, Workers, default_workers

FIGURES = ("loss", "mse", "fvu", "l0", "l0_first", "dead")
QUICK_SEEDS, SEEDS = (0, 1), (0, 1, 2)


@dataclass(frozen=True)
class Recipe:
    """Settings of both recipes.

    Attributes:
        presets: some of `PRESETS`. seeds: of weights, rows and their order. quick: less of everything. workers: trainings at a time; None: as many
            as there are cores, and one where a training uses them all.
        extent: how much is done; None: the recipe's, quick or whole.
    """

    presets: tuple[Preset, ...] = PRESETS
    seeds: tuple[int, ...] = SEEDS
    quick: bool = False
    workers: int | None = None
    extent: Extent | None = None

    def __post_init__(self) -> None:
        unknown = [preset for preset in self.presets if preset not in PRESETS]
        if unknown or not self.presets:
            raise SplinterpError(
                f"There is no preset '{', '.join(unknown)}'; name one of {', '.join(PRESETS)}, or leave --preset out."
            )
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise SplinterpError(
                f"--seeds must be different numbers from 0 on, not {', '.join(map(str, self.seeds)) or 'none'}."
            )
        if self.workers is not None and self.workers < 1:
            raise SplinterpError(f"--workers {self.workers} would do nothing; give at least 1.")


def run_mnist(config: Recipe, folder: Path | None, out: Path, command: str, progress: Progress | None = None) -> dict[str, Any]:
    """E2, on the IDX files in `folder` (None: MNIST from huggingface.co); see `run`."""
    data = mnist(folder)
    extent = config.extent or (experiments.QUICK_MNIST if config.quick else experiments.MNIST)
    return run(config, mnist_site(data.d_in), data, extent, out, command, progress)


def run_llm(
    config: Recipe, store: Store, site: str, latents: int | None, out: Path, command: str, progress: Progress | None = None
) -> dict[str, Any]:
    """E3, on a store's site; see `run`."""
    data = Activations.of(store, site, latents)
    extent = config.extent or (experiments.QUICK_LLM if config.quick else experiments.LLM)
    return run(config, llm_site(data.d_in, data.sizes), data, extent, out, command, progress)


def run(
    config: Recipe, site: Site, data: Data, extent: Extent, out: Path, command: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Fill the folder `out` with `cells.jsonl` (what lies there is not trained again), RECIPE.json and RECIPE.html; returns what the JSON holds.

    `results`: by preset, activation and experiment the points: `x`, `label`, `rows`, `epochs`, and of every arm each of FIGURES by seed, `mean` and `sd`
    of the loss, `lr` and `grid` where it was tuned, and `curves` (test error by epoch, of each seed). `claims`: see claims.py.

    Args:
        command: as the user gave it, to be told.

    Raises:
        SplinterpError: `out` is another process's or damaged.
    """
    from .page import page

    points = list(experiments.points(site, data.rows, extent, config.presets))
    seeds: dict[Job, tuple[int, ...]] = {}
    for point in points:
        for job, _ in point.arms.values():
            seeds[job] = max(seeds.get(job, ()), _seeds(config, extent, point), key=len)
    weights = site.d_in * site.d_sae
    workers = config.workers or (1 if weights >= SMALL_MATRIX else default_workers())
    with closing(Cells(out)) as cells, suitable_threads(weights, torch.device("cpu")):
        outcomes = Workers(site.recipe, data, cells, workers, progress).run(seeds)
    results: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {}
    pictures: dict[str, dict[str, Any]] = {}
    for point in points:
        told = results.setdefault(point.preset, {}).setdefault(point.activation, {}).setdefault(point.experiment, [])
        told.append(_summed_up(point, outcomes, len(_seeds(config, extent, point))))
        if point.experiment == "sizes" and point.rows == data.rows:
            pictures.setdefault(point.preset, {})[point.activation] = _pictures(point, outcomes)
    result = {
        "recipe": site.recipe, "command": command, "quick": config.quick, "left_out": extent.told, "presets": list(config.presets),
        "seeds": list(config.seeds), "data": {**data.told, "rows": data.rows, "test_rows": len(data.split(config.seeds[0], 1).test)},
        "settings": asdict(site), "effort": asdict(extent.effort), "claims": decided(site.recipe, results), "results": results,
        "pictures": pictures if data.image else {},
    }  # fmt: skip
    result = json_safe(json.loads(json.dumps(result)))
    write_bytes(out / f"{site.recipe}.json", (json.dumps(result, indent=1) + "\n").encode())
    write_bytes(out / f"{site.recipe}.html", page(result).encode())
    return result


def _seeds(config: Recipe, extent: Extent, point: Point) -> tuple[int, ...]:
    """Those of a point."""
    return config.seeds if extent.every_seed or point.experiment in experiments.EVERY_SEED else config.seeds[:1]


def _summed_up(point: Point, outcomes: Mapping[Job, Mapping[str, Outcome]], seeds: int) -> dict[str, Any]:
    """A point's figures, of its first `seeds`: another experiment may have the same training with more."""
    arms = {}
    for name, (job, stage) in point.arms.items():
        outcome = outcomes[job][stage]
        cells = outcome.cells[:seeds]
        values = {figure: [None if cell is None else cell[figure] for cell in cells] for figure in FIGURES}
        told: dict[str, Any] = {**values, **_mean_sd(values["loss"])}
        curves = [cell["curve"] for cell in cells if cell and "curve" in cell]
        if curves:
            told["curves"] = curves
        if outcome.lr is not None:
            told |= {"lr": outcome.lr, "grid": {f"{lr:.4g}": fvu for lr, fvu in outcome.grid.items()}}
        arms[name] = told
    return {"x": point.x, "label": point.label, "rows": point.rows, "epochs": point.epochs, "arms": arms}


def _mean_sd(values: Sequence[float | None]) -> dict[str, float | None]:
    """Of the seeds; None where one of them is no number."""
    there = [value for value in values if value is not None]
    if len(there) < len(values):
        return {"mean": None, "sd": None}
    return {"mean": statistics.fmean(there), "sd": statistics.stdev(there) if len(there) > 1 else 0.0}


def _pictures(point: Point, outcomes: Mapping[Job, Mapping[str, Outcome]]) -> dict[str, Any]:
    """The first seed's, of each arm that has some."""
    found = {}
    for name, (job, stage) in point.arms.items():
        cell = outcomes[job][stage].cells[0]
        if cell and "pictures" in cell:
            found[name] = cell["pictures"]
    return found
