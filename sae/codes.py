"""Codes, the activations of the latents: k of them a row as (indices, values), as many as there are (`RaggedCodes`), or all of them as a
dense matrix.

TopK codes are kept sparse from the top-k on: decoding, the Gram matrix and the cross moment then cost k/d_sae of the dense products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import kernels_for
from .ragged import RaggedCodes, entry_rows


class SparseCodes(NamedTuple):
    """Codes of N rows with k entries each: latent `indices` [N, k] (int64, distinct within a row) and their `values` [N, k].

    Entries may be zero: a top-k pre-activation below zero is still an entry, with the value that its ReLU gives.
    """

    indices: Tensor
    values: Tensor


Codes = SparseCodes | RaggedCodes | Tensor


class ByLatent(NamedTuple):
    """The entries of sparse codes, M in all (N·k of codes [N, k]), sorted by latent: one pattern a batch for every product Zᵀ·(…).

    Attributes:
        order: int64 [M], places in the flattened codes, by latent and within a latent by row. rows: int64 [M], their rows.
        starts: int64 [d_sae + 1], where each latent begins in them, and their number.
    """

    order: Tensor
    rows: Tensor
    starts: Tensor


def by_latent(codes: SparseCodes | RaggedCodes, d_sae: int) -> ByLatent:
    """The pattern of sparse codes, by latent."""
    latents, order = codes.indices.reshape(-1).int().sort(stable=True)  # half as wide as int64: sorted in half the time
    # By a search, not a count: on a GPU `bincount` waits for the device.
    starts = torch.searchsorted(latents, torch.arange(d_sae + 1, dtype=torch.int32, device=latents.device))
    if isinstance(codes, RaggedCodes):
        return ByLatent(order, entry_rows(codes)[order], starts)
    return ByLatent(order, order.div(codes.indices.shape[1], rounding_mode="floor"), starts)


def sum_rows(pattern: ByLatent, weights: Tensor, source: Tensor, latents: slice = slice(None)) -> Tensor:
    """Zᵀ·source, [d_sae, n], for a Z [N, d_sae] that has `weights` ([N, k] or [M]) at the codes' entries; or a slice (without step) of its latents.

    An embedding bag is the fastest such product on a CPU: four times faster than SciPy's or MKL's with a CSR matrix, and shared out over
    the threads by latent, so that it sums in the same order however many there are. On a GPU see `kernels_for`.
    """
    d_sae = len(pattern.starts) - 1
    a, b, _ = latents.indices(d_sae)
    if kernels := kernels_for(source):
        return kernels.sum_rows(pattern._replace(starts=pattern.starts[a : b + 1]), source, weights)[0]
    first, last = (0, len(pattern.rows)) if (a, b) == (0, d_sae) else pattern.starts[[a, b]].tolist()
    return F.embedding_bag(
        pattern.rows[first:last],
        source,
        pattern.starts[a : b + 1] - first,
        per_sample_weights=weights.reshape(-1)[pattern.order[first:last]],
        mode="sum",
        include_last_offset=True,
    )


def decode(codes: Codes, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """x̂ = z·W_dec + b_dec: codes of N rows, W_dec [d_sae, d_in], b_dec [d_in] -> [N, d_in]. Differentiable in all of them."""
    if isinstance(codes, SparseCodes):
        if kernels := kernels_for(W_dec):
            return kernels.decode(codes.indices, codes.values, W_dec, b_dec)
        return F.embedding_bag(codes.indices, W_dec, per_sample_weights=codes.values, mode="sum") + b_dec
    if isinstance(codes, RaggedCodes):
        indices, values, starts = codes
        return F.embedding_bag(indices, W_dec, starts, per_sample_weights=values, mode="sum", include_last_offset=True) + b_dec
    return torch.addmm(b_dec, codes, W_dec)


def to_dense(codes: Codes, d_sae: int) -> Tensor:
    """Codes as a dense matrix [N, d_sae]."""
    if isinstance(codes, SparseCodes):
        return codes.values.new_zeros(len(codes.values), d_sae).scatter(1, codes.indices, codes.values)
    if isinstance(codes, RaggedCodes):
        zeros = codes.values.new_zeros(rows_of(codes), d_sae)
        return zeros.index_put((entry_rows(codes), codes.indices), codes.values)
    return codes


def to_double(codes: Codes) -> Codes:
    """The same codes in float64."""
    return codes.double() if isinstance(codes, Tensor) else codes._replace(values=codes.values.double())


def rows_of(codes: Codes) -> int:
    """N, of how many rows these are the codes."""
    if isinstance(codes, RaggedCodes):
        return len(codes.starts) - 1
    return len(codes.values if isinstance(codes, SparseCodes) else codes)


def fired_counts(codes: Codes, d_sae: int) -> Tensor:
    """For every latent, on how many of the rows its code is not zero: int64 [d_sae]."""
    if isinstance(codes, Tensor):
        return (codes != 0).sum(0)
    counts = torch.zeros(d_sae, dtype=torch.int64, device=codes.values.device)
    return counts.scatter_add_(0, codes.indices.reshape(-1), (codes.values != 0).long().reshape(-1))


def l0(codes: Codes) -> float:
    """L0: the mean number of codes a row that are not zero."""
    values = codes if isinstance(codes, Tensor) else codes.values
    return float((values != 0).sum()) / max(1, rows_of(codes))
