"""open(): a store of ours through memory maps, an archive block by block, any other Zarr layout through zarr."""

from __future__ import annotations

import os
from pathlib import Path

from .archive import ArchiveStore
from .foreign import ForeignStore, is_foreign
from .reader import Store, checked


def open_any(path: str | os.PathLike[str], *, unfinished: bool = False) -> Store:
    """Open the store at `path`, checking its metadata and every chunk's presence and exact size.

    A compressed archive, and any other Zarr array [N, d] or group of such arrays (format 2 or 3, compressed or sharded, read
    through the zarr library), have the same interface; the store's `note` then says that this is slower.

    Args:
        unfinished: also open a store still being written; only its committed, gapless beginning is seen.

    Raises:
        StoreError: no such path, not a store, damaged or unfinished: says which file, and what to do.
    """
    if is_foreign(Path(path)):
        return ForeignStore(Path(path))
    contents, lines = checked(path, unfinished=unfinished)
    return ArchiveStore(contents, lines) if contents.compressed else Store(contents, lines)
