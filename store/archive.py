"""ArchiveStore: a compressed store, read block by block through the interface of any store."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import StoreError
from .batches import RowReader
from .check import Contents
from .layout import Array
from .manifest import Line
from .places import on_disk
from .reader import Site, Store
from .shard_files import THREADS, ShardFiles

# lz4 cannot do better; a store that claims to is damaged, and would have memory taken for rows that are not there.
LARGEST_RATIO = 256
NOTE = "a compressed archive: it reads more slowly than a plain store; `splinterp copy` makes a plain one of it"


class ArchiveStore(Store):
    """The same rows, columns, batches and fingerprint as the store it was copied from; `acts` always gives a copy."""

    note = NOTE

    def __init__(self, contents: Contents, lines: list[Line]) -> None:
        """Raises StoreError when a file is too small to hold a chunk's rows."""
        super().__init__(contents, lines)
        self._sizes = {path: [(line.stored or {})[path][0] for line in lines] for path in self._arrays}
        for path, array in self._arrays.items():
            smallest = min(self._sizes[path])
            if smallest * LARGEST_RATIO < self.chunk_rows * array.row_bytes:
                file = array.chunk_path(self.path, self._sizes[path].index(smallest))
                raise StoreError(f"{file} is damaged: its {smallest} bytes cannot hold the {self.chunk_rows} rows of a chunk.")

    def info(self) -> dict[str, Any]:
        """As for any store, with `note`; `bytes` are those of the compressed files, `plain_bytes` of a plain store's."""
        facts = super().info()
        stored = sum(sum(sizes) for sizes in self._sizes.values())
        ratio = round(facts["bytes"] / stored, 3)
        return {**facts, "note": self.note, "bytes": stored, "plain_bytes": facts["bytes"], "compression_ratio": ratio}

    def shard_files(self, array: Array, threads: int = THREADS) -> ShardFiles:
        """A reader of one of the store's arrays, to be closed after use."""
        return ShardFiles(on_disk(self.path), array, self.chunk_rows, self._sizes[array.path], threads)

    def _row_reader(self, site: Site) -> RowReader:
        return self.shard_files(self._arrays[f"{site.name}/acts"])

    def _pieces(self, array: Array, a: int, b: int) -> list[np.ndarray]:
        """Rows [a, b), decoded."""
        if not 0 <= a <= b <= self.rows:
            raise StoreError(f"{self.path} has {self.rows} rows; there are no rows {a} to {b}.")
        rows = np.empty(b - a if array.d is None else (b - a, array.d), array.numpy)
        files = self.shard_files(array)
        try:
            files.read(a, b, rows.reshape(-1).view(np.uint8).data)
            files.settle()
        finally:
            files.close()
        return [rows]
