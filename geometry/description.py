"""Description length: what a reconstruction takes to write down, in bits a row, and apart from it the parameters that everybody has.

    bits = index + coefficients · c

with c bits for each coefficient (their rounding to c bits is not in the FVU), and for the index a fixed-length code:

    k-means, local PCA   log2 R                                 the region; its rank is known with it
    topk, abstopk        log2 C(d_sae, K)                       the K latents; K coefficients, those that a ReLU makes zero too
    standard, jumprelu   log2(d_sae + 1) + log2 C(d_sae, n)     the number n of active latents, and which: the rows' mean
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..sae import SAE, to_dense
from ..sae.model import WITH_K

BITS = 8  # of a coefficient


def log2_choose(n: int, k: Tensor) -> Tensor:
    """log2 C(n, k), float64."""
    k = k.double()
    n_ = torch.tensor(float(n), dtype=torch.float64)
    return (torch.lgamma(n_ + 1) - torch.lgamma(k + 1) - torch.lgamma(n_ - k + 1)) / math.log(2)


@torch.no_grad()
def sae_index_bits(sae: SAE, batches: Iterable[Tensor]) -> float:
    """Bits a row for an SAE's active set; `batches` of rows [N, d_in] are asked only where sets differ in size."""
    d_sae = sae.config.d_sae
    if sae.config.architecture in WITH_K:
        return float(log2_choose(d_sae, torch.tensor(sae.config.k)))
    total, rows = 0.0, 0
    for x in batches:
        codes = sae.encode(x)
        sizes = (to_dense(codes, d_sae) != 0).sum(1)
        total += float(log2_choose(d_sae, sizes).sum()) + len(x) * math.log2(d_sae + 1)
        rows += len(x)
    return total / max(1, rows)


def sae_coefficients(sae: SAE, l0: float) -> float:
    """Coefficients a row that are written down: K, or the mean number of active latents."""
    return float(sae.config.k or 0) if sae.config.architecture in WITH_K else l0


def sae_parameters(sae: SAE) -> int:
    """Numbers in an SAE's weights."""
    tensors = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold)
    return sum(t.numel() for t in tensors if t is not None)
