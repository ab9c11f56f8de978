"""A site's statistics from its manifest lines: they add across chunks, so no row is read again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .histogram import median_and_outliers, summed
from .manifest import Line, decode_sums


def site_statistics(lines: Sequence[Line], site: str, mean: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """Mean row [d] float64, and mean, root mean square, smallest and largest Euclidean norm of a site's rows.

    Also `median_norm`, good to 19 %, and `outliers`, the rows above 10 times that (see histogram.py), unless a line is of a
    time before lines had histograms. `mean`: the mean row, where the lines do not have sums.
    """
    rows = sum(line.rows for line in lines)
    found = np.sum([decode_sums(line.sums[site]) for line in lines], axis=0) / rows if mean is None else mean
    sums, squares, low, high = zip(*(line.norms[site] for line in lines), strict=True)
    norms: dict[str, Any] = {
        "mean_norm": math.fsum(sums) / rows,
        "rms_norm": math.sqrt(math.fsum(squares) / rows),
        "min_norm": min(low),
        "max_norm": max(high),
    }
    if all(line.histograms for line in lines):
        median, outliers = median_and_outliers(summed(line.histograms[site] for line in lines), min(low), max(high))
        norms |= {"median_norm": median, "outliers": outliers}
    return found, norms
