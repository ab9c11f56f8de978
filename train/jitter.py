"""Jitter: training rows with a share of noise of their own covariance, so that few rows in many epochs are not learnt by heart.

    x ← √(1 − s)·x + √s·ε,   ε = Σ_j g_j y_j/√m,   g_j normal,

where the y_j are m rows of the same batch: ε is as large in every direction as the rows are (they have mean 0), and so is what comes of x.
It is each step's input and its target. Noise of one size in all directions is a little better than none; this one took a quarter off the
held-out FVU of 600 rows (bench/RESULTS.md). The decoder that it leads to is one of noisy rows: the last solve, over rows as they are,
mends that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .group import Group

SAMPLE = 64  # rows that noise is made of; 256 were no better, 8 worse
# Noise begins to pay only after some epochs, and less of it is best the more rows there are. Fitted at 0.4, 2, 4, 10 and 37 rows a latent.
_EPOCHS_WITHOUT, _FACTOR, _POWER = 8, 2, 1.2


def auto_jitter(rows: int, different_rows: int, d_sae: int) -> float:
    """The share s of a run over so many rows in all: (1 − 8/epochs)/(1 + 2·(different rows/latents)^1.2), and none up to 8 epochs."""
    epochs = rows / different_rows
    return max(0.0, 1 - _EPOCHS_WITHOUT / epochs) / (1 + _FACTOR * (different_rows / d_sae) ** _POWER)


def jittered(x: Tensor, share: float, rows: int, seed: int, group: Group) -> Tensor:
    """A batch of `rows` normalised rows, of which x [N, d_in] is this rank's part, with its share s of noise, in memory of its own.

    Args:
        seed: of this batch's noise. It is made of the first rank's rows; with SAMPLE of them any number of ranks has the same, and without
            any there is none.
    """
    m = min(SAMPLE, rows // group.world)
    if not m:
        return x
    sample = x[:m].contiguous() if group.first else x.new_empty(m, x.shape[1])
    group.broadcast_(sample)
    normal = torch.randn(rows, m, generator=torch.Generator(x.device).manual_seed(seed), device=x.device, dtype=x.dtype)
    own = normal[rows * group.rank // group.world :][: len(x)]
    return torch.addmm(x, own, sample, beta=(1 - share) ** 0.5, alpha=(share / m) ** 0.5)
