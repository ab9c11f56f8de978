"""Who takes part in `bench quality`: a name, and what sets it apart from the defaults of `train`. A new contender is one line of CONTENDERS."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..devices import choose_device
from ..errors import SplinterpError
from ..evaluate import evaluate_rows
from ..sae import SAE
from ..store import Store
from ..store.batches import Split
from ..train import TrainConfig, raw_rows, refit
from ..train.loop import Progress
from .temporary import train_once

SAELENS, REFIT = "saelens", "+refit"
CONTENDERS: dict[str, Mapping[str, Any]] = {
    "pam": {"method": "pam"},
    "pam-no-pursuit": {"method": "pam", "pursuit": 0.0},
    "pam-solve-only": {"method": "pam", "decoder_steps": False},  # Algorithm 3.1 as published
    "adam": {"method": "adam", "last_solve": False},
}
DEFAULT = ("pam", "adam", "adam+refit", "saelens", "saelens+refit")
# The better of these is what the others are measured by.
BASELINES = ("adam", SAELENS)
# To be raised where what a contender does has changed under the same settings: cells of before then no longer count.
VERSIONS: Mapping[str, int] = {"pam": 1, "pam-solve-only": 1, "adam": 1, SAELENS: 2}
# The settings that decide what becomes of a contender, where those are not all: others may come and change, and its cells still count.
_OF_SAELENS = ("d_sae", "k", "rows", "batch_size", "lr", "warmup", "decay", "dead_after", "seed", "order_seed")
DECISIVE: Mapping[str, tuple[str, ...]] = {
    "adam": (
        *_OF_SAELENS, "method", "activation", "k_start", "k_anneal", "encoder_steps", "mu_enc", "nu_enc", "last_solve", "revive",
        "aux_coefficient", "precision",
    ),
    SAELENS: _OF_SAELENS,
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A contender as it was trained, or (`refit`) with the decoder that is optimal for its codes."""

    contender: str
    refit: bool

    @property
    def name(self) -> str:
        return self.contender + REFIT * self.refit

    @property
    def stage(self) -> str:
        """Where a cell has its figures."""
        return "refit" if self.refit else "trained"

    @classmethod
    def of(cls, name: str) -> Method:
        """Raises SplinterpError where nobody is called so."""
        contender = name.removesuffix(REFIT)
        if contender != SAELENS and contender not in CONTENDERS:
            known = ", ".join((*CONTENDERS, SAELENS))
            raise SplinterpError(f"--method {name} is unknown; choose among {known}, each also with {REFIT} behind it.")
        return cls(contender, contender != name)


@dataclass(frozen=True)
class Place:
    """What contenders are trained on, and where their figures come from.

    Attributes:
        part: the store trained on. whole: the store whose held-out and validation rows are taken, of which `part` has none.
    """

    part: Store
    whole: Store
    site: str
    device: str


@dataclass
class Outcome:
    """What came of one training: the SAE of raw rows; None where it diverged. `curve`: rows, seconds and held-out FVU on the way, of the
    store trained on."""

    sae: SAE | None
    seconds: float = 0.0
    told: dict[str, Any] = field(default_factory=dict)
    curve: list[tuple[int, float, float]] = field(default_factory=list)


def settings_of(contender: str, common: TrainConfig) -> TrainConfig:
    """The contender's settings; SAELens's are those that it takes over from Adam's."""
    return replace(common, **CONTENDERS["adam" if contender == SAELENS else contender])


def identity(contender: str, config: TrainConfig) -> dict[str, Any]:
    """What decides, besides the rows, what becomes of a contender with these settings."""
    settings = asdict(config)
    told = {name: settings[name] for name in DECISIVE.get(contender, tuple(settings))}
    theirs = {"sae-lens": version("sae-lens")} if contender == SAELENS else {}
    return {"contender": contender, "version": VERSIONS.get(contender, 1), **theirs, "settings": told}


def taking_part(names: tuple[str, ...]) -> tuple[list[Method], str | None]:
    """The methods called so, and a sentence where SAELens, not being installed, is left out."""
    methods = list(dict.fromkeys(Method.of(name) for name in names))
    if find_spec("sae_lens") is None and any(m.contender == SAELENS for m in methods):
        methods = [m for m in methods if m.contender != SAELENS]
        return methods, 'SAELens is not installed, and left out; pip install "splinterp[saelens]" brings it.'
    return methods, None


def contend(contender: str, config: TrainConfig, place: Place, also_refit: bool, progress: Progress | None) -> dict[str, Any]:
    """Train a contender, refit it if asked, and take its figures: what a cell is told.

    By stage ("trained", "refit"): the figures of `evaluate_rows` on `held_out` and on `validation` rows, and the `seconds` spent until then.
    A stage is None where training diverged, and `refit` where it was not asked for.
    """
    if contender == SAELENS:
        from .saelens_training import fit

        outcome = fit(config, place, progress)
    else:
        outcome = _ours(config, place, progress)
    trained = refitted = None
    if outcome.sae is not None:
        trained = {**_figures(outcome.sae, place), "seconds": outcome.seconds}
        if also_refit:
            with tempfile.TemporaryDirectory() as folder:
                result = refit(
                    outcome.sae, contender, place.part, place.site, Path(folder) / "refit", memory=config.memory,
                    device=choose_device(place.device),
                )  # fmt: skip
            refitted = {
                **_figures(result.sae, place),
                "seconds": outcome.seconds + result.summary["seconds"],
                "kept": result.summary["kept"],
                "ridge": result.summary["last_solve"]["ridge"],
            }
    return {"trained": trained, "refit": refitted, "curve": outcome.curve, **outcome.told}


def _ours(config: TrainConfig, place: Place, progress: Progress | None) -> Outcome:
    run = train_once(place.part, place.site, config, place.device, progress)
    if run is None:
        return Outcome(None)
    curve = [(line["rows"], line["seconds"], line["held_out_fvu"]) for line in run.metrics if "held_out_fvu" in line]
    told = {"dead_in_training": run.summary["dead_in_training"]}
    if run.summary["last_solve"]:
        told["ridge"] = run.summary["last_solve"]["ridge"]
    return Outcome(run.sae, sum(run.summary["seconds"].values()), told, curve)


def _figures(sae: SAE, place: Place) -> dict[str, Any]:
    """By split of the whole store."""
    device, mean = choose_device(place.device), place.whole.site(place.site).mean
    splits: tuple[Split, ...] = ("held_out", "validation")
    return {split: evaluate_rows(sae, raw_rows(place.whole, place.site, device, split), mean) for split in splits}
