"""open(): a store of ours through memory maps, an archive block by block, one at a URL by ranges, any other Zarr through zarr."""

from __future__ import annotations

from ..errors import StoreError
from .archive import ArchiveStore
from .check import committed_lines, load, problems, reachable, unfinished_sentence
from .foreign import ForeignStore, is_foreign
from .places import Location, RemotePath, place
from .reader import Store
from .remote import RemoteStore
from .spill import kept_rows


def open_any(path: Location, *, unfinished: bool = False, cache_bytes: int | None = None) -> Store:
    """Open the store at `path`, checking its metadata and every chunk's presence and exact size.

    A compressed archive, and any other local Zarr array [N, d] or group of such arrays (format 2 or 3, compressed or sharded,
    read through the zarr library), have the same interface; the store's `note` then says that this is slower. A store at a URL
    (s3://, gs://, ...) is read in ranges, which a local cache keeps (see remote.py).

    Args:
        unfinished: also open a store still being written; only its committed, gapless beginning is seen.
        cache_bytes: bound of the cache of remote stores; None: $SPLINTERP_CACHE_BYTES, or 20 GiB. 0: no cache.

    Raises:
        StoreError: no such path, not a store, damaged, unfinished or not to be reached: says which file, and what to do.
    """
    where = place(path)
    if not isinstance(where, RemotePath) and is_foreign(where):
        return ForeignStore(where)
    return open_store(where, unfinished=unfinished, cache_bytes=cache_bytes)


def open_store(path: Location, *, unfinished: bool = False, cache_bytes: int | None = None) -> Store:
    """As `open_any`, for stores of ours alone."""
    where = place(path)
    with reachable(where):
        contents = load(where)
        if not contents.complete and not unfinished:
            raise StoreError(unfinished_sentence(contents))
        lines = committed_lines(contents)
        found = list(problems(contents, lines))
    if found:
        more = f" ({len(found) - 1} more; `splinterp verify` lists them)" if len(found) > 1 else ""
        raise StoreError(found[0] + more)
    if not lines:
        kept = 0 if isinstance(where, RemotePath) else kept_rows(where, contents.arrays, contents.attributes["sites"], ())
        beside = f", beside {kept:,} kept for a resume" if kept else ""
        raise StoreError(f"{where} holds no rows yet{beside}: {unfinished_sentence(contents)}")
    if not contents.complete and not all(line.sums for line in lines):
        raise StoreError(unfinished_sentence(contents))  # a copy takes its statistics over at the end
    if not isinstance(where, RemotePath):
        return ArchiveStore(contents, lines) if contents.compressed else Store(contents, lines)
    if contents.compressed:
        raise StoreError(f"{where} is a compressed archive, which is read from a local disk alone; fetch the folder first.")
    return RemoteStore(contents, lines, cache_bytes)
