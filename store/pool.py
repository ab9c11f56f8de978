"""The shuffle pool: a buffer of several chunks, filled in random order and drained in order.

Incoming row j of a generation goes straight to slot perm[j]; the chunks are then contiguous slices of the buffer, so no
row is copied twice and the result depends on (seed, generation, rows) alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .files import aligned
from .layout import Array

SLAB = 1024
_local = threading.local()


@dataclass(frozen=True)
class Buffers:
    """Room for one generation: by array path [pool_rows, d] or [pool_rows] in the storage dtype, by site norms [pool_rows]."""

    rows: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]

    @staticmethod
    def make(arrays: list[Array], pool_rows: int) -> Buffers:
        shapes = {a.path: (pool_rows,) if a.d is None else (pool_rows, a.d) for a in arrays}
        return Buffers(
            {a.path: aligned(shapes[a.path], a.numpy) for a in arrays},
            {a.path: np.empty(pool_rows, np.float64) for a in arrays if a.d is not None},
        )


class Generation:
    """One filling of the pool."""

    def __init__(self, index: int, slots: np.ndarray, buffers: Buffers, fill: int = 0) -> None:
        self.index = index
        self.fill = fill
        self.slots = slots
        self.buffers = buffers
        self._order: np.ndarray | None = None

    @property
    def room(self) -> int:
        return len(self.slots) - self.fill

    def put(self, rows: dict[str, np.ndarray], norms: dict[str, np.ndarray]) -> None:
        """Take rows (at most `room`), aligned over all arrays."""
        n = len(next(iter(rows.values())))
        slots = self.slots[self.fill : self.fill + n]
        for path, values in rows.items():
            self.buffers.rows[path][slots] = values
        for path, values in norms.items():
            self.buffers.norms[path][slots] = values
        self.fill += n

    def seal(self) -> None:
        """No more rows will come. If the source ended early, the filled slots are read in order, closing the gaps."""
        if self.room:
            self._order = np.sort(self.slots[: self.fill])

    def rows(self, path: str, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of the shuffled generation: a view, or a copy where gaps had to be closed."""
        return _part(self.buffers.rows[path], self._order, first, last)

    def norms(self, path: str, first: int, last: int) -> np.ndarray:
        return _part(self.buffers.norms[path], self._order, first, last)


def _part(values: np.ndarray, order: np.ndarray | None, first: int, last: int) -> np.ndarray:
    return values[first:last] if order is None else values[order[first:last]]


def row_norms(x: torch.Tensor) -> torch.Tensor:
    """Euclidean norms [n] float64 of rows [n, d]; not finite exactly where a row has an element that is not.

    One float32 norm a row is 12 times cheaper than isfinite(x).all(-1). Its square may overflow for finite rows, so the
    few rows where it is not finite are looked at again in float64.
    """
    if x.device.type == "cpu":
        parts = [torch.linalg.vector_norm(slab, dim=1) for slab in _float_slabs(x)]
        norms = torch.cat(parts).double() if parts else torch.empty(0, dtype=torch.float64)
    else:
        norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).double()
    again = ~torch.isfinite(norms)
    if bool(again.any()):
        norms[again] = torch.linalg.vector_norm(x[again], dim=1, dtype=torch.float64)
    return norms


def column_sums(x: torch.Tensor) -> np.ndarray:
    """Sums [d] float64 of rows [n, d]: float32 within slabs (as a product, 20 times faster), float64 over them."""
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    ones = torch.ones(SLAB)
    for slab in _float_slabs(x):
        part = ones[: len(slab)] @ slab
        total += part.double() if bool(torch.isfinite(part).all()) else slab.double().sum(0)
    return total.numpy()


def _float_slabs(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Rows [n, d] in float32, a few at a time: each valid until the next is asked for.

    Converted into one small buffer, each thread's own, that stays in the cache: fresh memory, even once a call, costs more than the conversion.
    """
    if x.dtype is torch.float32:
        yield from x.split(SLAB) if len(x) else ()
        return
    d = x.shape[1]
    if getattr(_local, "slab", None) is None or _local.slab.numel() < SLAB * d:
        _local.slab = torch.empty(SLAB * d)
    buffer = _local.slab[: SLAB * d].view(SLAB, d)
    for a in range(0, len(x), SLAB):
        part = x[a : a + SLAB]
        yield buffer[: len(part)].copy_(part)
