"""An SAE's latents as SAEDashboard writes them for Neuronpedia: `batch-N.json`, which Neuronpedia's converter takes.

Of SAEDashboard's tables those of correlations stay empty (they would take every pair of latents), and so does its attribution to heads. Codes,
densities and histograms are over all rows of the store. Tokens' effects are in standard deviations over the vocabulary (`Unembedding.effects`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import store as stores
from ..devices import choose_device, suitable_threads
from ..errors import SplinterpError
from ..quantities import json_safe
from ..sae import SAE, load_sae
from ..sites import site_of
from ..store import Store
from ..store.places import Location
from .choose import BANDS
from .latents import Group, contexts_of, fifth_name
from .runs import recorded_store
from .statistics import LatentStatistics, accumulate
from .tokens import unembedding_of
from .windows import load_tokenizer

if TYPE_CHECKING:
    from ..harvest.unembedding import Unembedding

Progress = Callable[[str, int, int], None]
TOGETHER = 128  # latents in a file
WIDTH = 20  # tokens on either side
TOKENS, ALIGNED = 10, 3
BINS = 50  # of the histograms of effects on the vocabulary


def write_neuronpedia(
    run: str | Path,
    store: Location | Store | None,
    out: Path,
    *,
    site: str | None = None,
    model: str | None = None,
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Write every living latent's dashboard, 128 to a file, and the dead ones' numbers; returns what was left out, in sentences.

    The store is read once for the figures, and its columns once more for each file; memory is that of one file's contexts.

    Args:
        run: a run directory, or any SAE in SAELens's format. store, site, model: as for `write_report`.
        progress: hears (stage, done, of how many).

    Raises:
        SplinterpError: `out` exists; or something is missing, or does not go together. StoreError: the store holds no text.
    """
    from ..train.rows import check_width

    if out.exists() and not (force and (not any(out.iterdir()) or (out / _SETTINGS).is_file())):
        raise SplinterpError(f"{out} exists already; give another --out, or --force to replace what was exported there.")
    run = Path(run)
    sae = load_sae(run, choose_device(device))
    opened = store if isinstance(store, Store) else stores.open(store or recorded_store(run))
    chosen = opened.site(site or site_of(sae, opened)).name
    check_width(sae.config.d_in, str(run), opened, chosen)
    tokenizer = load_tokenizer(opened)
    unembedding, meaning = unembedding_of(model, sae, opened, chosen)
    heard = progress or (lambda stage, done, total: None)
    beside = out.with_name(f".{out.name}.writing")
    rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        with suitable_threads(sae.W_enc.numel(), sae.W_enc.device):
            statistics = accumulate(sae, opened, chosen, progress=lambda done: heard("latents", done, opened.rows))
            fired = statistics.strongest.fired
            living, whole = np.flatnonzero(fired).tolist(), _whole(run.resolve().name, opened, chosen)
            prompt: dict[str, Any] = {
                "n_prompts_total": _sequences(opened),
                "n_tokens_in_prompt": int(opened.attributes.get("context") or 0),
            }
            prompt["dataset"] = _name(opened.attributes.get("dataset"))
            for number, first in enumerate(range(0, len(living), TOGETHER)):
                heard("contexts", first, len(living))
                some = living[first : first + TOGETHER]
                contexts = contexts_of(some, statistics, sae, opened, chosen, tokenizer, _quiet, width=WIDTH)
                tokens = effects_of(unembedding, sae, some) if unembedding else [{}] * len(some)
                aligned = _aligned(sae, some)
                features = [
                    {**_latent(i, statistics, contexts[i]), **table, **effects, **prompt}
                    for i, table, effects in zip(some, aligned, tokens, strict=True)
                ]
                _write(beside / f"batch-{number}.json", {**whole, "features": features})
            heard("contexts", len(living), len(living))
        dead = np.flatnonzero(fired == 0).tolist()
        skipped = {**whole, "layer": str(whole["layer"]), "log_sparsity": None, "skipped_indexes": dead}
        _write(beside / "skipped_indexes.json", skipped)
        settings = {
            "made_by": "splinterp", "run": str(run), "store": str(opened.path), "store_fingerprint": opened.fingerprint, "site": chosen,
            "rows": opened.rows, "latents_in_a_file": TOGETHER, "tokens_on_either_side": WIDTH, "logits": meaning,
        }  # fmt: skip
        _write(beside / _SETTINGS, settings)
        if out.exists():
            rmtree(out)
        beside.rename(out)
    finally:
        rmtree(beside, ignore_errors=True)
    return [] if unembedding else [meaning]


_SETTINGS = "run_settings.json"


