"""Batches that several processes share: all epochs of a run as one stream, and one pass of which each takes some batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import StoreError
from .batches import EpochPlan, Plan, Split, plan_epoch, split_rows


@dataclass
class StreamPlan:
    """A rank's share of a run: of batch i, which is rows [i·B, (i+1)·B) of the endless sequence of shuffled epochs up to `total` rows.

    A batch may begin in one epoch and end in the next; only the last may be smaller. Of a batch of n rows rank r has rows
    [n·r/world, n·(r+1)/world), rounded down: all ranks together have the batch of a single process, in its order. A rank's share of a
    batch with fewer rows than ranks may be empty.

    Args:
        rows: in the store.
    """

    rows: int
    batch_size: int
    total: int
    seed: int = 0
    split: Split = "train"
    rank: int = 0
    world: int = 1
    _epochs: dict[int, EpochPlan] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Raises StoreError for a parameter that cannot be."""
        plan_epoch(self.rows, self.batch_size, seed=self.seed, split=self.split, rank=self.rank, world=self.world)
        self._epoch_rows = split_rows(self.rows, self.split)
        if not self._epoch_rows:
            raise StoreError(f"There are no rows in the split '{self.split}' of {self.rows} rows.")

    @property
    def n_batches(self) -> int:
        return math.ceil(self.total / self.batch_size)

    @property
    def largest(self) -> int:
        return math.ceil(min(self.batch_size, self.total) / self.world)

    def spans(self, batch: int) -> list[tuple[int, int]]:
        """The store's rows in this rank's share of a batch, as [a, b) spans in order."""
        first = batch * self.batch_size
        n = min(self.batch_size, self.total - first)
        first, last = first + n * self.rank // self.world, first + n * (self.rank + 1) // self.world
        spans: list[tuple[int, int]] = []
        while first < last:
            epoch, at = divmod(first, self._epoch_rows)
            n = min(last - first, self._epoch_rows - at)
            spans += self._epoch(epoch).between(at, at + n)
            first += n
        return spans

    def _epoch(self, epoch: int) -> EpochPlan:
        if epoch not in self._epochs:
            # One is kept: the stream goes forwards.
            self._epochs = {epoch: plan_epoch(self.rows, self.batch_size, seed=self.seed, epoch=epoch, split=self.split)}
        return self._epochs[epoch]


@dataclass(frozen=True)
class Dealt:
    """Every `world`-th batch of a plan, from the `rank`-th on: whole batches, each as a single process has it."""

    plan: Plan
    rank: int
    world: int

    @property
    def n_batches(self) -> int:
        return len(range(self.rank, self.plan.n_batches, self.world))

    @property
    def largest(self) -> int:
        return self.plan.largest

    def spans(self, batch: int) -> list[tuple[int, int]]:
        """The store's rows in a batch, as [a, b) spans in order."""
        return self.plan.spans(self.rank + batch * self.world)
