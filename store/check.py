"""What is wrong with a store, if anything: the checks behind `open` (sizes) and `verify` (all of it, each checksum too)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from ..errors import StoreError
from ..nearest import did_you_mean_path
from . import manifest
from .files import file_crc, json_crc, read_json
from .layout import COMPRESSION, KEY, LOG, MANIFEST, METADATA, STORAGE, STORE_VERSION, Array, arrays_of, check_name
from .manifest import Line
from .places import AnyPath, Location, RemotePath, place, sizes
from .remote_writer import read_log
from .sound import check_line
from .stored import expected_bytes, stored_problem


@dataclass(frozen=True)
class Contents:
    """A store as its root zarr.json describes it; `arrays` and `chunk_rows` are what the files are measured against."""

    path: AnyPath
    attributes: dict[str, Any]

    @property
    def complete(self) -> bool:
        return self.attributes["status"] == "complete"

    @property
    def rows(self) -> int:
        return self.attributes["rows"]

    @property
    def chunk_rows(self) -> int:
        return self.attributes["chunk_rows"]

    @property
    def compressed(self) -> bool:
        return "compression" in self.attributes

    @property
    def arrays(self) -> list[Array]:
        return arrays_of(self.attributes["sites"], self.attributes["dtype"], self.attributes["columns"], self.compressed)


def load(path: AnyPath) -> Contents:
    """Read and validate the root attributes.

    Raises:
        StoreError: no such path, not a Zarr group, not a splinterp store, a newer format, or a damaged zarr.json.
    """
    if not path.exists():
        raise StoreError(no_store_sentence(path))
    try:
        root = read_json(path / METADATA)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{path} is not a store: it holds no {METADATA}; name one that `splinterp harvest` or `splinterp import` wrote."
        ) from None
    except OSError as error:
        raise StoreError(f"{path / METADATA} cannot be read: {error.strerror}.") from None
    if root.get("zarr_format") != 3 or root.get("node_type") != "group":
        raise StoreError(f"{path} is not a store: its {METADATA} does not describe a Zarr v3 group.")
    attributes = root.get("attributes")
    ours = attributes.get(KEY) if isinstance(attributes, dict) else None
    if not isinstance(ours, dict):
        raise StoreError(f"{path} is a Zarr group, but not a splinterp store; bring its rows in with `splinterp import`.")
    version = ours.get("format_version")
    if isinstance(version, int) and version != STORE_VERSION:
        what = (
            "newer than this splinterp reads; install a newer splinterp"
            if version > STORE_VERSION
            else ("of before splinterp 0.1; harvest it again")
        )
        raise StoreError(f"{path} has format version {version}, {what}.")
    crc = ours.pop("attributes_crc32c", None)
    if crc != json_crc(ours):
        raise StoreError(f"{path / METADATA} is damaged: its splinterp attributes do not match their checksum.")
    if not _sound(ours):
        raise StoreError(f"{path / METADATA} is damaged: its splinterp attributes do not describe a store.")
    for name in ours["sites"]:
        check_name(name, "site")
    for name in ours["columns"]:
        check_name(name, "column")
    return Contents(path, ours)


def _sound(ours: dict[str, Any]) -> bool:
    sites, columns = ours.get("sites"), ours.get("columns")
    return (
        ours.get("format_version") == STORE_VERSION
        and ours.get("status") in ("writing", "complete")
        and isinstance(ours.get("dtype"), str)
        and ours["dtype"] in STORAGE
        and all(type(ours.get(key)) is int for key in ("rows", "chunk_rows", "seed"))
        and ours["rows"] >= 0 < ours["chunk_rows"]
        and isinstance(sites, dict)
        and len(sites) > 0
        and all(type(d) is int and d > 0 for d in sites.values())
        and isinstance(ours.get("metadata_crc32c", None if ours["status"] == "complete" else {}), dict)
        and isinstance(ours.get("max_norms", {}), dict)
        and all(type(norm) is float for norm in ours.get("max_norms", {}).values())
        and type(ours.get("dropped_outliers", 0)) is int
        and isinstance(columns, list)
        and all(isinstance(name, str) for name in columns)
        and ours.get("compression", COMPRESSION) == COMPRESSION
    )


def committed_lines(contents: Contents) -> list[Line]:
    """The manifest's lines in order: all of a complete store, the leading gapless ones of an unfinished store.

    Raises:
        StoreError: the manifest is missing, damaged, or not the one that the root's checksum speaks of.
    """
    path = contents.path / (MANIFEST if contents.complete else LOG)
    if isinstance(contents.path, RemotePath) and not contents.complete:
        lines, crc = read_log(contents.path), 0
    else:
        lines, crc = manifest.read(path)
    chunks = -(-contents.rows // contents.chunk_rows)
    if contents.complete:
        if not path.exists():
            raise StoreError(f"{path} is missing.")
        if crc != contents.attributes.get("manifest_crc32c"):
            raise StoreError(f"{path} does not match its checksum in {METADATA}: it is damaged or belongs to another store.")
        if len(lines) != chunks or set(lines) != set(range(chunks)):
            raise StoreError(f"{contents.path / METADATA} says {contents.rows} rows, which does not match {MANIFEST}.")
    leading, arrays = [], contents.arrays
    while (line := lines.get(len(leading))) is not None and (not leading or leading[-1].rows == contents.chunk_rows):
        check_line(line, contents.attributes["sites"], arrays, contents.chunk_rows, path)
        leading.append(line)
    if contents.complete and sum(line.rows for line in leading) != contents.rows:
        raise StoreError(f"{contents.path / METADATA} says {contents.rows} rows, which does not match {MANIFEST}.")
    return leading


def problems(contents: Contents, lines: list[Line]) -> Iterator[str]:
    """Everything wrong that needs no reading of chunks: metadata, and each chunk's presence and exact size."""
    if not contents.complete and not lines:
        return  # stopped, perhaps, while it was being begun: a resume begins it again
    for folder in [*contents.attributes["sites"], *(array.path for array in contents.arrays)]:
        yield from _metadata_problem(contents, f"{folder}/{METADATA}")
    for array in contents.arrays:
        yield from _chunk_problems(contents, array, lines)


