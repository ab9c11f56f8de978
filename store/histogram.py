"""How large a site's rows are, as counts that add over chunks: the median of any number of rows, without a second look at one.

A histogram is a dict from a bin's name to its count. Bin "b" holds the norms from 2**(b/4) up to 2**((b+1)/4), a quarter octave;
norms of 0, which have no logarithm, are in "zero". Names are strings because JSON has no others; empty bins are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

BINS_AN_OCTAVE = 4
ZERO = "zero"
# Rows with a norm above so many times the median are told of as outliers.
OUTLYING = 10.0


def norm_histogram(norms: np.ndarray) -> dict[str, int]:
    """Counts of Euclidean norms [n] float64, all of them finite."""
    nonzero = norms[norms > 0]
    bins = np.floor(BINS_AN_OCTAVE * np.log2(nonzero)).astype(np.int64)
    lowest = int(bins.min(initial=0))
    found = {str(lowest + i): n for i, n in enumerate(np.bincount(bins - lowest).tolist()) if n}
    return found | ({ZERO: len(norms) - len(nonzero)} if len(nonzero) < len(norms) else {})


def summed(histograms: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The histogram of all their norms together."""
    total: Counter[str] = Counter()
    for one in histograms:
        total.update(one)
    return dict(total)


def median_and_outliers(histogram: Mapping[str, int], smallest: float, largest: float) -> tuple[float, int]:
    """The median norm, and how many norms are above 10 times that; `smallest` and `largest` are the extreme norms.

    The median is good to its bin (a factor of 2**0.25, 19 %): interpolated there by rank, on the logarithmic scale. A norm in
    the bin where the limit falls is not counted, so that all that are counted are above it.
    """
    # Within its bin, the estimate may lie beyond every norm there is.
    median = min(max(_median(histogram), smallest), largest)
    return median, sum(histogram[str(b)] for b in _bins(histogram) if _edge(b) >= OUTLYING * median)


def _median(histogram: Mapping[str, int]) -> float:
    half, zeros = sum(histogram.values()) / 2, histogram.get(ZERO, 0)
    if zeros >= half:
        return 0.0
    bins = _bins(histogram)
    counts = np.array([histogram[str(b)] for b in bins])
    seen = zeros + np.cumsum(counts)
    at = int(np.searchsorted(seen, half))
    return _edge(bins[at] + 1 - float(seen[at] - half) / float(counts[at]))


def _bins(histogram: Mapping[str, int]) -> list[int]:
    return sorted(int(name) for name in histogram if name != ZERO)


def _edge(b: float) -> float:
    return 2 ** (b / BINS_AN_OCTAVE)
