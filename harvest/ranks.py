"""Harvesting by several processes, as torchrun starts them: each forwards its share of the batches into its part of one store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import SplinterpError
from .pack import TokenBatch


@dataclass(frozen=True)
class Ranks:
    """Which of `world` processes this is; `local` counts those on this machine, and chooses the GPU."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """What torchrun says (RANK, WORLD_SIZE, LOCAL_RANK); one process where it says nothing.

        Raises:
            SplinterpError: it says something else than numbers that agree.
        """
        named = {
            name: environment.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        }
        try:
            rank, world, local = map(int, named.values())
        except ValueError:
            rank, world, local = -1, 0, 0
        if not 0 <= rank < world or local < 0:
            told = ", ".join(f"{name}={value}" for name, value in named.items())
            raise SplinterpError(f"{told} is not what torchrun sets; unset them for a single process.")
        return cls(rank, world, local)

    @property
    def several(self) -> bool:
        return self.world > 1

    def device(self, name: str, gpus: int) -> str:
        """`name`, with "auto" and "cuda" made the GPU of this rank on its machine."""
        return f"cuda:{self.local % gpus}" if self.several and gpus and name in ("auto", "cuda") else name


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
