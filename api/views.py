"""What is seen and done with finished SAEs: runs side by side, pictures, a model with SAEs in place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..devices import choose_device
from ..errors import SplinterpError
from ..evaluate import Splice
from ..report import LATENTS, Progress, write_report
from ..report.comparison import Comparison
from ..report.gap import GapReport
from ..report.picture import Picture
from ..train import RefitResult, TrainResult
from .opened import AnySAE, AnyStore, open_sae


def splice(
    model: Any, saes: AnySAE | Sequence[AnySAE] | Mapping[str, AnySAE], *, where: Tensor | None = None, device: str = "auto"
) -> Splice:
    """A TransformerLens model with SAEs in place at their sites: what it computes behind them, it computes from their reconstructions.

    Use it as a context manager, within whose block the model itself is changed, or call it, as the model:

        with splinterp.splice(bridge, "run") as spliced:
            logits = bridge(ids)
        loss = splinterp.splice(bridge, {"blocks.2.hook_resid_post": sae})(ids, return_type="loss")

    Args:
        model: a TransformerBridge, or any model with TransformerLens's hooks.
        saes: each at the site that its metadata name, or by hook names.
        where: True where rows are replaced, [B, T]; None: everywhere. It may be set anew for each batch.

    Raises:
        SplinterpError: an SAE does not say where it belongs, two belong to one site, or the model lacks the hook.
    """
    if isinstance(saes, Mapping):
        named = {hook: open_sae(one, choose_device(device))[0] for hook, one in saes.items()}
        return Splice(model, named, where)
    several = saes if isinstance(saes, Sequence) and not isinstance(saes, str) else [saes]
    return Splice.at_their_sites(model, [open_sae(one, choose_device(device))[0] for one in several], where)


def compare(*runs: str | os.PathLike[str] | TrainResult | RefitResult) -> Comparison:
    """Runs side by side: figures, curves, and the settings in which they differ: `splinterp compare`.

    Raises:
        SplinterpError: a directory is none of these, or there is nothing to compare.
    """
    return Comparison.of([one.directory if isinstance(one, TrainResult | RefitResult) else Path(one) for one in runs])


def plot(
    *what: str | os.PathLike[str] | TrainResult | RefitResult | Comparison | GapReport, against: str = "tokens"
) -> Picture:
    """A picture that notebooks show and `save` writes as SVG: held-out FVU of runs against "tokens", "seconds" or "l0", or what `gap` found.

    Raises:
        SplinterpError: as `compare`; or there is no such axis.
    """
    if len(what) == 1 and isinstance(what[0], GapReport):
        return what[0].picture
    if len(what) == 1 and isinstance(what[0], Comparison):
        return what[0].picture(against)
    if any(isinstance(one, GapReport | Comparison) for one in what):
        raise SplinterpError("A gap or a comparison is drawn by itself; give one of it, or runs.")
    return compare(*(one for one in what if not isinstance(one, GapReport | Comparison))).picture(against)


def report(
    run: str | os.PathLike[str] | TrainResult | RefitResult,
    store: AnyStore | None = None,
    out: str | os.PathLike[str] = "report.html",
    *,
    site: str | None = None,
    model: str | None = None,
    baselines: Sequence[str | os.PathLike[str]] = (),
    latents: int = LATENTS,
    ids: Sequence[int] = (),
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """One HTML page on a run, its latents and the contexts they fire in; returns its figures: `splinterp report`.

    Args:
        store: None: the one that the run was trained on. site: None: the SAE's own.
        model: whose unembedding gives tokens; None: the store's, where it is `tiny` or a local directory.
        baselines: runs to compare figures and curves with. latents: how many to show, of which `ids` come first.
        force: replace what is at `out`. progress: called with (stage, rows done, rows in all).

    Raises:
        SplinterpError: something is missing, or does not go together, or `out` exists.
    """
    directory = run.directory if isinstance(run, TrainResult | RefitResult) else Path(run)
    return write_report(
        directory, store, Path(out), site=site, model=model, baselines=[Path(one) for one in baselines], latents=latents, ids=ids, device=device,
        force=force, progress=progress,
    )  # fmt: skip
