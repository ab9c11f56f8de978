"""open(): a store of ours through memory maps, any other Zarr layout through zarr."""

from __future__ import annotations

import os
from pathlib import Path

from .foreign import ForeignStore, is_foreign
from .reader import Store, open_store


def open_any(path: str | os.PathLike[str], *, unfinished: bool = False) -> Store:
    """Open the store at `path`, checking its metadata and every chunk's presence and exact size.

    Any other Zarr array [N, d], or group of such arrays, of format 2 or 3, compressed or sharded, is read through the zarr library
    with the same interface; the store's `note` then says that this is slower.

    Args:
        unfinished: also open a store still being written; only its committed, gapless beginning is seen.

    Raises:
        StoreError: no such path, not a store, damaged or unfinished: says which file, and what to do.
    """
    return ForeignStore(Path(path)) if is_foreign(Path(path)) else open_store(path, unfinished=unfinished)
