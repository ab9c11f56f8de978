"""`splinterp reproduce amortisation EXPERIMENT`: train what is missing, sum up, and lay it beside the published figures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ...bench.cells import Cells
from ...devices import suitable_threads
from ...errors import SplinterpError
from ...store.files import write_bytes
from . import flops, theorem
from .arms import EXPERIMENTS, TEST_STEPS, UNTRAINED, Arm
from .cell import PAPERS_K, trained
from .inference import WARM
from .tables import draw

AGREES = 0.03  # a difference of means up to this
TOLD_ONLY = ("name", "published", "runs", "why")  # of an arm; what comes of it is the same whatever they are
NAMES = (*EXPERIMENTS, theorem.NAME)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Amortisation:
    """Settings of the recipe.

    Attributes:
        experiment: one of `NAMES`. seeds: of weights. data: the authors' data set, the same for every seed where theirs was, or for each seed a
            fresh one of its own. weights: to begin with, drawn from `seeds`; or the authors' own, `seeds` then being the numbers of their runs, from
            0. quick: a fifth of the steps where the paper takes 100,000 (l1 and topk: a tenth; scaling: half, and K = 3 alone).
        flops: counted, or by the authors' formulas. steps: at most so many, of training and on test rows. None: as many as there are.
    """

    experiment: str
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    data: Literal["paper", "fresh"] = "paper"
    weights: Literal["ours", "paper"] = "ours"
    quick: bool = False
    flops: Literal["counted", "paper"] = "counted"
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.experiment not in NAMES:
            raise SplinterpError(f"There is no experiment '{self.experiment}'; name one of {', '.join(NAMES)}.")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise SplinterpError(
                f"--seeds must be different numbers from 0 on, not {', '.join(map(str, self.seeds)) or 'none'}."
            )
        for name, value, choices in (
            ("data", self.data, ("paper", "fresh")),
            ("weights", self.weights, ("ours", "paper")),
            ("flops", self.flops, ("counted", "paper")),
        ):
            if value not in choices:
                raise SplinterpError(f"--{name} is {' or '.join(choices)}, not {value}.")
        if self.steps is not None and self.steps < 1:
            raise SplinterpError(f"--steps {self.steps} would train nothing; give at least 1.")
        idle = []
        if self.quick and (self.experiment == theorem.NAME or self.arms() == replace(self, quick=False).arms()):
            idle.append("--quick")
        if self.experiment == theorem.NAME:
            ours = {"data": "paper", "weights": "ours", "flops": "counted"}
            idle += [f"--{name}" for name, value in ours.items() if getattr(self, name) != value]
        if idle:
            raise SplinterpError(f"Of no effect on {self.experiment}: {', '.join(idle)}; leave that out.")

    def arms(self) -> list[Arm]:
        """Of the experiment, with the steps that they will be trained for."""
        arms = EXPERIMENTS[self.experiment](self.quick)
        return arms if self.steps is None else [replace(arm, steps=min(arm.steps, self.steps)) for arm in arms]

    def data_seed(self, arm: Arm, seed: int) -> int:
        """Of the data that this arm and seed are trained on."""
        return seed if self.data == "fresh" else arm.data_seed + (seed if arm.own_data else 0)

    def weights_seed(self, arm: Arm, seed: int) -> int:
        """Of the weights that this arm and seed begin with."""
        return arm.data_seed + seed if self.weights == "paper" else seed


def run(config: Amortisation, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Fill the folder `out` with `cells.jsonl` (what lies there is not trained again), EXPERIMENT.json and plots; returns what the JSON
    holds.

    `arms`: of each its settings, `figures` (of each `values` by seed, `mean`, `sd`, and where there is a `published` one `difference` and
    `verdict`), `curve`, `seconds`, `training_flops` and `inference_flops`.

    Args:
        progress: told cells done, all cells, and the arm in hand.

    Raises:
        SplinterpError: `out` is another process's or damaged.
    """
    if config.experiment == theorem.NAME:
        result = theorem.run(config.seeds, config.steps, out, progress)
    else:
        result = _trained(config, out, progress)
    name = config.experiment
    write_bytes(out / f"{name}.json", (json.dumps(result, indent=2) + "\n").encode())
    for suffix, drawn in draw(result).items():
        write_bytes(out / f"{name}{suffix}.svg", (drawn + "\n").encode())
    return result


