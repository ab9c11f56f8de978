"""Store: a finished store, read through memory maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from ..errors import StoreError
from . import manifest
from .batches import Plan, RowReader, Split, iterate, plan_epoch, split_rows
from .check import Contents
from .chunks import ChunkFiles
from .files import read_json
from .layout import METADATA, STORAGE, Array
from .maps import ChunkMaps
from .places import AnyPath, on_disk
from .sound import NORMS, statistics_sound
from .spill import kept_rows
from .stats import site_statistics
from .stream import Dealt, StreamPlan
from .transfer import to_cuda


@dataclass(frozen=True, eq=False)
class Site:
    """One site of a store: `rows` rows of width `d`, stored as `dtype`; `mean` is float64 [d], norms are Euclidean.

    `median_norm` is good to 19 %, and `outliers` counts the rows above 10 times that (see histogram.py); both are None in stores
    written before they were kept.
    """

    name: str
    rows: int
    d: int
    dtype: str
    mean: torch.Tensor
    mean_norm: float
    rms_norm: float
    min_norm: float
    max_norm: float
    median_norm: float | None
    outliers: int | None

    def info(self) -> dict[str, Any]:
        """What `splinterp info --json` prints of it."""
        told = ("name", "rows", "d", "dtype", "mean_norm", "rms_norm", "min_norm", "max_norm", "median_norm", "outliers")
        share = None if self.outliers is None else self.outliers / self.rows
        return {**{name: getattr(self, name) for name in told}, "outlier_share": share}


class Store:
    """A store opened for reading. Thread-safe except for the tensors it hands out, which are read-only by agreement.

    Attributes:
        path, attributes, status, rows, columns, chunk_rows: as saved.
        sites: Site by name.
        fingerprint: hex string that changes with any row.
        note: what a user should know of this store, or None.
    """

    note: str | None = None

    def __init__(self, contents: Contents, lines: list[manifest.Line]) -> None:
        attributes = contents.attributes
        self.path: AnyPath = contents.path
        self.attributes: dict[str, Any] = attributes
        self.status: str = attributes["status"]
        self.rows = sum(line.rows for line in lines)
        self.chunk_rows = contents.chunk_rows
        self.chunks = len(lines)
        self.columns: tuple[str, ...] = tuple(attributes["columns"])
        self.fingerprint = manifest.fingerprint(lines)
        self.sites = {name: _site(contents, lines, name) for name in attributes["sites"]}
        self._lines = lines
        self._arrays = {array.path: array for array in contents.arrays}
        self._maps = ChunkMaps(self.path, self.chunk_rows, lines)

    def site(self, name: str | None = None) -> Site:
        """The site called `name`; None: the only one.

        Raises:
            StoreError: no such site, or several to choose from; lists them.
        """
        names = ", ".join(self.sites)
        if name is None:
            if len(self.sites) > 1:
                raise StoreError(f"{self.path} has several sites; choose one with --site: {names}.")
            return next(iter(self.sites.values()))
        if name not in self.sites:
            raise StoreError(f"{self.path} has no site '{name}'; it has {names}.")
        return self.sites[name]

    def acts(self, site: str | None, a: int, b: int) -> torch.Tensor:
        """Rows [a, b) of a site as [b-a, d] in the storage dtype.

        Within one chunk this is a view of the file's memory map, without a copy: treat it as read-only (writing to it never
        reaches the file, but other views of the chunk may see it). Across chunks it is a copy.

        Raises:
            StoreError: rows out of range, or no such site; or they do not match their checksums.
        """
        chosen = self.site(site)
        pieces = self._pieces(self._arrays[f"{chosen.name}/acts"], a, b)
        tensors = [torch.from_numpy(piece).view(STORAGE[chosen.dtype].torch) for piece in pieces]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def column(self, name: str, a: int = 0, b: int | None = None) -> np.ndarray:
        """Entries [a, b) of a row column as uint32 [b-a].

        Raises:
            StoreError: rows out of range, or no such column; or a chunk does not match its checksum.
        """
        if name not in self.columns:
            raise StoreError(f"{self.path} has no column '{name}'; it has {', '.join(self.columns) or 'none'}.")
        return np.concatenate(self._pieces(self._arrays[name], a, self.rows if b is None else b))

    def batches(
        self,
        site: str | None,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        split: Split = "train",
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        device: torch.device | None = None,
    ) -> Iterator[torch.Tensor]:
        """One epoch of a site's rows as tensors [<=batch_size, d] in the storage dtype.

        Blocks of 256 rows are permuted over the whole store, the same for the same (seed, epoch); ranks get disjoint
        blocks, so the ranks together see every row of the split exactly once. A thread reads two batches ahead into
        reused buffers: **a tensor is valid until the next one is asked for**, so convert it at once
        (`batch.to(torch.float32)`; `.clone()` for a float32 store, where `.to` makes no copy).

        Args:
            split: "held_out": a fixed twentieth of the blocks (at most 65,536 rows); "validation": a fixed fortieth (at most 16,384 rows;
                none of a store of fewer than 8 blocks), to choose settings by; "train": the others; "all": every row.
            start: batches to skip without reading them.
            shuffle: False gives the order of the store.
            drop_last: leave out a last batch that is not full.
            device: a CUDA device: the batches arrive there, through pinned buffers, copied while the one before is being
                computed on, and each is the caller's own. None or the CPU: as above.

        Raises:
            StoreError: no such site or parameters that cannot be; while iterating: a chunk cannot be read.
        """
        chosen = self.site(site)
        epoch_plan = plan_epoch(
            self.rows,
            batch_size,
            seed=seed,
            epoch=epoch,
            split=split,
            rank=rank,
            world=world,
            shuffle=shuffle,
            drop_last=drop_last,
        )
        return self._batches(chosen, epoch_plan, start, device)

    def stream(
        self,
        site: str | None,
        batch_size: int,
        total: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        device: torch.device | None = None,
    ) -> Iterator[torch.Tensor]:
        """The training rows of a site, epoch after epoch, `total` rows in all: this rank's share of each batch of `batch_size` rows.

        The epochs are those of `batches` with split "train", one after the other without a seam; only the last batch is smaller. Ranks
        share each batch out: joined in their order the shares are the batch of a single process. A share of a batch with fewer rows than
        ranks may be empty. For what else there is to know, see `batches`.

        Args:
            start: batches to skip without reading them.

        Raises:
            StoreError: as `batches`; or the store has no training rows.
        """
        chosen = self.site(site)
        plan = StreamPlan(self.rows, batch_size, total, seed, "train", rank, world)
        return self._batches(chosen, plan, start, device)

    def dealt(
        self,
        site: str | None,
        batch_size: int,
        rank: int,
        world: int,
        *,
        split: Split = "train",
        device: torch.device | None = None,
    ) -> Iterator[torch.Tensor]:
        """Every row of a split once over all ranks, in the store's order: each rank has every `world`-th batch of `batches`, whole.

        Raises:
            StoreError: as `batches`.
        """
        chosen = self.site(site)
        plan = Dealt(plan_epoch(self.rows, batch_size, split=split, shuffle=False), rank, world)
        return self._batches(chosen, plan, 0, device)

    def _batches(self, chosen: Site, plan: Plan, start: int, device: torch.device | None) -> Iterator[torch.Tensor]:
        cuda = device if device is not None and device.type == "cuda" else None
        dtype = STORAGE[chosen.dtype].torch
        found = iterate(partial(self._row_reader, chosen), chosen.d, dtype, plan, start, pinned=cuda is not None)
        return found if cuda is None else to_cuda(found, cuda)

    def n_batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        split: Split = "train",
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> int:
        """How many batches `batches` gives with the same arguments (from the first)."""
        return plan_epoch(
            self.rows,
            batch_size,
            seed=seed,
            epoch=epoch,
            split=split,
            rank=rank,
            world=world,
            shuffle=shuffle,
            drop_last=drop_last,
        ).n_batches

    def split_rows(self, split: Split) -> int:
        """Rows in a split over all ranks; 0 held out when the store is a single block, 0 for validation when it has fewer than eight."""
        return split_rows(self.rows, split)

    def splits(self) -> dict[str, int]:
        """Rows of each split; together they are all rows."""
        return {split: self.split_rows(split) for split in get_args(Split) if split != "all"}

    def info(self) -> dict[str, Any]:
        """What `splinterp info --json` prints."""
        own = {key: value for key, value in self.attributes.items() if key not in ("sites", "rows")}
        return {
            "path": str(self.path),
            "status": self.status,
            "rows": self.rows,
            "splits": self.splits(),
            "sites": [site.info() for site in self.sites.values()],
            **{key: self.attributes.get(key) for key in ("model", "dataset", "context")},
            "chunks": self.chunks,
            "bytes": self.chunks * sum(a.chunk_bytes(self.chunk_rows) for a in self._arrays.values()),
            "dropped_non_finite": 0,
            "dropped_outliers": 0,
            "fingerprint": self.fingerprint,
            **({} if self.status == "complete" else {"rows_kept_for_resume": self._kept()}),
            **own,
        }

    def _kept(self) -> int:
        """Rows of a store being written that wait for a resume, in no chunk yet."""
        return kept_rows(self.path, list(self._arrays.values()), self.sites, self._lines) if isinstance(self.path, Path) else 0

    def local(self, name: str) -> Path:
        """The store's sub-folder `name` as a local folder, which is not there when the store has none."""
        return on_disk(self.path) / name

    def _row_reader(self, site: Site) -> RowReader:
        return ChunkFiles(on_disk(self.path), self._arrays[f"{site.name}/acts"], self.chunk_rows, self._lines)

    def _pieces(self, array: Array, a: int, b: int) -> list[np.ndarray]:
        """Views of the chunks' maps that together are rows [a, b)."""
        if not 0 <= a <= b <= self.rows:
            raise StoreError(f"{self.path} has {self.rows} rows; there are no rows {a} to {b}.")
        pieces = []
        while a < b or not pieces:
            chunk, first = divmod(min(a, self.rows - 1), self.chunk_rows)
            last = min(self.chunk_rows, first + b - a)
            pieces.append(self._maps.rows(array, chunk, first, last))
            a += last - first
        return pieces


def _site(contents: Contents, lines: list[manifest.Line], name: str) -> Site:
    d, dtype = contents.attributes["sites"][name], contents.attributes["dtype"]
    if contents.complete:
        known = read_json(contents.path / name / METADATA).get("attributes")
        if not statistics_sound(known, d):
            raise StoreError(f"{contents.path / name / METADATA} is damaged: it does not hold the site's mean and norms.")
        mean, norms = known["mean"], {key: known[key] for key in NORMS}
        norms |= {key: known[key] for key in ("median_norm", "outliers") if key in known}
    else:
        mean, norms = site_statistics(lines, name)
    unknown: dict[str, Any] = {"median_norm": None, "outliers": None}
    return Site(name, sum(line.rows for line in lines), d, dtype, torch.tensor(mean, dtype=torch.float64), **unknown | norms)
