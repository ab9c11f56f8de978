"""Defaults that depend on the store: batch size, learning rate."""

from __future__ import annotations

# At least this many steps, as far as the rows allow: small batches make better SAEs of few rows.
STEPS_WANTED = 500
SMALLEST_BATCH, LARGEST_BATCH = 128, 4096


def auto_batch_size(rows: int) -> int:
    """The largest power of two from 128 to 4096 that leaves about 500 steps or more in `rows` rows."""
    size = LARGEST_BATCH
    while size > SMALLEST_BATCH and rows < STEPS_WANTED * size:
        size //= 2
    return size


def auto_lr(d_in: int) -> float:
    """The peak learning rate for rows of mean square 1 per dimension: 1e-2 at d_in=192, falling as the square root of d_in.

    Fitted to sweeps at d_in = 192 and 784 (bench/RESULTS.md); wider sites are an extrapolation.
    """
    return 1e-2 * (192 / d_in) ** 0.5