def _trained(config: Amortisation, out: Path, progress: Progress | None) -> dict[str, Any]:
    arms, test_steps = config.arms(), min(TEST_STEPS, config.steps or TEST_STEPS)
    total, told = len(arms) * len(config.seeds), []
    with closing(Cells(out)) as cells, suitable_threads(max(_weights(arm) for arm in arms), torch.device("cpu")):
        for arm in arms:
            if progress:
                progress(len(told) * len(config.seeds), total, arm.name)
            identities = {
                seed: {
                    "recipe": "amortisation", **{key: value for key, value in asdict(arm).items() if key not in TOLD_ONLY},
                    "test_steps": test_steps, "data": config.data_seed(arm, seed), "seed": config.weights_seed(arm, seed),
                    **({"weights": config.weights} if config.weights != "ours" else {}),
                }
                for seed in config.seeds
            }  # fmt: skip
            missing = [seed for seed in config.seeds if cells.find(identities[seed]) is None]
            if missing:
                data, weights = ([identities[seed][name] for seed in missing] for name in ("data", "seed"))
                made = trained(arm, weights, data, test_steps, config.weights == "paper")
                for seed, figures in zip(missing, made, strict=True):
                    cells.add(identities[seed], figures)
            told.append(_summed_up(config, arm, test_steps, [cells.find(identities[seed]) or {} for seed in config.seeds]))
    if progress:
        progress(total, total, "done")
    return {**asdict(config), "arms": told}


def _weights(arm: Arm) -> int:
    return max(arm.size.m, arm.size.n) * max(arm.hidden, arm.size.n)


def _summed_up(config: Amortisation, arm: Arm, test_steps: int, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values: dict[str, list[float]] = {
        name: [cell[name] for cell in cells]
        for name in ("codes", "dictionary", *arm.also, "mse", "l0")
        if cells[0].get(name) is not None
    }
    curve = []
    for points in zip(*(cell["curve"] for cell in cells), strict=True):
        step, mccs = points[0][0], [value for _, value in points]
        curve.append(
            {
                "step": step,
                "flops": training_flops(arm, step, config.flops)
                + (0 if arm.kind in UNTRAINED else inference_flops(arm, config.flops, test_steps)),
                **_mean_sd(mccs),
                "values": mccs,
            }
        )
    if "peak" in arm.published:
        values["peak"] = max(curve, key=lambda point: point["mean"])["values"]
    figures = {name: {"values": of, **_mean_sd(of), **_compared(arm, name, of)} for name, of in values.items()}
    return {
        **asdict(arm),
        "figures": figures,
        "curve": curve,
        "seconds": sum(cell["seconds"] for cell in cells),
        "training_flops": 0 if arm.kind in UNTRAINED else training_flops(arm, arm.steps, config.flops),
        "inference_flops": {
            name: training_flops(arm, arm.steps, config.flops)
            if arm.kind in UNTRAINED
            else inference_flops(arm, config.flops, test_steps, name)
            for name in ("codes", *arm.also)
            if name != "top-k"
        },
    }


def _mean_sd(values: Sequence[float]) -> dict[str, float]:
    """The standard deviation is that of the population, as published."""
    return {"mean": statistics.fmean(values), "sd": statistics.pstdev(values)}


def _compared(arm: Arm, name: str, values: Sequence[float]) -> dict[str, Any]:
    """Beside the published mean; its runs are taken to scatter like ours, for the standard error of the difference."""
    if name not in arm.published:
        return {}
    difference = statistics.fmean(values) - arm.published[name]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    error = spread * (1 / len(values) + 1 / arm.runs) ** 0.5
    if abs(difference) <= AGREES:
        verdict = "agrees"
    elif len(values) == 1:
        verdict = "one seed: how far they scatter is not known"
    elif name in arm.why:
        verdict = arm.why[name]
    else:
        verdict = (
            f"{'within' if abs(difference) <= 2 * error else 'differs:'} {abs(difference) / error:.1f} standard errors"
            if error
            else "differs"
        )
    return {
        "published": arm.published[name],
        "difference": difference,
        "standard_error": error if len(values) > 1 else None,
        "verdict": verdict,
    }


def training_flops(arm: Arm, steps: int, how: str) -> int:
    """Of one seed's training; of inference without training, whose steps are inference, those. LCA and OMP are counted in any case."""
    shape = _shape(arm)
    if arm.kind == "lca":
        return flops.lca(shape, steps)
    if arm.kind == "omp":
        return flops.omp(shape, steps)
    if arm.kind in ("ito", "sparse coding"):
        if how == "counted":
            return flops.sparse_coding(shape, steps)
        return (flops.papers_optimisation if arm.kind == "ito" else flops.papers_sparse_coding)(shape, steps)
    return (flops.encoder_training if how == "counted" else flops.papers_encoder_training)(shape, steps)


def inference_flops(arm: Arm, how: str, test_steps: int, name: str = "codes") -> int:
    """Of one seed's test rows, by the arm's own codes or by other inference."""
    shape = replace(_shape(arm), learn=False)
    optimise = flops.sparse_coding if how == "counted" else flops.papers_optimisation
    encode = flops.encoder_inference(shape)
    if name == "ito" or (name == "codes" and arm.kind == "sparse coding"):
        return optimise(shape, test_steps)
    if name == "omp":
        return flops.omp(shape, PAPERS_K)
    if name == "warm-ito":
        return encode + optimise(shape, max(1, test_steps // WARM))
    return encode


def _shape(arm: Arm) -> flops.Shape:
    return flops.Shape(arm.size.m, arm.size.n, arm.hidden, arm.size.rows, arm.goal == "neither")
