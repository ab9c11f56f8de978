"""copy(): a store chunk by chunk, into a compressed archive or back into a plain store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

import numpy as np

from ..errors import StoreError
from .archive import ArchiveStore
from .check import Contents, committed_lines
from .create import begin
from .derive import copy_tokenizer, origin_of, refuse_overwriting, told_of
from .files import aligned, crc_bytes, crc_of, write_files
from .foreign import ForeignStore
from .layout import COMPRESSION, MANIFEST, METADATA, Array, block_rows
from .manifest import Line, Log
from .opening import open_any
from .places import Location, RemotePath, place
from .plan import Plan, make_plan
from .publish import publish_complete
from .reader import Store
from .remote_writer import RemoteLog
from .shards import LARGEST_BLOCK, encode_block, encode_index
from .sound import check_pool
from .stored import stored_of

MEMORY = 2**30
# As many as the writer has: some compress while others wait for the disk.
THREADS = 4


def copy(
    src: Location,
    dst: Location,
    compress: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Copy the store at `src` to `dst`: the same rows in the same order and chunks, columns, attributes, statistics,
    tokenizer and fingerprint.

    A plain copy of an archive is, file by file, the plain store that the archive was made from. An interrupted copy
    stays unfinished and is begun again with `force`. Takes about 1 GiB of memory at most, or that of one chunk.

    Args:
        compress: make a compressed archive (blosc lz4 with bitshuffle, in blocks of 256 rows); else a plain store.
        force: replace a splinterp store at `dst`.
        progress: called with (rows copied, rows in all).

    Raises:
        StoreError: `src` is no splinterp store or is damaged, or `dst` exists, is `src` or cannot be written.
    """
    store = open_any(src)
    if isinstance(store, ForeignStore):
        raise StoreError(f"{src} is not a splinterp store, and only such can be copied; `splinterp import` makes one of it.")
    target = place(dst)
    refuse_overwriting(target, [store])
    if compress and isinstance(target, RemotePath):
        raise StoreError(
            f"An archive is read from a local disk alone, so {target} cannot be one; compress to a local path, then upload."
        )
    told = store.attributes
    check_pool(told, store.path / METADATA)
    for key in ("planned_rows", "offered_rows"):
        if type(told.get(key)) is not int and (key != "planned_rows" or told.get(key) is not None):
            raise StoreError(f"{store.path / METADATA} is damaged: its {key} is not a whole number.")
    plan = make_plan(
        target,
        sites=told["sites"],
        dtype=told["dtype"],
        columns=store.columns,
        rows=told["planned_rows"],
        attributes={"source": "copy", "copy_of": origin_of(store)},
        seed=told["seed"],
        memory=MEMORY,
        chunk_rows=store.chunk_rows,
        max_norms=told.get("max_norms"),
    )
    plan = replace(plan, pool_chunks=told["pool_chunks"], compression=COMPRESSION if compress else None)
    largest = max(sum(array.row_bytes for array in group) for group in _groups(plan))
    if compress and block_rows(store.chunk_rows) * largest > LARGEST_BLOCK:
        raise StoreError(f"{src} has chunks of {store.chunk_rows} rows, which cannot be cut into blocks that blosc compresses.")
    lines = committed_lines(Contents(store.path, told))
    plan, log, lock = begin(plan, resume=False, force=force)
    try:
        try:
            copy_tokenizer(store, plan.path)
            # A thread holds a chunk of a group, and its compressed form.
            threads = max(1, min(THREADS, MEMORY // (2 * store.chunk_rows * largest)))
            _copy_chunks(store, lines, plan, log, threads, progress)
        finally:
            log.close()
        means = {name: site.mean.numpy() for name, site in store.sites.items()}
        plan, outliers = replace(plan, attributes=told_of(store)), told.get("dropped_outliers", 0)
        publish_complete(plan, log.lines, store.rows, told["offered_rows"], outliers, {}, lock.check, means)
    except OSError as error:
        lock.release()
        raise StoreError(
            f"{error.filename or plan.path} could not be written: {error.strerror or error}; mend that and copy again with --force."
        ) from None
    except BaseException:
        lock.release()
        raise
    lock.release(remove=True)
    return open_any(dst)


def _groups(plan: Plan) -> list[list[Array]]:
    """Arrays whose chunks are written together: each site by itself, and all columns, which are small."""
    sites = [[array] for array in plan.arrays if array.d is not None]
    columns = [array for array in plan.arrays if array.d is None]
    return [*sites, columns] if columns else sites


def _copy_chunks(
    store: Store, lines: list[Line], plan: Plan, log: Log | RemoteLog, threads: int, progress: Callable[[int, int], None] | None
) -> None:
    """Copy and commit every chunk, several at a time; after a failure none is begun any more."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="splinterp-copy")
    try:
        done = 0
        for future in as_completed([pool.submit(_copy_chunk, store, line, plan, log) for line in lines]):
            done += future.result()
            if progress:
                progress(done, store.rows)
    finally:
        pool.shutdown(cancel_futures=True)


def _copy_chunk(store: Store, line: Line, plan: Plan, log: Log | RemoteLog) -> int:
    """Copy a chunk of every array and commit its line; returns its rows."""
    stored: dict[str, list[int]] = {}
    for group in _groups(plan):
        written = []
        for array in group:
            rows = _read_chunk(store, array, line)
            parts = _shard(rows, block_rows(store.chunk_rows)) if array.compressed else _plain(rows, line.crc32c[array.path])
            written.append((array.chunk_path(plan.path, line.chunk), parts))
            if array.compressed:
                stored[array.path] = stored_of(parts)
        write_files(written, sync_folders=False)
    log.commit(replace(line, stored=stored or None))
    return line.rows


def _read_chunk(store: Store, array: Array, line: Line) -> np.ndarray:
    """A chunk of an array, its padding too: [chunk_rows, d] or [chunk_rows].

    Raises:
        StoreError: its file is damaged.
    """
    rows = aligned(store.chunk_rows if array.d is None else (store.chunk_rows, array.d), array.numpy)
    file, into = array.chunk_path(store.path, line.chunk), rows.reshape(-1).view(np.uint8).data
    if isinstance(store, ArchiveStore):
        files, first = store.shard_files(array, threads=1), line.chunk * store.chunk_rows
        try:
            files.read(first, first + store.chunk_rows, into)
            files.settle()
        finally:
            files.close()
    else:
        try:
            if isinstance(file, RemotePath):
                into[:] = file.read_range(0, len(into))
            else:
                with file.open("rb") as opened:
                    opened.readinto(into)
        except OSError as error:
            raise StoreError(f"{file} cannot be read: {error.strerror}.") from None
    if crc_of([rows]) != line.crc32c.get(array.path):
        raise StoreError(
            f"{file} is damaged: its rows do not match their checksum in {MANIFEST}, so the copy was not finished."
        )
    return rows


def _plain(rows: np.ndarray, crc: int) -> list[memoryview]:
    return [rows.reshape(-1).view(np.uint8).data, memoryview(crc_bytes(crc))]


def _shard(rows: np.ndarray, block: int) -> list[memoryview]:
    blocks = [encode_block(rows[a : a + block]) for a in range(0, len(rows), block)]
    return [memoryview(part) for part in (*blocks, encode_index([len(b) for b in blocks]))]
