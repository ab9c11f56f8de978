"""Least squares on a given support: the best values that the latents chosen by somebody else, such as an SAE's encoder, can have."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sae import Codes, RaggedCodes, SparseCodes, entry_rows, rows_of, to_ragged
from .correlate import OnSupport, distinct
from .omp import pursue
from .problem import Dictionary


def least_squares(y: Tensor, dictionary: Dictionary, support: SparseCodes, signed: bool) -> SparseCodes:
    """Sizes at the codes' entries [N, k] that are not zero: the least-squares ones, or the best that are not negative.

    By orthogonal matching pursuit among these atoms, run to its end; of atoms that depend on each other it takes as many as do not.
    """
    there = (support.values != 0) & (dictionary.norms > 0)[support.indices]
    among = pursue(OnSupport(y, dictionary, support.indices, there), support.indices.shape[1], signed)
    return support._replace(values=torch.zeros_like(among.values).scatter_(1, among.indices, among.values))


def widest(codes: Codes) -> int:
    """The largest number of entries a row, at least 1."""
    if isinstance(codes, SparseCodes):
        return codes.indices.shape[1]
    counts = codes.starts.diff() if isinstance(codes, RaggedCodes) else (codes != 0).sum(1)
    return max(1, int(counts.max())) if len(counts) else 1


def as_sparse(codes: Codes, d_sae: int, k: int) -> SparseCodes:
    """Codes with at most k entries a row as codes [N, k], filled up with zeros at latents that the row does not have."""
    if isinstance(codes, SparseCodes):
        return codes
    ragged = codes if isinstance(codes, RaggedCodes) else to_ragged(codes)
    rows, n = entry_rows(ragged), rows_of(ragged)
    place = torch.arange(len(rows), device=rows.device) - ragged.starts[rows]
    indices = torch.zeros(n, k, dtype=torch.int64, device=rows.device).index_put_((rows, place), ragged.indices)
    values = ragged.values.new_zeros(n, k).index_put_((rows, place), ragged.values)
    used = torch.arange(k, device=rows.device) < ragged.starts.diff()[:, None]
    return SparseCodes(distinct(indices, used, d_sae), values)
