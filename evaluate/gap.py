"""The amortisation gap of an SAE: what other encoders reach with its dictionary, at several budgets of latents a row, and at what cost.

All codes are decoded by the SAE's own decoder; so whatever an encoder leaves less than the native one, the native one wastes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..infer.encoders import MLP, NAMES, NATIVE, Encoder, EncoderOptions, budget_of, make_encoder
from ..infer.flops import flops_per_row
from ..infer.methods import METHODS
from ..infer.mlp import mlps_of
from ..infer.penalty import ito_penalty, penalties_for
from ..infer.problem import Dictionary, Effort, Target
from ..sae import SAE
from .metrics import evaluate_rows

# ista, cd and lca come to the same codes as fista, and ito takes longest: they are asked for.
DEFAULT = (NATIVE, "ls", "mp", "gradient-pursuit", "omp", "fista")
# Those that go over all latents again and again, and the part of the rows that they are given.
SLOW, SLOW_PART = ("ista", "fista", "cd", "lca", "ito"), 8
BATCH = 1024
_PENALTY_ROWS = 256  # that penalties are chosen on
_WARM_UP_ROWS = 32

Told = Callable[[int, int, str], None]  # encoders' points done, points in all, what is being done


@dataclass(frozen=True)
class Point:
    """One encoder at one budget.

    Attributes:
        encoder: its name, with the width of an MLP. settings: what it was told. fvu, l0: on the first `n_rows` rows.
        of_native: its squared error over the native encoder's on the same rows. flops: a row, on average. steps: of a row, on average; None where
            it does not iterate. unfinished: the share of rows of which a limit on steps ended before their codes were the best ones.
        rows_per_second: on this machine.
    """

    encoder: str
    settings: dict[str, Any]
    fvu: float
    l0: float
    of_native: float
    flops: int
    steps: float | None
    unfinished: float
    rows_per_second: float
    n_rows: int


@dataclass(frozen=True)
class Gap:
    """Points, the native encoder's first; the budgets; the number of latents at which OMP is as good as the native encoder, if it is at one up to the
    native budget; sentences about what was chosen."""

    points: list[Point]
    budgets: list[int]
    k: int
    omp_needs: int | None
    notes: list[str]

    def at(self, encoder: str, k: int) -> Point | None:
        """The point of an encoder at a budget."""
        return next((p for p in self.points if p.encoder == encoder and p.settings.get("k", k) == k), None)


@torch.no_grad()
def measure_gap(
    sae: SAE,
    directory: Path | None,
    x: Tensor,
    mean: Tensor,
    sample: Callable[[], Tensor],
    *,
    encoders: Sequence[str] = (),
    budgets: Sequence[int] = (),
    told: Told | None = None,
) -> Gap:
    """Every encoder at every budget on rows x [N, d_in].

    Args:
        directory: where the SAE lies, and MLP encoders beside it, which take part; None: in memory. mean: [d_in], near the rows'.
        sample: gives training rows, on which an SAE's L0 and penalties are measured.
        encoders: names, beside the native one; DEFAULT and the MLPs if left out. budgets: latents a row; k/4, k/2, k and 2k of the SAE if left out.

    Raises:
        SplinterpError: no such encoder, a budget beyond the number of latents, or no rows.
    """
    if not len(x):
        raise SplinterpError("There are no rows to measure the gap on.")
    k, note = budget_of(sae, sample)
    budgets = sorted({*budgets}) or sorted({max(1, k // 4), max(1, k // 2), k, min(2 * k, sae.config.d_sae)})
    if budgets[0] < 1 or budgets[-1] > sae.config.d_sae:
        raise SplinterpError(f"Budgets of latents a row go from 1 to the SAE's {sae.config.d_sae:,}; got {budgets}.")
    names = _names(encoders, directory)
    notes = [note] if note else []
    options = [(name, option) for name in names for option in _options(sae, name, budgets, sample, notes)]
    points, native = [], _Errors(sae, x, mean)
    for done, (name, option) in enumerate(options):
        if told:
            told(done, len(options), name)
        encoder = make_encoder(sae, option, directory, sample)
        points.append(_point(sae, encoder, native, x[: _rows(name, len(x))], k))
        if points[-1].unfinished:
            notes.append(
                f"{name}, λ={option.l1:.3g}: {points[-1].unfinished:.0%} of the rows had not come to the end when the steps did."
            )
    fit = _needed(sae, x, mean, points, k, native) if "omp" in names else None
    few = [p for p in points if p.n_rows < len(x)]
    if few:
        notes.append(f"{', '.join(sorted({p.encoder for p in few}))}: on the first {few[0].n_rows:,} rows.")
    return Gap(points, list(budgets), k, fit, notes)


class _Errors:
    """The native encoder's FVU on the first n rows."""

    def __init__(self, sae: SAE, x: Tensor, mean: Tensor) -> None:
        self.sae, self.x, self.mean, self._known = sae, x, mean, dict[int, float]()

    def on(self, n: int) -> float:
        if n not in self._known:
            self._known[n] = float(evaluate_rows(self.sae, self.x[:n].split(BATCH), self.mean)["fvu"])
        return self._known[n]


