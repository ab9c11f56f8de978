"""RemoteStore: a store on an object store, read in ranges of its chunks through a local cache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np

from ..errors import StoreError
from .batches import RowReader
from .cache import Cache, cache_bound
from .check import Contents
from .layout import BLOCK, Array
from .manifest import Line, decode_blocks
from .places import RemotePath, cat_ranges
from .reader import Site, Store

# One request for blocks side by side, but none so long that a failed one costs much.
LONGEST_RANGE = 16 * 2**20

Block = tuple[int, int]


class RemoteStore(Store):
    """A store at a URL. `acts` and `column` return copies; a batch's rows that are not in the cache are fetched together."""

    def __init__(self, contents: Contents, lines: list[Line], cache_bytes: int | None) -> None:
        super().__init__(contents, lines)
        assert isinstance(contents.path, RemotePath)
        self._remote = contents.path
        bound = cache_bound() if cache_bytes is None else cache_bytes
        self._cache = Cache(str(self.path), self.fingerprint, bound)
        self._fetched: dict[str, Path] = {}

    def local(self, name: str) -> Path:
        """A copy of the store's sub-folder `name`, fetched once for each opened store.

        Raises:
            StoreError: it cannot be read.
        """
        if name not in self._fetched:
            folder, remote = self._cache.folder / name, self._remote / name
            try:
                for file in remote.everything_below():
                    to = folder / file.key[len(remote.key) + 1 :]
                    to.parent.mkdir(parents=True, exist_ok=True)
                    # Renamed into place: another process may be reading the same copy.
                    part = to.with_name(f".{to.name}.{os.getpid()}.tmp")
                    part.write_bytes(file.read_bytes())
                    os.replace(part, to)
            except OSError as error:
                raise StoreError(f"{error.filename or remote} cannot be copied: {error.strerror}.") from None
            self._fetched[name] = folder
        return self._fetched[name]

    def _row_reader(self, site: Site) -> RowReader:
        return RemoteRows(self._remote, self._arrays[f"{site.name}/acts"], self.chunk_rows, self._cache, self._lines)

    def _pieces(self, array: Array, a: int, b: int) -> list[np.ndarray]:
        """Rows [a, b), a copy."""
        if not 0 <= a <= b <= self.rows:
            raise StoreError(f"{self.path} has {self.rows} rows; there are no rows {a} to {b}.")
        rows = np.empty((b - a,) if array.d is None else (b - a, array.d), array.numpy)
        reader = RemoteRows(self._remote, array, self.chunk_rows, self._cache, self._lines)
        try:
            into = rows.reshape(-1).view(np.uint8).data
            # In steps, so that what is fetched at a time stays small beside what was asked for.
            step = max(BLOCK, LONGEST_RANGE // array.row_bytes // BLOCK * BLOCK)
            for first in range(a, b, step):
                reader.announce([(first, min(b, first + step))])
                reader.read(first, min(b, first + step), into[(first - a) * array.row_bytes :])
        finally:
            reader.close()
        return [rows]


class RemoteRows:
    """One array's rows as a RowReader. It holds the blocks of the last two calls of `announce`: those read now and those read next."""

    def __init__(self, root: RemotePath, array: Array, chunk_rows: int, cache: Cache, lines: list[Line]) -> None:
        self._root, self._array, self._chunk_rows, self._cache, self._lines = root, array, chunk_rows, cache, lines
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="splinterp-fetch")
        self._now: dict[Block, Future[dict[Block, bytes]]] = {}
        self._next: dict[Block, Future[dict[Block, bytes]]] = {}

    def announce(self, spans: list[tuple[int, int]]) -> None:
        """Begin to fetch rows in the background; those announced before the last time are forgotten."""
        wanted = list(dict.fromkeys(block for a, b in spans for block, *_ in self._parts(a, b)))
        known = self._now | self._next
        self._now = self._next
        self._next = {block: known[block] for block in wanted if block in known}
        if new := [block for block in wanted if block not in known]:
            self._next |= dict.fromkeys(new, self._thread.submit(self._load, new))

    def read(self, a: int, b: int, into: memoryview) -> int:
        """Read rows [a, b), announced or not, to the beginning of `into`; returns their number.

        Raises:
            StoreError: they cannot be fetched, or a chunk is truncated.
        """
        at, width = 0, self._array.row_bytes
        for block, first, n in self._parts(a, b):
            future = self._now.get(block) or self._next.get(block)
            data = future.result()[block] if future else self._load([block])[block]
            into[at : at + n * width] = memoryview(data)[first * width : (first + n) * width]
            at += n * width
        return b - a

    def settle(self) -> None:
        """Nothing is left to wait for: `read` waits for what it needs."""

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _parts(self, a: int, b: int) -> Iterator[tuple[Block, int, int]]:
        """((chunk, block in it), first row in the block, rows) of [a, b)."""
        while a < b:
            chunk, row = divmod(a, self._chunk_rows)
            first = row % BLOCK
            n = min(b - a, BLOCK - first, self._chunk_rows - row)
            yield (chunk, row // BLOCK), first, n
            a += n

    def _span(self, block: Block) -> tuple[int, int]:
        """The block's bytes [a, b) in its chunk."""
        first = block[1] * BLOCK
        return first * self._array.row_bytes, min(self._chunk_rows, first + BLOCK) * self._array.row_bytes

    def _name(self, chunk: int) -> str:
        return f"{self._array.path}/{self._array.chunk_name(chunk)}"

    def _load(self, blocks: list[Block]) -> dict[Block, bytes]:
        """The blocks' bytes, out of the cache or fetched together and kept there."""
        found: dict[Block, bytes] = {}
        missing = []
        for block in blocks:
            a, b = self._span(block)
            data = self._cache.get(self._name(block[0]), block[1], a, b - a)
            if data is None:
                missing.append(block)
            else:
                found[block] = data
        runs = list(self._joined(missing))
        ends = [(self._span(run[0])[0], self._span(run[-1])[1]) for run in runs]
        paths = [self._root / self._name(run[0][0]) for run in runs]
        try:
            got = cat_ranges(paths, [a for a, _ in ends], [b for _, b in ends]) if runs else []
        except OSError as error:
            raise StoreError(f"{error.filename} cannot be read: {error.strerror}.") from None
        for run, path, (start, end), data in zip(runs, paths, ends, got, strict=True):
            if len(data) != end - start:
                raise StoreError(f"{path} is truncated; run `splinterp verify`.")
            for block in run:
                a, b = self._span(block)
                found[block] = data[a - start : b - start]
                self._check(block, found[block])
                self._cache.put(self._name(block[0]), block[1], a, found[block])
        return found

    def _check(self, block: Block, data: bytes) -> None:
        """A fetched block of a site's rows against its checksum in the manifest; the cache checks what it keeps by itself."""
        chunk, k = block
        if self._array.d is not None:
            line = self._lines[chunk]
            rows = min(BLOCK, line.rows - k * BLOCK)
            site = self._array.path.rsplit("/", 1)[0]
            if google_crc32c.value(data[: rows * self._array.row_bytes]) != decode_blocks(line.blocks[site])[k]:
                first = k * BLOCK
                raise StoreError(
                    f"{self._root / self._name(chunk)} is damaged: its rows from {first} on do not match their checksum; "
                    "see what `splinterp verify --full` says, then restore the object or harvest again."
                )

    def _joined(self, blocks: Iterable[Block]) -> Iterator[list[Block]]:
        """Blocks in order, those side by side in one chunk together."""
        run: list[Block] = []
        for block in sorted(blocks):
            follows = run and block == (run[-1][0], run[-1][1] + 1)
            if follows and self._span(block)[1] - self._span(run[0])[0] <= LONGEST_RANGE:
                run.append(block)
                continue
            if run:
                yield run
            run = [block]
        if run:
            yield run
