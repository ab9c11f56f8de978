"""ChunkFiles: a site's rows read from its chunk files, every block checked against its checksum on the way."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from ..errors import StoreError
from .layout import BLOCK, Array
from .manifest import Line, decode_blocks

OPEN_FILES = 128


class ChunkFiles:
    """The open chunk files of one array, the least recently used closed first. A RowReader, of one thread.

    Rows come in whole blocks where they can; a block of which only a part is asked for is read whole into a buffer of its own,
    because a checksum is of a whole block. Checking costs about a fifteenth of a copy's time.
    """

    def __init__(self, root: Path, array: Array, chunk_rows: int, lines: Sequence[Line]) -> None:
        self._root, self._array, self._chunk_rows, self._lines = root, array, chunk_rows, lines
        self._site = array.path.rsplit("/", 1)[0]
        self._open: OrderedDict[int, int] = OrderedDict()
        self._crcs: dict[int, list[int]] = {}
        self._block = memoryview(bytearray(BLOCK * array.row_bytes))
        self._in_block: tuple[int, int] | None = None

    def announce(self, spans: list[tuple[int, int]]) -> None:
        """Ask the kernel to begin fetching rows, where it can be asked."""
        if hasattr(os, "posix_fadvise"):
            for a, b in spans:
                for chunk, first, n in self._pieces(a, b):
                    width, fd = self._array.row_bytes, self._fd(chunk)
                    with contextlib.suppress(OSError):  # a hint that some file systems do not take
                        os.posix_fadvise(fd, first * width, n * width, os.POSIX_FADV_WILLNEED)

    def read(self, a: int, b: int, into: memoryview) -> int:
        """Read rows [a, b) to the beginning of `into`; returns their number.

        Raises:
            StoreError: a chunk file cannot be read, or a block's rows do not match their checksum.
        """
        width, at = self._array.row_bytes, 0
        for chunk, first, n in self._pieces(a, b):
            last = first + n
            while first < last:
                k, skip = divmod(first, BLOCK)
                rows = min(BLOCK, self._lines[chunk].rows - k * BLOCK)
                if skip or last - first < rows:
                    taken = min(rows - skip, last - first)
                    self._load(chunk, k, rows)
                    into[at : at + taken * width] = self._block[skip * width : (skip + taken) * width]
                else:
                    # Every whole block of this piece in one call.
                    whole = last == self._lines[chunk].rows
                    taken = last - first if whole else (last - first) // BLOCK * BLOCK
                    part = into[at : at + taken * width]
                    self._pread(chunk, first, part)
                    self._check(chunk, k, part)
                first, at = first + taken, at + taken * width
        return b - a

    def settle(self) -> None:
        """Nothing is left to wait for: `read` reads at once."""

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _load(self, chunk: int, k: int, rows: int) -> None:
        """Block `k` of a chunk into the block buffer, where it may be already: the end of a batch is where the next begins."""
        if self._in_block != (chunk, k):
            self._in_block = None
            part = self._block[: rows * self._array.row_bytes]
            self._pread(chunk, k * BLOCK, part)
            self._check(chunk, k, part)
            self._in_block = (chunk, k)

    def _pread(self, chunk: int, first: int, into: memoryview) -> None:
        offset, fd = first * self._array.row_bytes, self._fd(chunk)
        while into:
            try:
                got = os.preadv(fd, [into], offset)
            except OSError as error:
                raise StoreError(f"{self._path(chunk)} cannot be read: {error.strerror}.") from None
            if not got:
                raise StoreError(f"{self._path(chunk)} is truncated; run `splinterp verify`.")
            into, offset = into[got:], offset + got

    def _check(self, chunk: int, k: int, rows: memoryview) -> None:
        """Blocks k, k+1, ... of a chunk, one after the other in `rows`, against their checksums."""
        crcs = self._crcs.get(chunk)
        if crcs is None:
            crcs = self._crcs[chunk] = decode_blocks(self._lines[chunk].blocks[self._site]).tolist()
        size, data = BLOCK * self._array.row_bytes, np.frombuffer(rows, np.uint8)
        for i, at in enumerate(range(0, len(data), size), k):
            if google_crc32c.extend(0, data[at : at + size]) != crcs[i]:  # pyright: ignore[reportArgumentType]
                raise StoreError(
                    f"{self._path(chunk)} is damaged: its rows from {i * BLOCK} on do not match their checksum; "
                    "see what `splinterp verify --full` says, then restore the file or harvest again."
                )

    def _path(self, chunk: int) -> Path:
        return self._array.chunk_path(self._root, chunk)

    def _pieces(self, a: int, b: int) -> Iterator[tuple[int, int, int]]:
        """(chunk, first row in it, rows) of [a, b)."""
        while a < b:
            chunk, first = divmod(a, self._chunk_rows)
            n = min(b - a, self._chunk_rows - first)
            yield chunk, first, n
            a += n

    def _fd(self, chunk: int) -> int:
        fd = self._open.get(chunk)
        if fd is not None and len(self._open) < OPEN_FILES:
            return fd  # nothing is about to be closed, so the order of use need not be kept
        fd = self._open.pop(chunk, None)
        if fd is None:
            try:
                fd = os.open(self._path(chunk), os.O_RDONLY)
            except OSError as error:
                raise StoreError(f"{self._path(chunk)} cannot be read: {error.strerror}.") from None
        self._open[chunk] = fd
        while len(self._open) > OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return fd