def _names(encoders: Sequence[str], directory: Path | None) -> list[str]:
    for name in encoders:
        if name.partition(":")[0] not in NAMES:
            raise SplinterpError(f"There is no encoder '{name}'; there are {', '.join(NAMES)} (or mlp:PATH).")
    mlps = [f"{MLP}:{path}" for path in mlps_of(directory)]
    asked = [one for name in encoders for one in (mlps if name == MLP and mlps else [name])]
    return list(dict.fromkeys([NATIVE, *(asked or [*DEFAULT, *mlps])]))


def _options(
    sae: SAE, name: str, budgets: Sequence[int], sample: Callable[[], Tensor], notes: list[str]
) -> list[EncoderOptions]:
    """One encoder's settings, from the smallest budget to the largest; a note where it cannot have one."""
    method = METHODS.get(name)
    if method is None or not method.stops:
        return [EncoderOptions(name=name)]
    if "k" in method.stops:
        return [EncoderOptions(name=name, k=k) for k in budgets]
    dictionary, signed = Dictionary.of(sae), sae.config.architecture == "abstopk"
    penalties = penalties_for(dictionary, sample()[:_PENALTY_ROWS], budgets, signed and "signed" in method.takes)
    if beyond := [str(budget) for budget, l1 in zip(budgets, penalties, strict=True) if l1 is None]:
        notes.append(f"{name}: no λ comes to an L0 of {', '.join(beyond)}.")
    found = [l1 for l1 in penalties if l1 is not None]
    return [EncoderOptions(name=name, l1=ito_penalty(l1, dictionary) if name == "ito" else l1) for l1 in found]


def _rows(name: str, rows: int) -> int:
    return max(1, rows // SLOW_PART) if name in SLOW else rows


def _point(sae: SAE, encoder: Encoder, native: _Errors, x: Tensor, k: int) -> Point:
    encoder(x[:_WARM_UP_ROWS])  # what a dictionary costs once does not count
    encoder.spent.effort = Effort()
    seconds = 0.0

    def timed(batch: Tensor) -> Any:
        nonlocal seconds
        begun = time.perf_counter()
        codes = encoder(batch)
        if batch.is_cuda:
            torch.cuda.synchronize(batch.device)
        seconds += time.perf_counter() - begun
        return codes

    figures = evaluate_rows(sae, x.split(BATCH), native.mean, timed)
    fvu, l0 = float(figures["fvu"]), float(figures["l0"])
    spent, iterates = encoder.spent.effort, encoder.name in METHODS and METHODS[encoder.name].steps > 0
    steps = spent.steps / len(x) if iterates else None
    hidden = encoder.settings.get("hidden")
    name = f"{MLP} {hidden}" if hidden else encoder.name
    settings = {**encoder.settings, **({"k": k} if encoder.name == "ls" else {})}
    return Point(
        name, settings, fvu, l0, _ratio(fvu, native.on(len(x))), encoder_flops(sae, encoder, l0, steps), steps, spent.unfinished / len(x),
        len(x) / max(seconds, 1e-9), len(x),
    )  # fmt: skip


def _ratio(fvu: float, native: float) -> float:
    return fvu / native if native else 1.0 if fvu == native else float("inf")


def encoder_flops(sae: SAE, encoder: Encoder, l0: float, steps: float | None) -> int:
    """Multiplications and additions of one row with so many latents, after so many steps where the encoder iterates."""
    d_in, d_sae = sae.config.d_in, sae.config.d_sae
    native = 2 * d_in * d_sae
    if encoder.name == NATIVE:
        return native
    told = encoder.settings
    if encoder.name == MLP:
        return 2 * told["hidden"] * (d_in + d_sae)
    target = Target(**{name: told[name] for name in ("k", "l1", "residual") if name in told})
    own = flops_per_row(
        encoder.name, d_sae, d_in, target, support=max(1, round(l0)), steps=None if steps is None else max(1, round(steps))
    )
    return own + (native if told.get("start") == "encoder" else 0)


def _needed(sae: SAE, x: Tensor, mean: Tensor, points: Sequence[Point], k: int, native: _Errors) -> int | None:
    """The least number of latents up to k at which OMP's FVU is no higher than the native encoder's; None: more than k."""

    def enough(some: int) -> bool:
        known = next((p.fvu for p in points if p.encoder == "omp" and p.settings["k"] == some), None)
        if known is None:
            encoder = make_encoder(sae, EncoderOptions(name="omp", k=some), None, lambda: x)
            known = float(evaluate_rows(sae, x.split(BATCH), mean, encoder)["fvu"])
        return known <= native.on(len(x))

    if not enough(k):
        return None
    low, high = 0, k  # not enough, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
