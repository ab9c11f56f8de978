"""A site's statistics from its manifest lines: they add across chunks, so no row is read again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .manifest import Line, decode_sums


def site_statistics(lines: Sequence[Line], site: str, mean: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, float]]:
    """Mean row [d] float64, and mean, root mean square, smallest and largest Euclidean norm of a site's rows.

    `mean`: the mean row, where the lines do not have sums.
    """
    rows = sum(line.rows for line in lines)
    found = np.sum([decode_sums(line.sums[site]) for line in lines], axis=0) / rows if mean is None else mean
    sums, squares, low, high = zip(*(line.norms[site] for line in lines), strict=True)
    norms = {
        "mean_norm": math.fsum(sums) / rows,
        "rms_norm": math.sqrt(math.fsum(squares) / rows),
        "min_norm": min(low),
        "max_norm": max(high),
    }
    return found, norms
