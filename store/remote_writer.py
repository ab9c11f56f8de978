"""Writing to an object store, which can neither lock nor append: a fence in place of the lock, an object a chunk as the log."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterable

from ..errors import StoreError
from .files import json_crc
from .layout import KEY, METADATA, REMOTE_LOG, WRITER
from .manifest import Line, parse
from .places import RemotePath, first_line


class Fence:
    """The newest writer's random id in `<store>/.writer`; every writer sees to it that the id is its own before it goes on.

    Of several that begin a new store at once one wins (where the file system can create an object conditionally: S3, GCS,
    memory). A writer that resumes takes the store over; the older one stops before its next chunk. Between that look and the
    put another may still take over: a chunk already on its way can arrive late. Both writers were begun with the same
    settings, so from the same source it holds the same bytes; from another, `verify --full` names the chunk.
    """

    def __init__(self, store: RemotePath, *, take_over: bool) -> None:
        """Raises StoreError when somebody else has begun here and `take_over` is not given."""
        self.store, self.path, self._id = store, store / WRITER, uuid.uuid4().hex.encode()
        if take_over:
            self.path.write_bytes(self._id)
            return
        try:
            self.path.create(self._id)
        except FileExistsError:
            raise StoreError(
                f"{store} is being written by another process, or its writer was killed; wait for it, give another name or --force."
            ) from None

    def check(self) -> None:
        """Raises StoreError when another writer has taken the store over, or removed it."""
        if not self._is_ours():
            raise StoreError(f"{self.store} was taken over by another writer, so this one stops; let only one write at a time.")

    def release(self, *, remove: bool = False) -> None:
        """`remove` deletes the object (the store is finished); otherwise the next writer takes it over."""
        if remove and self._is_ours():
            self.path.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        try:
            return self.path.read_bytes() == self._id
        except FileNotFoundError:
            return False


class RemoteLog:
    """The lines of committed chunks, an object each in `<store>/.log/`; as manifest.Log otherwise."""

    def __init__(self, fence: Fence) -> None:
        """Raises StoreError when an object of the log is damaged."""
        self._folder, self._fence = fence.store / REMOTE_LOG, fence
        self.lines = read_log(fence.store)
        self._lock = threading.Lock()

    def commit(self, line: Line) -> None:
        """Put `line`: after this the chunk counts."""
        self._fence.check()
        (self._folder / f"{line.chunk}.json").write_bytes(line.encode())
        with self._lock:
            self.lines[line.chunk] = line

    def withdraw(self, chunk: int) -> None:
        """A committed chunk no longer counts (it is about to be replaced)."""
        self._fence.check()
        (self._folder / f"{chunk}.json").unlink(missing_ok=True)
        with self._lock:
            self.lines.pop(chunk, None)

    def close(self) -> None:
        """Nothing is open."""


def read_log(store: RemotePath) -> dict[int, Line]:
    """The committed chunks of a store being written, fetched together.

    Raises:
        StoreError: an object is damaged or cannot be read.
    """
    folder = store / REMOTE_LOG
    keys = [(folder / name).key for name in folder.sizes()]
    lines: dict[int, Line] = {}
    found = folder.call(lambda: store.fs.cat(keys, on_error="return")) if keys else {}
    for key, data in found.items():
        if isinstance(data, FileNotFoundError):  # its writer has finished meanwhile
            continue
        where = folder / key.rpartition("/")[2]
        if isinstance(data, Exception):
            raise StoreError(f"{where} cannot be read: {first_line(data)}.")
        one, sound = parse(data, where)
        if sound != len(data) or len(one) != 1:
            raise StoreError(f"{where} is damaged; delete it, and --resume writes its chunk again.")
        lines |= one
    return lines


def remove_store(store: RemotePath) -> None:
    """Delete a store of ours. Its root says "writing" at once and goes last: at no moment does a part read as a whole.

    A removal that was interrupted can so be repeated. A writer at work finds its id gone and stops.
    """
    root = json.loads((store / METADATA).read_bytes())
    ours = root["attributes"][KEY] | {"status": "writing"}
    ours.pop("attributes_crc32c", None)
    root["attributes"][KEY] = ours | {"attributes_crc32c": json_crc(ours)}
    (store / METADATA).write_bytes(json.dumps(root).encode())
    (store / WRITER).unlink(missing_ok=True)
    delete(path for path in store.everything_below() if path != store / METADATA)
    (store / METADATA).unlink()


def delete(paths: Iterable[RemotePath]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
