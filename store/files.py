"""Files that survive a crash: atomic JSON, checksummed chunks, and the writer's lock."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from ..errors import StoreError
from ..quantities import parse_json
from .layout import CRC_BYTES, LOCK
from .places import AnyPath, RemotePath

WRITE_BYTES = 2**20
DIRECT_BYTES = 2**23
# What every file system takes that takes direct writes at all.
ALIGNMENT = 4096
SLAB_BYTES = 2**23


def temporary(path: Path) -> Path:
    """Where `path` is written before it is renamed. One writer at a time holds the lock, so a fixed name will do."""
    return path.with_name(f".{path.name}.tmp")


def is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def set_aside(path: Path) -> None:
    """Give a folder, or a link to one, that is to be replaced a name from which `remove_set_aside` takes it away."""
    os.rename(path, path.with_name(f".{path.name}.removed-{os.getpid()}"))


def remove_set_aside(path: Path) -> None:
    """Remove what any process has set aside in favour of `path`, one that was killed meanwhile too."""
    for doomed in path.parent.glob(f".{glob.escape(path.name)}.removed-*"):
        if doomed.is_symlink():
            doomed.unlink(missing_ok=True)
        else:
            shutil.rmtree(doomed, ignore_errors=True)  # another process may be at it, too


def sync_folder(folder: AnyPath) -> None:
    """Make renames inside `folder` durable; what an object store has taken is durable already."""
    if isinstance(folder, RemotePath):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: memoryview) -> None:
    """os.write until everything is written, 1 MiB a call: twice as fast as one call a chunk (ext4, Linux 6)."""
    while data:
        data = data[os.write(fd, data[:WRITE_BYTES]) :]


def aligned(shape: int | tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As numpy.empty, at an address from where the disk can be written directly."""
    size = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    skip = -room.ctypes.data % ALIGNMENT
    return room[skip : skip + size].view(dtype).reshape(shape)


def _write_part(fd: int, data: memoryview) -> None:
    """Append to a file: what is aligned past the page cache (O_DIRECT), where the file system can, the rest through it.

    The processor then copies nothing (a fifth of the time it takes), a harvest does not push everything else out of the page cache, and
    a virtual machine need not borrow fresh pages from its host, which is several times slower than the disk.
    """
    whole = len(data) // ALIGNMENT * ALIGNMENT
    if whole >= WRITE_BYTES and hasattr(os, "O_DIRECT") and np.frombuffer(data, np.uint8).ctypes.data % ALIGNMENT == 0:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            while whole:
                done = os.write(fd, data[: min(whole, DIRECT_BYTES)])
                data, whole = data[done:], whole - done
        except OSError as error:
            if error.errno != errno.EINVAL:  # this file system writes through the page cache alone
                raise
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    write_all(fd, data)


def write_files(files: Sequence[tuple[AnyPath, Iterable[memoryview]]], *, sync_folders: bool = True) -> None:
    """Durably write each (path, parts), each file whole or not at all; in the order given on an object store.

    Args:
        sync_folders: False: a power cut may undo the last renames; the caller can find that out, or syncs the folders later.

    Raises:
        OSError: as the system says, with the file's name.
    """
    local: list[tuple[Path, Iterable[memoryview]]] = []
    for path, parts in files:
        if isinstance(path, RemotePath):
            path.write_bytes(b"".join(parts))
        else:
            local.append((path, parts))
    if local:
        _write_local(local, sync_folders)


def _write_local(files: Sequence[tuple[Path, Iterable[memoryview]]], sync_folders: bool) -> None:
    """Durably write each (path, parts): all to temporary names, all fsynced, all renamed, then perhaps their folders synced.

    Together rather than one by one: a journalling file system makes the fsyncs of a group with little more than one commit.

    Raises:
        OSError: as the system says, with the file's name; no temporary file stays, so that a full disk is not fuller than before.
    """
    opened: list[int] = []
    at = files[0][0]
    try:
        for at, parts in files:
            opened.append(os.open(temporary(at), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))
            for part in parts:
                _write_part(opened[-1], part)
        for fd in opened:
            os.fsync(fd)
        for at, _ in files:
            os.replace(temporary(at), at)
    except OSError as error:
        for path, _ in files:
            temporary(path).unlink(missing_ok=True)
        error.filename = error.filename or str(at)
        raise
    finally:
        for fd in opened:
            os.close(fd)
    if sync_folders:
        for folder in dict.fromkeys(path.parent for path, _ in files):
            sync_folder(folder)


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Atomically and durably replace `path`."""
    write_files([(path, [memoryview(data)])])


def write_json(values: Mapping[AnyPath, dict[str, Any]]) -> dict[AnyPath, int]:
    """Durably replace each path by its value as strict JSON (no bare NaN), each whole or not at all; returns the files' crc32c."""
    encoded = {path: (json.dumps(value, indent=1, allow_nan=False) + "\n").encode() for path, value in values.items()}
    write_files([(path, [memoryview(data)]) for path, data in encoded.items()])
    return {path: google_crc32c.value(data) for path, data in encoded.items()}


