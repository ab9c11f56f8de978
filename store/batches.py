"""Epochs of shuffled batches: which rows, in what order, for which rank; and a thread that reads them ahead.

A block is 256 consecutive rows. Blocks are permuted, rows within a block stay together: the store was written shuffled,
so a batch of several blocks is well mixed, and a block is a read large enough for any disk.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch

from ..errors import StoreError
from .layout import BLOCK

HELD_OUT_SHARE = 20
HELD_OUT_ROWS = 65536
HELD_OUT_SEED = 20240607
VALIDATION_SHARE = 40
VALIDATION_ROWS = 16384
VALIDATION_FROM = 8  # blocks in the store: of fewer all are needed
AHEAD = 1
OPEN_FILES = 128

Split = Literal["train", "validation", "held_out", "all"]


def split_blocks(rows: int, split: Split) -> np.ndarray:
    """Block indices of a split, ascending: a function of the number of blocks alone.

    A twentieth of the blocks is held out, at most 65,536 rows, and at least one block of a store that has two. Of the others, as many as a
    fortieth of all are for validation, at most 16,384 rows, at least one block of a store that has eight and none of a smaller one; never
    the store's last, which may be short. The rest is for training.

    Raises:
        StoreError: no such split.
    """
    if split not in get_args(Split):
        raise StoreError(f"There is no split '{split}'; choose one of {', '.join(get_args(Split))}.")
    blocks = -(-rows // BLOCK)
    if split == "all":
        return np.arange(blocks)
    held = 0 if blocks < 2 else max(1, min(blocks // HELD_OUT_SHARE, HELD_OUT_ROWS // BLOCK))
    order = np.random.default_rng([HELD_OUT_SEED, blocks]).permutation(blocks)
    if split == "held_out":
        return np.sort(order[:held])
    validating = 0 if blocks < VALIDATION_FROM else max(1, min(blocks // VALIDATION_SHARE, VALIDATION_ROWS // BLOCK))
    rest = order[held:]
    validation = rest[rest != blocks - 1][:validating]
    return np.sort(validation if split == "validation" else np.setdiff1d(rest, validation, assume_unique=True))


def block_lengths(rows: int, blocks: np.ndarray) -> np.ndarray:
    """Rows in each block; the store's last may be short."""
    return np.minimum(BLOCK, rows - blocks * BLOCK)


def split_rows(rows: int, split: Split) -> int:
    """Rows in a split."""
    return int(block_lengths(rows, split_blocks(rows, split)).sum())


@dataclass(frozen=True)
class EpochPlan:
    """One rank's epoch: the rows of `blocks`, in that order, cut into batches. `ends` are the blocks' cumulative rows."""

    blocks: np.ndarray
    ends: np.ndarray
    batch_size: int
    n_batches: int

    @property
    def largest(self) -> int:
        """Rows of the largest batch."""
        return min(self.batch_size, int(self.ends[-1]))

    def spans(self, batch: int) -> list[tuple[int, int]]:
        """The store's rows that make up a batch, as [a, b) spans in order."""
        first = batch * self.batch_size
        return self.between(first, min(first + self.batch_size, int(self.ends[-1])))

    def between(self, first: int, last: int) -> list[tuple[int, int]]:
        """The store's rows that are rows [first, last) of the epoch, likewise."""
        spans, i = [], int(np.searchsorted(self.ends, first, side="right"))
        while first < last:
            end = int(self.ends[i])
            # The block's last row is end - 1 in the epoch's order; count back from it.
            length = end - (int(self.ends[i - 1]) if i else 0)
            a = int(self.blocks[i]) * BLOCK + length - (end - first)
            n = min(last, end) - first
            if spans and spans[-1][1] == a:
                spans[-1] = (spans[-1][0], a + n)
            else:
                spans.append((a, a + n))
            first, i = first + n, i + 1
        return spans


