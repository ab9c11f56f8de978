"""From token ids to batches, by the way of packing that was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from .documents import by_length, document_rows
from .pack import Row, TokenBatch, batches, keep_mask, pack, stacked
from .selection import parse_positions


def arranged(
    documents: Iterable[tuple[int, np.ndarray]],
    packing: str,
    *,
    context: int,
    bos: int,
    separator: int | None,
    batch_size: int,
    keep_bos: bool,
    skip: tuple[int, ...],
    tokens: int,
    positions: str | None = None,
    every: int = 1,
) -> Iterator[TokenBatch]:
    """The batches of `documents`, (index, ids [n]) as for `pack`: "packed" end to end, or a "document" a row.

    skip: ids whose rows are not kept. positions, every: which of the others are, as in HarvestConfig. tokens: how many are
    wanted, for `by_length`.
    """
    chosen = parse_positions(positions, context, keep_bos) if positions is not None else None
    if packing == "packed":
        return batches(pack(documents, context, bos, separator), batch_size, keep_bos, skip, chosen, every)

    def kept(row: Row) -> int:
        return int(np.count_nonzero(keep_mask(row.ids, row.text, keep_bos, skip, chosen)))

    rows = enumerate(document_rows(documents, context, bos))
    enough = (tokens - 1) * every + 1
    return stacked(by_length(rows, kept, enough), batch_size, keep_bos, skip, chosen, every)