def effects_of(unembedding: Unembedding, sae: SAE, latents: Sequence[int]) -> list[dict[str, Any]]:
    """For each latent the tokens that it raises and lowers most, and how its effects lie over the whole vocabulary."""
    effects = unembedding.effects(sae.W_dec[torch.tensor(latents, device=sae.W_dec.device)].cpu())
    found = []
    for one in effects:
        told: dict[str, Any] = {}
        for name, largest in (("pos", True), ("neg", False)):
            end = one.topk(min(TOKENS, len(one)), largest=largest)
            told[f"{name}_str"], told[f"{name}_values"] = unembedding.texts(end.indices.tolist()), _short(end.values.tolist())
        heights, edges = np.histogram(one.numpy(), BINS)
        told["logits_hist_data_bar_heights"] = heights.tolist()
        told["logits_hist_data_bar_values"] = _short((edges[:-1] + np.diff(edges) / 2).tolist())
        found.append(told)
    return found


def _latent(latent: int, statistics: LatentStatistics, groups: Sequence[Group]) -> dict[str, Any]:
    """A latent's figures and contexts, and its tables as they are where nothing is known."""
    strongest, bins = statistics.strongest, statistics.histograms[latent]
    width = float(statistics.ends[latent]) / len(bins)
    used = slice(0, int(np.flatnonzero(bins)[-1]) + 1)
    activations = []
    ranges = {"strongest": (-1.0, float(np.abs(strongest.values[latent, 0])), -1.0), **_ranges(latent, statistics)}
    for group in groups:
        low, high, share = ranges[group.name]
        for one in group.contexts:
            activations.append({
                "bin_min": low, "bin_max": high, "bin_contains": share, "tokens": [text or "" for text in one.pieces],
                "values": _short(one.values), "qualifying_token_index": one.centre,
            })  # fmt: skip
    nothing = {f"correlated_{what}_{figure}": [] for what in ("neurons", "features") for figure in ("indices", "l1", "pearson")}
    words = {f"{sign}_{kind}": [] for sign in ("neg", "pos") for kind in ("str", "values")}
    return {
        "feature_index": latent, **nothing, **words, "frac_nonzero": float(strongest.fired[latent]) / max(1, strongest.n_rows),
        "freq_hist_data_bar_values": _short(((np.arange(len(bins)) + 0.5) * width).tolist()[used]),
        "freq_hist_data_bar_heights": bins[used].tolist(), "logits_hist_data_bar_heights": [], "logits_hist_data_bar_values": [],
        "decoder_weights_dist": [], "activations": activations, "vector": [],
    }  # fmt: skip


def _ranges(latent: int, statistics: LatentStatistics) -> dict[str, tuple[float, float, float]]:
    """(smallest strength, largest, share of all rows) of each fifth of a latent's firings, by the sample of them."""
    rows, values = statistics.sample_rows[latent], np.abs(statistics.sample_values[latent])
    density = float(statistics.strongest.fired[latent]) / max(1, statistics.strongest.n_rows)
    known, parts = int((rows >= 0).sum()), np.array_split(np.flatnonzero(rows >= 0), BANDS)
    return {
        fifth_name(i): (float(values[part].min()), float(values[part].max()), density * len(part) / known)
        for i, part in enumerate(parts)
        if len(part)
    }


def _aligned(sae: SAE, latents: Sequence[int]) -> list[dict[str, Any]]:
    """The dimensions in which each latent's decoder row is largest, its entries there, and their shares of its absolute sum."""
    rows = sae.plain().W_dec[torch.tensor(latents, device=sae.W_dec.device)].float().cpu()
    top = rows.topk(min(ALIGNED, rows.shape[1]), dim=1)
    shares = top.values.abs() / rows.abs().sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return [
        {"neuron_alignment_indices": i, "neuron_alignment_values": _short(v), "neuron_alignment_l1": _short(s)}
        for i, v, s in zip(top.indices.tolist(), top.values.tolist(), shares.tolist(), strict=True)
    ]


def _whole(name: str, store: Store, site: str) -> dict[str, Any]:
    """What a batch says of the SAE."""
    layer = re.search(r"blocks\.(\d+)\.", site)
    model = _name(store.attributes.get("model")).rstrip("/").rsplit("/", 1)[-1]
    return {"model_id": model, "layer": int(layer[1]) if layer else 0, "sae_set": name, "sae_id_suffix": None}


def _sequences(store: Store) -> int:
    """How many sequences the store's rows are of."""
    spans = [(a, min(a + store.chunk_rows, store.rows)) for a in range(0, store.rows, store.chunk_rows)]
    return 1 + max(int(store.column("sequence", a, b).max()) for a, b in spans)


def _name(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _short(values: Sequence[float]) -> list[float]:
    """To five figures behind the point, as SAEDashboard rounds them or better."""
    return [round(float(value), 5) for value in values]


def _quiet(stage: str, done: int, total: int) -> None:
    """Hears nothing: progress is told by latents."""


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(json_safe(content), ensure_ascii=False, allow_nan=False), encoding="utf-8")
