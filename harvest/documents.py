"""One document to a row of the model's input, and rows of one length brought together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import numpy as np

from .pack import Row

TOKENS_TOGETHER = 2**15  # as many as a forward pass takes on a GPU
TOKENS_WAITING = 2**21


def document_rows(documents: Iterable[tuple[int, np.ndarray]], context: int, bos: int) -> Iterator[Row]:
    """A row for each document: BOS, unless the document begins with it, then the document, cut off at the context.

    Documents without a token besides BOS give no row.

    Args:
        documents: (index, ids [n] of any integer dtype); a document may come in several pieces of the same index, in a row.
    """
    for index, pieces in groupby(documents, key=lambda piece: piece[0]):
        ids = np.array([bos], np.int64)
        for _, piece in pieces:  # all of them, or groupby would have to
            if len(ids) < context:
                starts = len(ids) == 1 and len(piece) and piece[0] == bos
                ids = np.concatenate([ids, piece[int(starts) :]])[:context]
        if len(ids) > 1:
            text = np.ones(len(ids), bool)
            text[0] = False
            yield Row(ids, np.full(len(ids), index, np.uint32), text)


def by_length(rows: Iterable[tuple[int, Row]], kept: Callable[[Row], int], enough: int) -> Iterator[tuple[int, Row]]:
    """Reorder numbered rows so that those of one length follow each other, 2¹⁵ tokens of them, to be batched without padding.

    Rows wait for others of their length, at most 2²¹ tokens of them; the length that has waited longest goes first. Once
    `enough` tokens, as `kept` counts them, have gone by, none waits any more: so the first `enough` tokens of the text are
    those that are harvested, and not those of its commonest lengths. The order depends on nothing else, batch size least of all.
    """
    waiting: dict[int, list[tuple[int, Row]]] = {}
    tokens, seen = 0, 0
    for number, row in rows:
        length = len(row.ids)
        alike = waiting.setdefault(length, [])
        alike.append((number, row))
        tokens += length
        seen += kept(row)
        if length * len(alike) >= TOKENS_TOGETHER:
            yield from waiting.pop(length)
            tokens -= length * len(alike)
        while waiting and (tokens > TOKENS_WAITING or seen >= enough):
            oldest = next(iter(waiting))
            together = waiting.pop(oldest)
            tokens -= oldest * len(together)
            yield from together
    for together in waiting.values():
        yield from together
