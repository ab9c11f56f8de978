"""ChunkMaps: chunk files as memory maps, whose rows are checked against their checksums before they are first handed out."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from ..errors import StoreError
from .layout import BLOCK, Array
from .manifest import Line, decode_blocks
from .places import AnyPath

# Few, so that the memory a reader occupies does not grow with the store.
OPEN_MAPS = 4


class _Map:
    """A chunk's rows, and which of its blocks have been checked: blocks of 256 rows of a site; of a column, small as it is, the whole file."""

    def __init__(self, path: Path, array: Array, chunk_rows: int, line: Line) -> None:
        try:
            with path.open("rb") as file:
                # A private copy-on-write map is writable memory, which torch wants of what it shares, and can
                # still never change the file.
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}.") from None
        except ValueError:
            raise StoreError(f"{path} is empty; run `splinterp verify`.") from None
        if len(data) != array.chunk_bytes(chunk_rows):
            raise StoreError(f"{path} has changed its size since the store was opened; run `splinterp verify`.")
        shape = (chunk_rows,) if array.d is None else (chunk_rows, array.d)
        self.path, self._n = path, line.rows
        self.rows = np.frombuffer(data, array.numpy, count=int(np.prod(shape))).reshape(shape)
        if array.d is None:
            self._block, self._crcs, self._n = chunk_rows, [line.crc32c[array.path]], chunk_rows
        else:
            self._block, self._crcs = BLOCK, decode_blocks(line.blocks[array.path.rsplit("/", 1)[0]]).tolist()
        self._sound = np.zeros(len(self._crcs), bool)

    def check(self, first: int, last: int) -> None:
        """See that rows [first, last) are those that were written.

        Raises:
            StoreError: they do not match their checksums.
        """
        for k in range(first // self._block, -(-last // self._block)):
            if self._sound[k]:
                continue
            a = k * self._block
            part = self.rows[a : min(a + self._block, self._n)].reshape(-1).view(np.uint8)
            if google_crc32c.extend(0, part) != self._crcs[k]:  # pyright: ignore[reportArgumentType]
                raise StoreError(
                    f"{self.path} is damaged: its rows from {a} on do not match their checksum; "
                    "see what `splinterp verify --full` says, then restore the file or harvest again."
                )
            self._sound[k] = True


class ChunkMaps:
    """The maps of a store's chunk files, the least recently used closed first."""

    def __init__(self, root: AnyPath, chunk_rows: int, lines: Sequence[Line]) -> None:
        self._root, self._chunk_rows, self._lines = root, chunk_rows, lines
        self._open: OrderedDict[Path, _Map] = OrderedDict()

    def rows(self, array: Array, chunk: int, first: int, last: int) -> np.ndarray:
        """A view of rows [first, last) of a chunk, first < last but for an empty one.

        Raises:
            StoreError: the file cannot be read, or is damaged there.
        """
        path = Path(str(self._root), array.path, array.chunk_name(chunk))
        found = self._open.pop(path, None) or _Map(path, array, self._chunk_rows, self._lines[chunk])
        self._open[path] = found
        while len(self._open) > OPEN_MAPS:
            self._open.popitem(last=False)
        if first < last:
            found.check(first, last)
        return found.rows[first:last]
