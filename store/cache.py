"""The local cache of remote stores: sparse copies of chunks, each block with its checksum, within a bound of bytes.

<root>/<hash of URL>-<fingerprint>/<array>/<chunk>         the chunk's blocks where they are in the chunk
<root>/<hash of URL>-<fingerprint>/<array>/<chunk>.index   8 bytes a block: 1 if it is there, and its crc32c

A block is 256 rows of one array, counted within its chunk. It counts if its bytes meet its checksum: so nothing is synced, a crash
leaves at worst a block that is fetched again, and several processes may share the cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import threading
from collections import OrderedDict
from pathlib import Path

import google_crc32c

from ..errors import StoreError
from ..quantities import parse_bytes

FOLDER, BOUND = "SPLINTERP_CACHE", "SPLINTERP_CACHE_BYTES"
DEFAULT_BYTES = 20 * 2**30
# A block can begin and end within a page of the file system; its index is counted in as well.
PAGES = 8192
OPEN_CHUNKS = 64
_ENTRY = struct.Struct("<II")


def cache_root() -> Path:
    """$SPLINTERP_CACHE, or ~/.cache/splinterp/stores."""
    return Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "splinterp" / "stores")


def cache_bound() -> int:
    """$SPLINTERP_CACHE_BYTES, such as 500MB or 20GiB; without it 20 GiB."""
    return parse_bytes(os.environ[BOUND]) if os.environ.get(BOUND) else DEFAULT_BYTES


def used_bytes(folder: Path) -> int:
    """What the files below `folder` take of the disk; holes take nothing."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(at, name)).st_blocks * 512
            except FileNotFoundError:  # another process has made room
                continue
    return total


class Cache:
    """One store's part of the cache. Safe to use from several threads and processes.

    When the bound is reached, the other stores' parts go, those opened longest ago first; when none is left, nothing more is
    kept: an epoch is a permutation, so dropping one block of it for another would gain nothing.
    """

    def __init__(self, url: str, fingerprint: str, bound: int) -> None:
        """Raises StoreError when the folder cannot be made."""
        self.root = cache_root()
        self.folder = self.root / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{fingerprint}"
        self._bound, self._room, self._full = bound, 0, bound <= 0
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[int, int]] = OrderedDict()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            os.utime(self.folder)
        except OSError as error:
            raise self._refused(error) from None

    def get(self, chunk: str, block: int, offset: int, n: int) -> bytes | None:
        """The `n` bytes at `offset` of a chunk (its path in the store), which are its block `block`; None if not here whole."""
        if self._bound <= 0:
            return None
        try:
            with self._lock:
                data, index = self._files(chunk)
                entry = os.pread(index, _ENTRY.size, block * _ENTRY.size)
                if len(entry) < _ENTRY.size:
                    return None
                there, crc = _ENTRY.unpack(entry)
                found = os.pread(data, n, offset) if there else b""
        except OSError as error:
            raise self._refused(error) from None
        return found if len(found) == n and google_crc32c.value(found) == crc else None

    def put(self, chunk: str, block: int, offset: int, data: bytes) -> None:
        """Keep a block, if there is room.

        Raises:
            StoreError: the disk is full or the folder cannot be written.
        """
        try:
            with self._lock:
                if not self._has_room(len(data) + PAGES):
                    return
                into, index = self._files(chunk)
                # The data first: an entry without it would only be fetched again, but need not be.
                _write(into, data, offset)
                _write(index, _ENTRY.pack(1, google_crc32c.value(data)), block * _ENTRY.size)
        except OSError as error:
            raise self._refused(error) from None

    def close(self) -> None:
        with self._lock:
            while self._open:
                for fd in self._open.popitem()[1]:
                    os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _has_room(self, n: int) -> bool:
        if self._full or self._room >= n:
            self._room -= n
            return not self._full
        # Measured anew now and then only: other processes write here too.
        others = sorted((entry for entry in self.root.iterdir() if entry != self.folder), key=_opened)
        left = self._bound - used_bytes(self.root)
        while left < n and others:
            shutil.rmtree(others.pop(0), ignore_errors=True)
            left = self._bound - used_bytes(self.root)
        self._full = left < n
        self._room = min(left, max(n, self._bound // 16)) - n
        return not self._full

    def _files(self, chunk: str) -> tuple[int, int]:
        """(data, index) descriptors of a chunk's files, made if need be."""
        found = self._open.pop(chunk, None)
        if found is None:
            path = self.folder / chunk
            path.parent.mkdir(parents=True, exist_ok=True)
            data = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                found = data, os.open(f"{path}.index", os.O_RDWR | os.O_CREAT, 0o644)
            except OSError:
                os.close(data)
                raise
        self._open[chunk] = found
        while len(self._open) > OPEN_CHUNKS:
            for fd in self._open.popitem(last=False)[1]:
                os.close(fd)
        return found

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            f"The cache of remote stores cannot be used ({self.root}: {error.strerror}); "
            f"name another folder with ${FOLDER}, or a smaller bound with ${BOUND}."
        )


def _opened(folder: Path) -> float:
    """When a store's part was last opened; 0 if another process has just removed it."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _write(fd: int, data: bytes, offset: int) -> None:
    """os.pwrite until everything is written."""
    view = memoryview(data)
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n