def plan_epoch(
    rows: int,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    split: Split = "train",
    rank: int = 0,
    world: int = 1,
    shuffle: bool = True,
    drop_last: bool = False,
) -> EpochPlan:
    """Lay out one rank's epoch over a store of `rows` rows.

    Raises:
        StoreError: a parameter that cannot be.
    """
    if batch_size < 1:
        raise StoreError(f"The batch size must be at least 1, not {batch_size}.")
    if not 0 <= rank < world:
        raise StoreError(f"Rank {rank} is not one of {world} ranks.")
    if seed < 0 or epoch < 0:
        raise StoreError(f"Seed and epoch must not be negative, but they are {seed} and {epoch}.")
    blocks = split_blocks(rows, split)
    if shuffle:
        blocks = np.random.default_rng([seed, epoch]).permutation(blocks)
    blocks = blocks[rank::world]
    ends = np.cumsum(block_lengths(rows, blocks))
    total = int(ends[-1]) if len(ends) else 0
    return EpochPlan(blocks, ends, batch_size, total // batch_size if drop_last else -(-total // batch_size))


class Plan(Protocol):
    """Batches as a reader takes them: how many, the rows of the largest (at least 1), and each one's spans of the store's rows."""

    @property
    def n_batches(self) -> int: ...

    @property
    def largest(self) -> int: ...

    def spans(self, batch: int) -> list[tuple[int, int]]: ...


class RowReader(Protocol):
    """Where one thread gets a site's rows from: [n, d] in the storage dtype, as bytes."""

    def announce(self, spans: list[tuple[int, int]]) -> None:
        """These rows will be read soon."""
        ...

    def read(self, a: int, b: int, into: memoryview) -> int:
        """Read rows [a, b) to the beginning of `into`; returns their number. They are there after `settle`."""
        ...

    def settle(self) -> None:
        """Return when everything asked for has been read."""
        ...

    def close(self) -> None: ...


def iterate(
    reader: Callable[[], RowReader], d: int, dtype: torch.dtype, plan: Plan, start: int, *, pinned: bool = False
) -> Iterator[torch.Tensor]:
    """The batches of `plan` from `start` on, read ahead by a thread; each valid until the next is asked for.

    `pinned`: in page-locked memory, from where a copy to a CUDA device runs beside everything else.
    """
    if start < 0:
        raise StoreError(f"The first batch must not be negative, but it is {start}.")
    return _iterate(reader, d, dtype, plan, start, pinned)


def _iterate(
    make_reader: Callable[[], RowReader], d: int, dtype: torch.dtype, plan: Plan, start: int, pinned: bool
) -> Iterator[torch.Tensor]:
    if start >= plan.n_batches:
        return
    rows = plan.largest
    count = min(1 + AHEAD, plan.n_batches - start)
    ring = [torch.empty(rows, d, dtype=dtype, pin_memory=pinned) for _ in range(count)]
    free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    ready: queue.SimpleQueue[tuple[int, int] | BaseException] = queue.SimpleQueue()
    views = [buffer.view(torch.uint8).numpy().data.cast("B") for buffer in ring]
    for i in range(count):
        free.put(i)
    reader = threading.Thread(
        target=_read_ahead,
        args=(make_reader, d * dtype.itemsize, plan, start, views, free, ready),
        name="splinterp-reader",
        daemon=True,
    )
    reader.start()
    try:
        for _ in range(start, plan.n_batches):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            i, n = item
            yield ring[i][:n]
            free.put(i)
    finally:
        # Also when the caller walks away: the thread ends at its next wish for a buffer.
        free.put(None)
        reader.join()


def _read_ahead(
    make_reader: Callable[[], RowReader],
    row_bytes: int,
    plan: Plan,
    start: int,
    views: list[memoryview],
    free: queue.SimpleQueue[int | None],
    ready: queue.SimpleQueue[tuple[int, int] | BaseException],
) -> None:
    reader: RowReader | None = None
    try:
        reader = make_reader()
        upcoming = plan.spans(start)
        reader.announce(upcoming)
        for batch in range(start, plan.n_batches):
            spans, upcoming = upcoming, plan.spans(batch + 1) if batch + 1 < plan.n_batches else []
            # Told early, the kernel fetches the scattered blocks of the next batch while this one is copied.
            reader.announce(upcoming)
            i = free.get()
            if i is None:
                return
            at = 0
            for a, b in spans:
                at += reader.read(a, b, views[i][at * row_bytes :])
            reader.settle()
            ready.put((i, at))
    except BaseException as error:  # raised again where the batches are asked for
        ready.put(error)
    finally:
        if reader is not None:
            reader.close()