def read_json(path: AnyPath) -> dict[str, Any]:
    """A JSON object from `path`.

    Raises:
        FileNotFoundError: it is missing.
        StoreError: it is not a JSON object.
    """
    try:
        value = parse_json(path.read_bytes())
    except ValueError:
        raise StoreError(f"{path} is damaged: it is not valid JSON.") from None
    if not isinstance(value, dict):
        raise StoreError(f"{path} is damaged: it does not hold a JSON object.")
    return value


def json_crc(value: Any) -> int:
    """crc32c of a JSON value, however its file is laid out."""
    return google_crc32c.value(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def crc_bytes(crc: int) -> bytes:
    return crc.to_bytes(CRC_BYTES, "little")


def crc_of(parts: Sequence[np.ndarray], first: int = 0) -> int:
    """crc32c of contiguous arrays, one after the other, going on from `first`."""
    crc = first
    for part in parts:
        crc = google_crc32c.extend(crc, part.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType]
    return crc


def block_and_whole_crcs(rows: np.ndarray, block: int) -> tuple[np.ndarray, int]:
    """(crc32c of each `block` rows of a contiguous array [n, d], the last perhaps fewer: uint32 [ceil(n/block)]; crc32c of all).

    Both of a block while it is in the processor's cache, and never long: Python's lock is held meanwhile.
    """
    crcs, crc = [], 0
    for a in range(0, len(rows), block):
        part = rows[a : a + block].reshape(-1).view(np.uint8)
        crcs.append(google_crc32c.extend(0, part))  # pyright: ignore[reportArgumentType]
        crc = google_crc32c.extend(crc, part)  # pyright: ignore[reportArgumentType]
    return np.array(crcs, "<u4"), crc


def file_crc(path: AnyPath) -> tuple[int, int]:
    """(crc32c of all but the last four bytes, the checksum in the last four), read in slabs of 8 MiB."""
    crc, last = 0, b""
    for slab in slabs(path):
        data = last + slab
        crc, last = google_crc32c.extend(crc, data[:-CRC_BYTES]), data[-CRC_BYTES:]
    if len(last) < CRC_BYTES:
        raise StoreError(f"{path} is truncated.")
    return crc, int.from_bytes(last, "little")


def slabs(path: AnyPath) -> Iterator[bytes]:
    """A file's bytes, 8 MiB at a time."""
    if isinstance(path, RemotePath):
        size = path.size()
        for a in range(0, size, SLAB_BYTES):
            yield path.read_range(a, min(size, a + SLAB_BYTES))
        return
    with path.open("rb") as file:
        while slab := file.read(SLAB_BYTES):
            yield slab


class Lock:
    """An exclusive flock on `<store>/.lock`, held while a writer is open. The kernel frees it when the process dies."""

    def __init__(self, store: Path, patience: float = 0.0) -> None:
        """Raises StoreError when another writer holds it, and goes on holding it for `patience` seconds."""
        self.path = store / LOCK
        until = time.monotonic() + patience
        while True:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A writer that finished may have removed the file between our open and flock: then lock the new one.
                if self.path.exists() and os.fstat(self._fd).st_ino == self.path.stat().st_ino:
                    return
            except OSError as error:
                os.close(self._fd)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    if time.monotonic() < until:
                        time.sleep(0.05)
                        continue
                    raise StoreError(
                        f"{store} is being written by another process; wait for it or give another name."
                    ) from None
                raise StoreError(f"{store} cannot be locked: {error.strerror}.") from None
            os.close(self._fd)

    def check(self) -> None:
        """Held is held: the kernel keeps other writers out."""

    def release(self, *, remove: bool = False) -> None:
        """Free the lock; `remove` also deletes its file (the store is finished)."""
        if self._fd < 0:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        self._fd = -1
