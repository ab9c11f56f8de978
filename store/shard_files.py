"""Reading rows out of an archive's chunk files: exactly the blocks asked for, decoded by several threads."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import StoreError
from .batches import OPEN_FILES
from .layout import Array, block_rows
from .shards import decode_block, decode_index, index_bytes

THREADS = min(4, os.cpu_count() or 1)
# Blocks of fewer bytes decode in less time than threads take to hand Python's lock to each other (measured on two cores:
# 98 KB blocks 1.6 times slower with two threads than with one, 393 KB 1.35 times faster, 1.2 MB 1.5 times).
SHARED_OUT_BYTES = 2**18


@dataclass(frozen=True)
class _Shard:
    """An open chunk file; block i lies at bytes ends[i] to ends[i+1]."""

    path: Path
    fd: int
    ends: np.ndarray


_Job = tuple[_Shard, int, memoryview]


class ShardFiles:
    """The open chunk files of one compressed array, the least recently used closed first: a RowReader of one thread's.

    `read` only notes what is wanted, and `settle` decodes it into place, large blocks shared out among `threads` threads.
    """

    def __init__(self, root: Path, array: Array, chunk_rows: int, sizes: Sequence[int], threads: int = THREADS) -> None:
        """`sizes` are the chunk files' sizes that the manifest gives."""
        self._root, self._array, self._chunk_rows, self._sizes = root, array, chunk_rows, sizes
        self._block_rows = block_rows(chunk_rows)
        self._threads = threads if self._block_bytes >= SHARED_OUT_BYTES else 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="splinterp-decode") if self._threads > 1 else None
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._jobs: list[_Job] = []
        self._cut = memoryview(b"")
        self._cut_from: tuple[int, int] | None = None

    @property
    def _block_bytes(self) -> int:
        return self._block_rows * self._array.row_bytes

    def announce(self, spans: list[tuple[int, int]]) -> None:
        """Ask the kernel to begin fetching rows, where it can be asked."""
        if hasattr(os, "posix_fadvise"):
            for a, b in spans:
                for chunk, block, _, _ in self._pieces(a, b):
                    shard = self._shard(chunk)
                    first, size = int(shard.ends[block]), int(shard.ends[block + 1] - shard.ends[block])
                    with contextlib.suppress(OSError):  # a hint that some file systems do not take
                        os.posix_fadvise(shard.fd, first, size, os.POSIX_FADV_WILLNEED)

    def read(self, a: int, b: int, into: memoryview) -> int:
        """Have rows [a, b) at the beginning of `into` after the next `settle`; returns their number."""
        width, at = self._array.row_bytes, 0
        for chunk, block, first, n in self._pieces(a, b):
            target = into[at * width : (at + n) * width]
            if n == self._block_rows:
                shard = self._shard(chunk)  # which may settle, and begin a new list of jobs
                self._jobs.append((shard, block, target))
            else:
                target[:] = self._block(chunk, block)[first * width : (first + n) * width]
            at += n
        return b - a

    def settle(self) -> None:
        """Decode what `read` has noted.

        Raises:
            StoreError: a block is damaged or cannot be read; named by its file.
        """
        jobs, self._jobs = self._jobs, []
        if self._pool is None or len(jobs) < 2:
            self._decode(jobs)
        else:
            for _ in self._pool.map(self._decode, [jobs[i :: self._threads] for i in range(self._threads)]):
                pass

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        while self._open:
            os.close(self._open.popitem()[1].fd)

    def _pieces(self, a: int, b: int) -> Iterator[tuple[int, int, int, int]]:
        """(chunk, block in it, first row in that, rows) of [a, b)."""
        while a < b:
            chunk, row = divmod(a, self._chunk_rows)
            block, first = divmod(row, self._block_rows)
            n = min(b - a, self._block_rows - first)
            yield chunk, block, first, n
            a += n

    def _block(self, chunk: int, block: int) -> memoryview:
        """A block of which only a part is wanted; kept, as the next batch mostly wants the rest."""
        if self._cut_from != (chunk, block):
            self._cut_from = None
            if not self._cut:
                self._cut = np.empty(self._block_bytes, np.uint8).data
            self._decode([(self._shard(chunk), block, self._cut)])
            self._cut_from = chunk, block
        return self._cut

    def _decode(self, jobs: Sequence[_Job]) -> None:
        largest = max((int(shard.ends[block + 1] - shard.ends[block]) for shard, block, _ in jobs), default=0)
        buffer = np.empty(largest, np.uint8)
        for shard, block, into in jobs:
            first, last = int(shard.ends[block]), int(shard.ends[block + 1])
            data = buffer[: last - first]
            _read_exactly(shard.fd, data.data, first, shard.path)
            decode_block(data, into, shard.path)

    def _shard(self, chunk: int) -> _Shard:
        shard = self._open.pop(chunk, None) or self._open_shard(chunk)
        self._open[chunk] = shard
        if len(self._open) > OPEN_FILES:
            self.settle()  # the file to be closed may still be wanted
            os.close(self._open.popitem(last=False)[1].fd)
        return shard

    def _open_shard(self, chunk: int) -> _Shard:
        path, expected = self._array.chunk_path(self._root, chunk), self._sizes[chunk]
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}.") from None
        try:
            length = index_bytes(self._chunk_rows // self._block_rows)
            if os.fstat(fd).st_size != expected or expected < length:
                raise StoreError(f"{path} does not have the size of its chunk; run `splinterp verify`.")
            index = bytearray(length)
            _read_exactly(fd, memoryview(index), expected - length, path)
            return _Shard(path, fd, decode_index(bytes(index), expected, self._block_bytes, path))
        except BaseException:
            os.close(fd)
            raise


def _read_exactly(fd: int, into: memoryview, offset: int, path: Path) -> None:
    while into:
        try:
            got = os.preadv(fd, [into], offset)
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}.") from None
        if not got:
            raise StoreError(f"{path} is truncated; run `splinterp verify`.")
        into, offset = into[got:], offset + got
