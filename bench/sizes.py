"""How much a contender is given: some of a store's training rows, as a store of their own, so that nothing else is trained or solved on."""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import store as stores
from ..errors import SplinterpError
from ..store import Store
from ..store.batches import block_lengths, split_blocks, split_rows
from ..store.layout import BLOCK

STEPS_WANTED = 2000  # of several epochs on few rows, where their number is left to us
DRAWN_BY = 20251121


@dataclass(frozen=True)
class Size:
    """A number of rows to train on, once each (`epochs` is empty) or several times: numbers of epochs to choose from."""

    rows: int
    epochs: tuple[int, ...] = ()


def auto_epochs(rows: int, batch_size: int) -> int:
    """As many as give about 2,000 steps, at least one."""
    return max(1, -(-STEPS_WANTED * batch_size // rows))


@contextmanager
def part_of(store: Store, site: str, rows: int) -> Iterator[Store]:
    """A store with about `rows` training rows (exactly so many where a store can have them), gone after the block; the store itself where
    those are all that it has.

    The part's rows, those that it holds out or validates by too, are training rows of `store`. They are the first so many blocks in one
    order, so that smaller parts lie within larger ones.

    Raises:
        SplinterpError: the store has not so many training rows.
    """
    available = store.split_rows("train")
    if rows == available:
        yield store
        return
    total = rows_for(rows) if rows < available else None
    if total is None or total > available:
        raise SplinterpError(
            f"{store.path} has {available:,} training rows, from which no store of {rows:,} training rows and its own held-out ones can be "
            "made; give fewer --rows, or all."
        )
    blocks = split_blocks(store.rows, "train")
    blocks = np.random.default_rng([DRAWN_BY, len(blocks)]).permutation(blocks)
    ends = np.cumsum(block_lengths(store.rows, blocks))
    blocks = blocks[: int(np.searchsorted(ends, total)) + 1]
    of = store.site(site)
    with tempfile.TemporaryDirectory() as folder:
        path, left = Path(folder) / "part.zarr", total
        with stores.create(path, sites={site: of.d}, dtype=of.dtype, rows=total, attributes={"source": "subset"}) as writer:
            for block, length in zip(blocks.tolist(), block_lengths(store.rows, blocks).tolist(), strict=True):
                n = min(length, left)
                a = block * BLOCK
                writer.add({site: store.acts(site, a, a + n)}, {})
                left -= n
            part = writer.finish()
        yield part


def rows_for(training: int) -> int:
    """The rows of a store that has so many training rows, or the next larger number that a store has, and holds some out."""
    blocks = bisect_left(range(2 * training // BLOCK + 16), training, 2, key=lambda n: split_rows(n * BLOCK, "train"))
    found = range((blocks - 1) * BLOCK + 1, blocks * BLOCK + 1)
    reached = next(n for rows in found if (n := split_rows(rows, "train")) >= training)
    return next(rows for rows in reversed(found) if split_rows(rows, "train") == reached)
