"""Harvesting by several processes: each forwards its share of the batches into its part of one store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..ranks import Ranks
from .pack import TokenBatch


class Share:
    """A rank's batches: every `world`-th, as far as the first `tokens` kept tokens of all batches reach.

    A batch is forwarded by one rank as it would be by a single process, so all ranks together have a single process's rows, to the bit.
    Tokens are counted before the forward pass: rows dropped as non-finite or as outliers are not made up for.

    Attributes:
        first: the stream's first batch, whole, whoever forwards it; there once a batch has been asked for.
        seen: kept tokens of all batches so far, those of other ranks included; at most `tokens`.
    """

    def __init__(self, ranks: Ranks, batches: Iterator[TokenBatch], tokens: int) -> None:
        self._ranks, self._batches, self._tokens = ranks, batches, tokens
        self.first: TokenBatch | None = None
        self.seen = 0

    def __iter__(self) -> Iterator[TokenBatch]:
        for i, batch in enumerate(self._batches):
            self.first = self.first or batch
            left = self._tokens - self.seen
            if not left:
                return
            part = batch if batch.kept <= left else _first_kept(batch, left)
            self.seen += part.kept
            if i % self._ranks.world == self._ranks.rank:
                yield part


def _first_kept(batch: TokenBatch, n: int) -> TokenBatch:
    """The batch with only its first `n` kept tokens kept."""
    keep = np.zeros_like(batch.keep)
    rows, positions = np.nonzero(batch.keep)
    keep[rows[:n], positions[:n]] = True
    return batch._replace(keep=keep)
