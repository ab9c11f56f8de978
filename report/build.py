"""Everything that a run's report shows: figures of the run, statistics of its latents over the store, and some latents in their contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import store as stores
from ..devices import choose_device, suitable_threads
from ..errors import SplinterpError, StoreError
from ..quantities import json_safe
from ..sae import SAE, load_sae
from ..sites import site_of, trained_elsewhere
from ..store import Store
from ..store.places import Location
from .directions import Directions, directions
from .latents import LatentSeen, chosen_latents, contexts_of, look_at
from .runs import METRICS, SUMMARY, RunSeen, different_stores, number, read_lines, read_object, read_run, recorded_store
from .statistics import LatentStatistics, accumulate
from .tokens import token_effects, unembedding_of
from .windows import load_tokenizer

Progress = Callable[[str, int, int], None]
ALIKE = 0.9  # cosine from which two latents are called nearly alike
LATENTS = 100


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        name, sae, store, site: what it is of. run: the run's own figures, on the store's held-out rows where it has some. before: the same
            before its last solve, where it had one. baselines: other runs. curves: (name, lines of metrics.jsonl), of runs that have some.
        notes: sentences that belong beside the figures.
    """

    name: str
    sae: SAE
    store: Store
    site: str
    run: RunSeen
    before: RunSeen | None
    baselines: list[RunSeen]
    curves: list[tuple[str, list[dict[str, Any]]]]
    statistics: LatentStatistics
    directions: Directions
    latents: list[LatentSeen]
    notes: list[str]

    @property
    def density(self) -> np.ndarray:
        """The share of rows that each latent fires on, float64 [d_sae]."""
        return self.statistics.strongest.fired / max(1, self.statistics.strongest.n_rows)

    @property
    def dead(self) -> np.ndarray:
        """The latents that fire on no row of the store."""
        return np.flatnonzero(self.statistics.strongest.fired == 0)

    @property
    def l0(self) -> float:
        """The mean number of latents a row, over all rows."""
        return float(self.statistics.strongest.fired.sum()) / max(1, self.statistics.strongest.n_rows)


def make_report(
    run: Path,
    store: Location | Store | None,
    *,
    site: str | None,
    model: str | None,
    baselines: Sequence[str | Path],
    latents: int,
    ids: Sequence[int],
    device: str,
    progress: Progress | None,
    statistics: LatentStatistics | None,
) -> Report:
    """Everything that the page shows. For arguments and errors see `write_report`."""
    from ..train.rows import check_width

    sae = load_sae(run, choose_device(device))
    opened = store if isinstance(store, Store) else stores.open(store or recorded_store(run))
    chosen = opened.site(site or site_of(sae, opened)).name
    check_width(sae.config.d_in, str(run), opened, chosen)
    runs, curves, notes = _runs([run, *map(Path, baselines)])
    if elsewhere := trained_elsewhere(sae, opened, str(run)):
        notes.append(f"{elsewhere} Curves and figures from training are of that one.")
    unembedding, meaning = unembedding_of(model, sae, opened, chosen)
    notes.append(meaning)
    tokenizer = None
    try:
        tokenizer = load_tokenizer(opened)
    except StoreError as error:
        notes.append(f"Contexts are not shown: {error}")
    heard = progress or (lambda stage, done, total: None)
    with suitable_threads(sae.W_enc.numel(), sae.W_enc.device):
        statistics = statistics or accumulate(sae, opened, chosen, progress=lambda done: heard("latents", done, opened.rows))
        around = directions(sae, progress=lambda done: heard("decoder", done, sae.config.d_sae))
        shown, interests = chosen_latents(statistics, opened, latents, ids, tokenizer is not None)
        contexts = contexts_of(shown, statistics, sae, opened, chosen, tokenizer, heard) if tokenizer else {}
        effects = dict(zip(shown, token_effects(unembedding, sae, shown), strict=True)) if unembedding else {}
    runs[0] = own = _on_held_out(runs[0], statistics, opened, chosen)
    if warning := different_stores(runs):
        notes.append(warning)
    earlier = None if elsewhere else _before_last_solve(run, own)
    seen = look_at(shown, statistics, around, interests, contexts, effects)
    return Report(own.name, sae, opened, chosen, own, earlier, runs[1:], curves, statistics, around, seen, notes)


