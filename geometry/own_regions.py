"""What no autoencoder with an SAE's own regions and ranks could do better: Theorem 2.6's bound, on the rows that it is taken from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluate import evaluate_rows
from ..sae import SAE
from .local_pca import RegionMoments, moments_bytes
from .power_diagram import active_generators
from .regions import fingerprints

Batches = Callable[[], Iterator[Tensor]]


@torch.no_grad()
def bound_on_own_regions(sae: SAE, batches: Batches, mean: Tensor, most: int, memory: int) -> dict[str, Any] | None:
    """The FVU of an SAE on rows, and that of PCA on each of its regions with a rank of as many as are active there; None where the rows
    visit more than `most` regions, or their covariances take more than `memory` bytes (with a region for nearly every row the bound is 0).

    On a region the SAE is affine with a slope of rank at most |S|, so that the bound is not above it. `regions`, `rows_a_region`
    (the mean), `fvu`, `bound`.

    Args:
        batches: gives the rows [N, d_in] once more at each call. mean: [d_in], theirs or near it.
    """
    known = np.empty(0, "i8,i8")
    for x in batches():
        known = np.union1d(known, _keys(sae, x))
        if len(known) > most or moments_bytes(len(known), sae.config.d_in) > memory:
            return None
    moments = RegionMoments(mean.expand(len(known), -1), memory)
    ranks = torch.zeros(len(known), dtype=torch.int64)
    for x in batches():
        of = torch.from_numpy(np.searchsorted(known, _keys(sae, x)))
        ranks[of] = active_generators(sae, sae.encode(x)).sum(1)
        moments.add(x, of)
    figures = evaluate_rows(sae, batches(), mean)
    rows = int(figures["n_rows"])
    squared_error = float(figures["mse"]) * rows * sae.config.d_in
    least = moments.solve().training_error(ranks)
    bound = float(figures["fvu"]) * least / squared_error if squared_error else 0.0
    return {"regions": len(known), "rows_a_region": rows / len(known), "fvu": figures["fvu"], "bound": bound}


def _keys(sae: SAE, x: Tensor) -> np.ndarray:
    """The region of each row [N, d_in], as a number that sorts."""
    return fingerprints(active_generators(sae, sae.encode(x))).contiguous().numpy().view("i8,i8")[:, 0]
