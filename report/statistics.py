"""One pass over a store: what each latent does there, in memory that depends on the number of latents, and not on that of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..evaluate.metrics import Metrics
from ..sae import SAE, Codes, RaggedCodes, SparseCodes, entry_rows
from ..store import Store
from ..store.batches import split_blocks
from ..store.layout import BLOCK
from .keep import Histograms, Kept, random_keys

MOST_ROWS = 8192
MOST_ELEMENTS = 2**22  # of a batch's pre-activations
STRONGEST, SAMPLED = 16, 40


@dataclass(frozen=True)
class Strongest:
    """Every latent's strongest rows in a store, and how often it fires. A code's strength is its magnitude.

    Attributes:
        values, rows: [d_sae, m], strongest first; where a latent fired less than m times the rest have value 0 and row -1.
        fired: on how many rows each latent fired, [d_sae]. total: the sum of its strengths on them, [d_sae]. n_rows: rows seen.
    """

    values: np.ndarray
    rows: np.ndarray
    fired: np.ndarray
    total: np.ndarray
    n_rows: int


@dataclass(frozen=True)
class LatentStatistics:
    """What `accumulate` finds.

    Attributes:
        strongest: the strongest rows, and how often latents fire.
        sample_values, sample_rows: [d_sae, r], of each latent r of its firings drawn at random, strongest first; filled up as `strongest`.
        histograms: [d_sae, 64], how many of a latent's strengths lie in each of 64 equal bins from 0 to `ends` [d_sae].
        l0: int64 [d_sae + 1], on how many rows so many latents fired.
        held_out: the figures of `evaluate.Metrics` on the store's held-out rows; None where it has none.
    """

    strongest: Strongest
    sample_values: np.ndarray
    sample_rows: np.ndarray
    histograms: np.ndarray
    ends: np.ndarray
    l0: np.ndarray
    held_out: dict[str, float | int] | None


@torch.inference_mode()
def accumulate(
    sae: SAE,
    store: Store,
    site: str,
    *,
    top: int = STRONGEST,
    sampled: int = SAMPLED,
    progress: Callable[[int], None] | None = None,
) -> LatentStatistics:
    """One pass over all of the site's rows, in the store's order, by the SAE's own encoder.

    Memory: 20·(top + sampled) + 8·64 bytes a latent, and some 50 MiB for a batch, however large the store.

    Raises:
        StoreError: a chunk cannot be read.
    """
    d = sae.config.d_sae
    strongest, sample, histograms = Kept(d, top), Kept(d, sampled), Histograms(d)
    fired, total, l0 = np.zeros(d, np.int64), np.zeros(d), np.zeros(d + 1, np.int64)
    metrics = Metrics(sae.config.d_in, d, store.site(site).mean.to(sae.b_dec.device))
    held_out, start = split_blocks(store.rows, "held_out"), 0
    for rows in store.batches(site, rows_at_once(d), split="all", shuffle=False):
        x = rows.to(sae.W_enc.device, torch.float32, copy=True)
        latent, value, row = entries(sae.encode(x))
        strength = np.abs(value)
        fired += np.bincount(latent, minlength=d)
        total += np.bincount(latent, weights=strength, minlength=d)
        l0 += np.bincount(np.bincount(row, minlength=len(x)), minlength=d + 1)
        histograms.add(latent, strength)
        row += start
        strongest.add(latent, -strength.astype(np.float64), value, row)
        sample.add(latent, random_keys(row, latent), value, row)
        apart = np.isin(np.arange(start, start + len(x)) // BLOCK, held_out)
        if apart.any():
            metrics.add(sae, x[torch.from_numpy(apart).to(x.device)])
        start += len(x)
        if progress:
            progress(start)
    strongest.settle()
    sample.settle()
    order = np.argsort(-np.abs(sample.values), axis=1, kind="stable")
    values, rows_of = (np.take_along_axis(one, order, 1) for one in (sample.values, sample.rows))
    firing = Strongest(strongest.values, strongest.rows, fired, total, start)
    figures = metrics.figures() if metrics.rows else None
    return LatentStatistics(firing, values, rows_of, histograms.counts, histograms.ends, l0, figures)


def rows_at_once(d_sae: int) -> int:
    """Rows whose pre-activations are 16 MiB at most (of SAEs of up to 4M latents), and no more than 8192."""
    return max(1, min(MOST_ROWS, MOST_ELEMENTS // d_sae))


def entries(codes: Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All codes that are not zero, as (latent int64, value float32, row int64), each [n]."""
    if isinstance(codes, SparseCodes):
        row, column = codes.values.nonzero(as_tuple=True)
        latent, value = codes.indices[row, column], codes.values[row, column]
    elif isinstance(codes, RaggedCodes):
        there = codes.values != 0
        row, latent, value = entry_rows(codes)[there], codes.indices[there], codes.values[there]
    else:
        row, latent = codes.nonzero(as_tuple=True)
        value = codes[row, latent]
    return _numpy(latent), _numpy(value), _numpy(row)


def _numpy(x: Tensor) -> np.ndarray:
    return x.cpu().numpy()