def _metadata_problem(contents: Contents, name: str) -> Iterator[str]:
    file = contents.path / name
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        yield f"{file} is missing."
        return
    except OSError as error:
        yield f"{file} cannot be read: {error.strerror}."
        return
    if contents.complete and google_crc32c.value(data) != contents.attributes["metadata_crc32c"].get(name):
        yield f"{file} does not match its checksum in {METADATA}: it is damaged or belongs to another store."


def _chunk_problems(contents: Contents, array: Array, lines: list[Line]) -> Iterator[str]:
    folder = contents.path / array.path
    found = sizes(folder)
    if not found:
        yield f"{folder} is missing."
        return
    for i, line in enumerate(lines):
        expected = expected_bytes(array, line, contents.chunk_rows)
        size = found.pop(array.chunk_name(i), None)
        if size is None:
            yield f"{array.chunk_path(contents.path, i)} is missing."
        elif size != expected:
            what = "truncated" if size < expected else "too long"
            yield f"{array.chunk_path(contents.path, i)} is {what}: it has {size} bytes instead of {expected}."
    for name in sorted(found):
        # What a writer has not committed yet is no stranger; nor are the hidden files of file systems.
        running = not contents.complete and array.chunk_index(name) is not None
        if name != METADATA and not name.startswith(".") and not running:
            yield f"{folder / name} does not belong to the store; move it away."


def _checksum_problem(file: AnyPath, recorded: int | None) -> str | None:
    try:
        actual, trailing = file_crc(file)
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}."
    if actual != trailing:
        return f"{file} is damaged: its rows do not match the checksum at its end."
    if actual != recorded:
        return f"{file} does not match its checksum in {MANIFEST}: it is damaged or belongs to another store."
    return None


def verify(path: Location, *, full: bool, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """What is wrong with the store at `path`: one sentence a problem, naming the file; empty if it is sound.

    Args:
        full: also read every chunk and check its crc32c against both its last four bytes and the manifest; an archive's
            files are checked as they are, without decompressing.
        progress: called with (chunk files read, chunk files in all).

    Raises:
        StoreError: there is no such path, or its object store cannot be reached.
    """
    root = place(path)
    with reachable(root):
        if not root.exists():
            raise StoreError(no_store_sentence(root))
        try:
            contents = load(root)
            lines = committed_lines(contents)
        except StoreError as error:
            return [str(error)]
        found = list(problems(contents, lines))
    if not contents.complete:
        found.append(unfinished_sentence(contents))
    if full:
        reported = tuple(found)
        work = [(array, line) for array in contents.arrays for line in lines]
        for done, (array, line) in enumerate(work, 1):
            file = array.chunk_path(root, line.chunk)
            problem = (
                None
                if any(s.startswith(f"{file} ") for s in reported)
                else _checksum_problem(file, line.crc32c.get(array.path))
                if line.stored is None
                else stored_problem(file, line.stored[array.path])
            )
            if problem:
                found.append(problem)
            if progress:
                progress(done, len(work))
    return found


@contextlib.contextmanager
def reachable(path: AnyPath) -> Iterator[None]:
    """What an object store refuses while `path` is looked at, as a StoreError of one sentence; local errors as they are."""
    try:
        yield
    except OSError as error:
        if not isinstance(path, RemotePath):
            raise
        raise StoreError(f"{error.filename or path} cannot be read: {error.strerror or error}.") from None


def no_store_sentence(path: AnyPath) -> str:
    """Says that there is no store, and which one of its neighbours may have been meant."""
    meant = did_you_mean_path(path, lambda other: (other / METADATA).is_file()) if isinstance(path, Path) else ""
    return (
        f"There is no store at {path}; check the path{', or make one with `splinterp harvest`.' if not meant else '.'}{meant}"
    )


def unfinished_sentence(contents: Contents) -> str:
    """Says that a store is unfinished and how to get it finished."""
    source = contents.attributes.get("source")
    if source in ("import", "merge", "subset", "copy"):
        return f"{contents.path} is unfinished; if the {source} was interrupted, run `splinterp {source} ... --force` again."
    return f"{contents.path} is unfinished; if the harvest was interrupted, go on with `splinterp harvest ... --resume`."
