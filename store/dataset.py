"""RowDataset: a store's batches as a torch dataset, for training loops that are built on a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import StoreError
from .batches import Split
from .opening import open_any
from .places import Location, place
from .reader import Store


class RowDataset(IterableDataset[torch.Tensor]):
    """One site's rows in batches [<=batch_size, d] of the storage dtype, each a tensor of its own.

    The batches are made here, so the loader must not batch again: `DataLoader(RowDataset(path, batch_size=4096), batch_size=None)`.
    Ranks (of `torch.distributed`, unless given) and the loader's workers get disjoint blocks: together they see every row of the split once
    an epoch. Call `set_epoch` before each epoch for another order. `state_dict` and `load_state_dict` take an epoch up where it was left,
    without workers.
    """

    def __init__(
        self,
        path: Location | Store,
        site: str | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        split: Split = "train",
        rank: int | None = None,
        world: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        """Opens the store. Raises StoreError as `open` does, or for a parameter that cannot be."""
        if (rank is None) != (world is None):
            raise StoreError("Give both rank and world, or neither.")
        if rank is None or world is None:
            ready = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if ready else (0, 1)
        self._path, self._rank, self._world = str(path.path if isinstance(path, Store) else place(path)), rank, world
        self._settings: dict[str, Any] = {"seed": seed, "split": split, "shuffle": shuffle, "drop_last": drop_last}
        self._batch_size = batch_size
        self._epoch = self._done = 0
        self._site = self._store.site(site).name
        len(self)  # looks at the parameters now rather than in the first epoch

    @cached_property
    def _store(self) -> Store:
        return open_any(self._path)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the store for itself: maps and descriptors do not travel.
        return {key: value for key, value in vars(self).items() if key != "_store"}

    def set_epoch(self, epoch: int) -> None:
        """Begin epoch `epoch`."""
        self._epoch, self._done = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where the iteration is: the epoch, and the batches handed out of it."""
        return {"epoch": self._epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken, without reading what came before."""
        self._epoch, self._done = state["epoch"], state["batches"]

    def __len__(self) -> int:
        """Batches of this rank in an epoch, without workers (each of several workers may end with a smaller one)."""
        return self._store.n_batches(self._batch_size, epoch=self._epoch, rank=self._rank, world=self._world, **self._settings)

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        for x in self._store.batches(
            self._site,
            self._batch_size,
            epoch=self._epoch,
            rank=self._rank * workers + worker,
            world=self._world * workers,
            start=self._done,
            **self._settings,
        ):
            self._done += 1
            yield x.clone()
        self._done = 0
