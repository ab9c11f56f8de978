"""From token ids to batches, by the way of packing that was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from .documents import by_length, document_rows
from .pack import Row, TokenBatch, batches, keep_mask, pack, stacked


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
) -> Iterator[TokenBatch]:
    """The batches of `documents`, (index, ids [n]) as for `pack`: "packed" end to end, or a "document" a row.

    skip: ids whose rows are not kept. tokens: how many are wanted, for `by_length`.
    """
    if packing == "packed":
        return batches(pack(documents, context, bos, separator), batch_size, keep_bos, skip)

    def kept(row: Row) -> int:
        return int(np.count_nonzero(keep_mask(row.ids, row.text, keep_bos, skip)))

    rows = enumerate(document_rows(documents, context, bos))
    return stacked(by_length(rows, kept, tokens), batch_size, keep_bos, skip)
