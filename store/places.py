"""Where a store lies: a local path, or an object store reached through fsspec (s3://, gs://, memory://, ...)."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import StoreError

T = TypeVar("T")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)")
_COLLAPSED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")
_LOCAL = ("file", "local")
# Seconds before each further try; s3fs and gcsfs have by then tried five times of their own.
_PAUSES = (0.2, 1.0)
_FINAL = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    TypeError,
    ValueError,
    NotImplementedError,
)
_UNABLE = (NotImplementedError, TypeError, ValueError)


class RemotePath:
    """An object, or the objects under a prefix, of a file system that fsspec knows; it reads like a pathlib.Path.

    Nothing is cached, so that what another process wrote is seen. Whatever a file system raises arrives as an OSError whose
    `strerror` is one sentence's part and whose `filename` is the URL.
    """

    def __init__(self, fs: Any, scheme: str, key: str) -> None:
        self.fs, self._scheme, self.key = fs, scheme, key

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.fs, self._scheme, f"{self.key}/{name}")

    def __str__(self) -> str:
        return f"{self._scheme}://{self.key.lstrip('/')}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.fs, self._scheme, self.key.rpartition("/")[0])

    def absolute(self) -> RemotePath:
        return self

    def resolve(self) -> RemotePath:
        return self

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Object stores have no folders: there is nothing to make."""

    def exists(self) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def size(self) -> int:
        return int(self.call(lambda: self.fs.info(self.key))["size"])

    def sizes(self) -> dict[str, int]:
        """Bytes of each object directly under this prefix, by name, from one listing; empty where there is none."""
        return {entry["name"].rpartition("/")[2]: int(entry["size"]) for entry in self._entries() if entry["type"] == "file"}

    def iterdir(self) -> Iterator[RemotePath]:
        return iter([self / entry["name"].rstrip("/").rpartition("/")[2] for entry in self._entries()])

    def read_bytes(self) -> bytes:
        return self.call(lambda: self.fs.cat_file(self.key))

    def read_range(self, a: int, b: int) -> bytes:
        """Bytes [a, b)."""
        return self.call(lambda: self.fs.cat_file(self.key, start=a, end=b))

    def write_bytes(self, data: bytes) -> None:
        """Replace the object whole, and see that it has arrived whole."""
        self.call(lambda: self.fs.pipe_file(self.key, data))
        size = self.size()
        if size != len(data):
            raise OSError(errno.EIO, f"{size} bytes arrived instead of {len(data)}", str(self))

    def create(self, data: bytes) -> None:
        """Write the object unless it exists: of several that try at once one wins, where the file system can do that.

        Where it cannot, a look comes first; two that look at the same time may then both go on.

        Raises:
            FileExistsError: it exists, with other content.
        """
        try:
            self.call(lambda: self.fs.pipe_file(self.key, data, mode="create"))
        except FileExistsError:
            # A try whose answer was lost may have been our own.
            if self.read_bytes() != data:
                raise
        except OSError as error:
            if not isinstance(error.__cause__, _UNABLE) and "not implemented" not in str(error).lower():
                raise
            if self.exists():
                raise FileExistsError(errno.EEXIST, "it exists already", str(self)) from None
            self.write_bytes(data)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.call(lambda: self.fs.rm_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def everything_below(self) -> list[RemotePath]:
        """Every object under this prefix, at any depth."""
        self.fs.invalidate_cache()
        found = self.call(lambda: self.fs.find(self.key))
        # Not acts.zarr-other: what is found may be removed.
        return [RemotePath(self.fs, self._scheme, key) for key in found if key.startswith(f"{self.key}/")]

    def call(self, act: Callable[[], T]) -> T:
        """`act()`, tried again a few times where that may help, with every error told as an OSError."""
        for pause in (*_PAUSES, None):
            try:
                return act()
            except Exception as error:  # each file system has its own
                if pause is None or is_final(error):
                    raise told(error, str(self)) from error
                time.sleep(pause)
        raise AssertionError

    def _kind(self) -> str | None:
        try:
            self.fs.invalidate_cache()
            return self.call(lambda: self.fs.info(self.key))["type"]
        except FileNotFoundError:
            return None

    def _entries(self) -> list[dict[str, Any]]:
        try:
            self.fs.invalidate_cache()
            entries = self.call(lambda: self.fs.ls(self.key, detail=True))
        except FileNotFoundError:
            return []
        # Some stores list the prefix itself as an empty object.
        return [entry for entry in entries if entry["name"].strip("/") != self.key.strip("/")]


AnyPath = Path | RemotePath
Location = str | os.PathLike[str] | RemotePath


def place(path: Location) -> AnyPath:
    """A local path as Path, a URL as RemotePath; file:// and local:// are local. Touches no network.

    Raises:
        StoreError: the URL names a bucket and nothing in it, or a file system that is not installed; or pathlib has spoilt it.
    """
    if isinstance(path, RemotePath):
        return path
    found = _URL.fullmatch(os.fspath(path)) if isinstance(path, str) else None
    if found is None:
        local = Path(path)
        if not isinstance(path, str) and _COLLAPSED.match(str(local)) and not Path(local.parts[0]).exists():
            raise StoreError(
                f"{local} was a URL before it became a Path, which has taken a slash from it; give it as a string."
            )
        return local
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    if scheme in _LOCAL:
        return Path(rest)
    import fsspec

    try:
        # Listings are not cached: another process may be writing.
        fs, key = fsspec.core.url_to_fs(f"{scheme}://{rest}", use_listings_cache=False)
    except ImportError as error:
        raise StoreError(
            f'{path} needs a package that is not installed: pip install "splinterp[remote]" brings s3:// and gs://; {first_line(error)}.'
        ) from None
    except Exception as error:  # each file system has its own
        raise StoreError(f"{path} cannot be reached: {first_line(error)}.") from None
    if ("/" not in key.strip("/") and scheme != "memory") or not key.strip("/"):
        raise StoreError(f"{path} names no store: give a bucket and a name in it, such as {scheme}://bucket/acts.zarr.")
    return RemotePath(fs, scheme, key)


def on_disk(path: AnyPath) -> Path:
    """A path that is known to be local, as such."""
    assert isinstance(path, Path)
    return path


def sizes(folder: AnyPath) -> dict[str, int]:
    """Bytes of each entry of a folder, by name; empty where there is none."""
    if isinstance(folder, RemotePath):
        return folder.sizes()
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def copy_files(source: Path, target: AnyPath) -> None:
    """Copy every file of the local folder `source` to `target`, folders within it included.

    Raises:
        OSError: as the system says, with the file's name.
    """
    for file in sorted(source.rglob("*")):
        if file.is_file():
            to = target
            for part in file.relative_to(source).parts:
                to.mkdir(parents=True, exist_ok=True)
                to = to / part
            to.write_bytes(file.read_bytes())


def cat_ranges(paths: Sequence[RemotePath], starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
    """Bytes [start, end) of each path, all fetched at the same time; those that fail are tried again.

    Raises:
        OSError: one that cannot be read, with its URL.
    """
    got: list[Any] = [None] * len(paths)
    left = list(range(len(paths)))
    for pause in (*_PAUSES, None):
        fs = paths[0].fs
        keys, begins, stops = [paths[i].key for i in left], [starts[i] for i in left], [ends[i] for i in left]
        for i, value in zip(left, fs.cat_ranges(keys, begins, stops, on_error="return"), strict=True):
            got[i] = value
        left = [i for i in left if not isinstance(got[i], bytes)]
        for i in left:
            if pause is None or is_final(got[i]):
                raise told(got[i], str(paths[i])) from got[i]
        if not left:
            break
        time.sleep(pause or 0)
    return got


def is_final(error: Exception) -> bool:
    """Whether trying again cannot help."""
    text = str(error).lower()
    return isinstance(error, _FINAL) or "credential" in text or "could not connect" in text  # botocore has tried for seconds


def told(error: Exception, where: str) -> OSError:
    """Any file system's error as an OSError with a plain `strerror` and the URL."""
    text = first_line(error)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, text if "bucket does not exist" in text else "there is no such object", where)
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "it exists already", where)
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, f"access was refused ({text}), see to your credentials", where)
    if "credential" in text.lower():
        return PermissionError(errno.EACCES, f"no credentials were accepted ({text})", where)
    return OSError(errno.EIO, text, where)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line without a full stop."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.strip().partition("\n")[0].rstrip(".") or type(error).__name__
