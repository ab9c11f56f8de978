"""Whether what a store's files say of its rows can be so, before anything is computed or allocated from it.

A checksum tells that a file is as it was written; whoever forges a store writes checksums that fit.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from ..errors import StoreError
from ..quantities import is_count, is_figure
from .histogram import ZERO
from .layout import BLOCK, LARGEST_POOL, METADATA, Array
from .manifest import Line
from .places import AnyPath
from .stored import stored_sound

_BIN = re.compile(r"-?\d{1,4}")
LARGEST_BIN = 4000  # of a quarter octave each: float64 ends at 4096
NORMS = ("mean_norm", "rms_norm", "min_norm", "max_norm")


def check_line(line: Line, sites: Mapping[str, int], arrays: Sequence[Array], chunk_rows: int, where: AnyPath) -> None:
    """See that a manifest's line is one of a store with these sites and arrays.

    Raises:
        StoreError: a figure of it is missing, of another kind, or cannot be.
    """
    compressed = any(array.compressed for array in arrays)
    whole = (
        all(
            is_count(n)
            for n in (line.chunk, line.generation, line.generation_rows, line.offered, line.dropped, line.dropped_outliers)
        )
        and is_count(line.rows)
        and 1 <= line.rows <= chunk_rows
        and _by(line.crc32c, [array.path for array in arrays])
        and all(is_count(crc) for crc in line.crc32c.values())
        and _by(line.blocks, sites)
        and all(_is_base64(text, 4 * -(-line.rows // BLOCK)) for text in line.blocks.values())
        and (
            line.sums == {} or (_by(line.sums, sites) and all(_is_base64(line.sums[name], 8 * d) for name, d in sites.items()))
        )
        and _by(line.norms, sites)
        and all(isinstance(four, list) and len(four) == 4 and all(map(is_figure, four)) for four in line.norms.values())
        and (
            line.histograms == {}
            or (_by(line.histograms, sites) and all(_counts(h, line.rows) for h in line.histograms.values()))
        )
        and stored_sound(line, [array.path for array in arrays] if compressed else None)
    )
    if not whole:
        raise StoreError(f"{where} is damaged: what it says of chunk {line.chunk} does not fit {METADATA}.")


def check_pool(told: Mapping[str, Any], where: AnyPath) -> None:
    """See that a store's attributes say of its pool, and of bounds on norms, what a plan can be made of.

    Raises:
        StoreError: naming the one that cannot be.
    """
    pool, bounds = told.get("pool_chunks"), told.get("max_norms")
    if not (type(pool) is int and 1 <= pool <= LARGEST_POOL):
        raise StoreError(
            f"{where} is damaged: its pool_chunks is {pool}; restore the file, or begin the store again with --force."
        )
    if bounds is not None and not (isinstance(bounds, dict) and all(is_figure(norm) and norm > 0 for norm in bounds.values())):
        raise StoreError(
            f"{where} is damaged: its max_norms is {bounds}; restore the file, or begin the store again with --force."
        )


def statistics_sound(known: Any, d: int) -> TypeGuard[dict[str, Any]]:
    """Whether a finished site's attributes hold its mean [d] and the norms."""
    if not isinstance(known, dict) or not all(is_figure(known.get(name)) for name in NORMS):
        return False
    mean, outliers = known.get("mean"), known.get("outliers", 0)
    return (
        isinstance(mean, list)
        and len(mean) == d
        and all(map(is_figure, mean))
        and (known.get("median_norm") is None or is_figure(known["median_norm"]))
        and (outliers is None or is_count(outliers))
    )


def _by(value: object, names: Sequence[str] | Mapping[str, int]) -> bool:
    return isinstance(value, dict) and value.keys() == set(names)


def _is_base64(text: object, size: int) -> bool:
    if not isinstance(text, str) or len(text) != 4 * -(-size // 3):
        return False
    try:
        return len(base64.b64decode(text, validate=True)) == size
    except ValueError:
        return False


def _counts(histogram: object, rows: int) -> bool:
    return (
        isinstance(histogram, dict)
        and all(name == ZERO or (_BIN.fullmatch(name) is not None and abs(int(name)) <= LARGEST_BIN) for name in histogram)
        and all(is_count(n) for n in histogram.values())
        and sum(histogram.values()) == rows
    )