def as_json(report: Report) -> dict[str, Any]:
    """What `report --json` prints: the page's figures."""
    s, config = report.statistics, report.sae.config
    alive = s.strongest.fired > 0
    return json_safe({
        "run": report.name, "store": str(report.store.path), "store_fingerprint": report.store.fingerprint, "site": report.site,
        "sae": {name: getattr(config, name) for name in ("architecture", "d_in", "d_sae", "k")},
        "n_rows": s.strongest.n_rows, "held_out": s.held_out, "l0": report.l0, "dead": len(report.dead), "dead_fraction": len(report.dead) / config.d_sae,
        "density": spread(report.density[alive]), "decoder_norm": spread(report.directions.norms),
        "nearest_cosine": spread(report.directions.cosines[:, :1]), "nearly_alike": alike(report),
        "encoder_decoder_cosine": spread(report.directions.encoder),
        "baselines": [{"run": run.name, "fvu": run.fvu, "l0": run.l0, "dead_fraction": run.dead} for run in report.baselines],
        "latents": [
            {
                "latent": one.latent, "density": one.density, "max": one.largest, "mean": one.mean, "interest": one.interest, "norm": one.norm,
                "nearest": [list(pair) for pair in one.nearest], "raises": one.raised and [list(pair) for pair in one.raised],
                "lowers": one.lowered and [list(pair) for pair in one.lowered],
            }
            for one in report.latents
        ],
        "notes": report.notes,
    })  # fmt: skip


def spread(values: np.ndarray) -> dict[str, float] | None:
    """Mean and quartiles of some values; None of none."""
    if not values.size:
        return None
    names = ("min", "quarter", "median", "three_quarters", "max")
    quartiles = np.quantile(values.astype(np.float64), [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {"mean": float(values.mean(dtype=np.float64)), **dict(zip(names, quartiles, strict=True))}


def alike(report: Report) -> float:
    """The share of latents whose nearest decoder row is nearly theirs."""
    return float((report.directions.cosines[:, :1] > ALIKE).mean()) if report.directions.cosines.size else 0.0


def _runs(paths: Sequence[Path]) -> tuple[list[RunSeen], list[tuple[str, list[dict[str, Any]]]], list[str]]:
    """The runs in these directories, their curves, and what they lack (that the first is not finished, its page says elsewhere)."""
    names = [path.resolve().name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    runs, curves, notes = [], [], []
    for i, (name, path) in enumerate(zip(names, paths, strict=True)):
        if i and not path.is_dir():
            raise SplinterpError(f"There is no run at {path}; give the directory of a run as --baseline.")
        run, lack = read_run(name, path)
        runs.append(run)
        if lack and (i or run.finished):
            notes.append(f"{name} {lack}.")
        if lines := read_lines(path / METRICS):
            curves.append((name, lines))
    return runs, curves, notes


def _on_held_out(run: RunSeen, statistics: LatentStatistics, store: Store, site: str) -> RunSeen:
    """The run with its figures on the store's held-out rows, where it has some."""
    found = statistics.held_out
    if found is None:
        return run
    fvu = float(found["fvu"]) if np.isfinite(found["fvu"]) else None
    told = {"store": str(store.path), "fingerprint": store.fingerprint, "site": site}
    return replace(run, fvu=fvu, l0=float(found["l0"]), dead=float(found["dead_fraction"]), **told)


def _before_last_solve(path: Path, run: RunSeen) -> RunSeen | None:
    """The run as it was before its last solve, where it had one."""
    before = read_object(path / SUMMARY).get("before_last_solve")
    if not isinstance(before, dict):
        return None
    fvu, l0, dead = (number(before.get(name)) for name in ("fvu", "l0", "dead_fraction"))
    return replace(run, name=f"{run.name}, before its last solve", fvu=fvu, l0=l0, dead=dead, seconds=None)
