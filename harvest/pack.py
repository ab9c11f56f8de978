"""Pack documents into rows of tokens, as SAELens does: BOS at the head of a row, a separator between documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np

from .selection import Positions, every_nth


class Row(NamedTuple):
    """One packed row of t tokens (t is the context, but for the last row of all).

    ids: [t] int64. document: [t] uint32, the document's index; BOS and separators count to the document behind them.
    text: [t] bool, False for the BOS and separators that packing put there.
    """

    ids: np.ndarray
    document: np.ndarray
    text: np.ndarray


class TokenBatch(NamedTuple):
    """B packed rows of T tokens, for one forward pass.

    ids: [B, T] int64. sequence: [B] uint32, the rows' indices in the stream. document: [B, T] uint32.
    keep: [B, T] bool, whether the token's activations go into the store.
    """

    ids: np.ndarray
    sequence: np.ndarray
    document: np.ndarray
    keep: np.ndarray

    @property
    def kept(self) -> int:
        return int(np.count_nonzero(self.keep))

    def columns(self) -> dict[str, np.ndarray]:
        """The store's columns of the kept tokens, row by row: each [kept] uint32."""
        rows, positions = np.nonzero(self.keep)
        return {
            "token_id": self.ids[rows, positions].astype(np.uint32),
            "position": positions.astype(np.uint32),
            "document": self.document[rows, positions],
            "sequence": self.sequence[rows],
        }


def pack(documents: Iterable[tuple[int, np.ndarray]], context: int, bos: int | None, separator: int | None) -> Iterator[Row]:
    """Lay documents end to end into rows of `context` tokens.

    A document that does not fit goes on in the next row, behind a new BOS; one that starts inside a row stands behind the
    separator; a BOS of the document's own is not doubled there. What is left at the end is a shorter row: nothing is padded,
    wrapped or dropped.

    Args:
        documents: (index, ids [n] of any integer dtype); a document may come in several pieces of the same index, in a row.
        context: at least 2.
        bos, separator: token ids, or None for none.
    """
    ids, document, text = np.empty(context, np.int64), np.empty(context, np.uint32), np.empty(context, bool)
    n = 0

    def put(values: np.ndarray | int, count: int, index: int, is_text: bool) -> None:
        nonlocal n
        ids[n : n + count], document[n : n + count], text[n : n + count] = values, index, is_text
        n += count

    def take_row() -> Row:
        nonlocal n
        row = Row(ids[:n].copy(), document[:n].copy(), text[:n].copy())
        n = 0
        return row

    last = None
    for index, piece in documents:
        starts = index != last
        if starts and n and len(piece) and piece[0] == bos == separator:
            piece = piece[1:]
        if not len(piece):
            continue
        last, done = index, 0
        if starts and n and separator is not None:
            put(separator, 1, index, False)
        while done < len(piece):
            if n == 0 and bos is not None:
                done += int(piece[done] == bos)
                if done == len(piece):
                    break
                put(bos, 1, index, False)
            count = min(context - n, len(piece) - done)
            put(piece[done : done + count], count, index, True)
            done += count
            if n == context:
                yield take_row()
    if n:
        yield take_row()


def keep_mask(
    ids: np.ndarray, text: np.ndarray, keep_special: bool, skip: Sequence[int] = (), positions: Positions | None = None
) -> np.ndarray:
    """Which tokens' activations go into the store, for ids and text [..., T]: those of the text, and packing's own on request,
    but for the ids in `skip`; of these the ones at `positions`, for which a row's last token is its last that is left of the text.
    """
    kept = np.ones_like(text) if keep_special else text
    if len(skip):
        kept = kept & ~np.isin(ids, skip)
    return kept if positions is None else kept & positions.mask(text & kept)


def batches(
    rows: Iterable[Row],
    batch_size: int,
    keep_special: bool,
    skip: Sequence[int] = (),
    positions: Positions | None = None,
    every: int = 1,
) -> Iterator[TokenBatch]:
    """Stack consecutive rows of one length, at most `batch_size` of them, into batches."""
    return stacked(enumerate(rows), batch_size, keep_special, skip, positions, every)


def stacked(
    rows: Iterable[tuple[int, Row]],
    batch_size: int,
    keep_special: bool,
    skip: Sequence[int] = (),
    positions: Positions | None = None,
    every: int = 1,
) -> Iterator[TokenBatch]:
    """`batches` of rows that bring their numbers with them. A batch of which nothing is kept is left out.

    Of the tokens that `keep_mask` keeps, the first and every `every`-th after it is kept, whatever the batches.
    """
    before = 0
    for _, same_length in groupby(rows, key=lambda numbered: len(numbered[1].ids)):
        while group := list(islice(same_length, batch_size)):
            ids, text = np.stack([row.ids for _, row in group]), np.stack([row.text for _, row in group])
            keep = keep_mask(ids, text, keep_special, skip, positions)
            batch = TokenBatch(
                ids=ids,
                sequence=np.array([number for number, _ in group], np.uint32),
                document=np.stack([row.document for _, row in group]),
                keep=keep if every == 1 else every_nth(keep, every, before),
            )
            before += int(np.count_nonzero(keep))
            if batch.kept:
                yield batch
