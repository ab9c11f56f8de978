"""How large a row may be before it is an outlier, such as those of attention sinks: measured on the first batch of the text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..errors import SplinterpError
from ..store.pool import row_norms


def norm_bounds(rows: Mapping[str, torch.Tensor], factor: float) -> dict[str, float]:
    """For every site, `factor` times the median Euclidean norm of its finite rows [n, d].

    Raises:
        SplinterpError: a site where that says nothing, because it is 0 or no row is finite.
    """
    bounds = {}
    for site, x in rows.items():
        norms = row_norms(x).cpu().numpy()
        finite = norms[np.isfinite(norms)]
        median = float(np.median(finite)) if len(finite) else 0.0
        if not median:
            raise SplinterpError(
                f"The text's first batch has no rows at {site} by whose norms outliers could be told: their median is 0, or none "
                "is finite; leave --drop-outliers out."
            )
        bounds[site] = factor * median
    return bounds
