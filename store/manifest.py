"""One line a committed chunk: log.jsonl, appended to while writing, and manifest.jsonl, the table of contents afterwards.

A chunk counts from the moment its line is on disk. A line holds the chunk's index, rows, the crc32c of each array's
chunk and of every block of a site's rows, per site the column sums (float64), the norms' (sum, sum of squares, min, max) and
histogram, and where the source stood at the end of the chunk's pool generation; in an archive also the size and checksum of each array's
file. A later line for the same chunk replaces an earlier one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from ..errors import StoreError
from ..quantities import parse_json
from .files import write_all, write_bytes
from .places import AnyPath

# What a line leaves out where it says nothing, as lines did before they had it.
OPTIONAL = ("dropped_outliers", "histograms", "stored")
_SEAL = b',"line_crc32c":'


@dataclass(frozen=True)
class Line:
    """One committed chunk.

    `crc32c` is keyed by array path, `blocks`, `sums` and `norms` by site. `blocks` is base64 of uint32 little-endian numbers: the
    crc32c of each 256 rows of the chunk, without its padding, so that a reader can check what it reads without reading the chunk.
    `sums` is base64 of float64 little-endian vectors [d]; a finished store's manifest has none (its sites' metadata has the mean).
    `generation_rows` rows, in stream order, make up pool generation `generation`; when its last row had been taken,
    the writer had been offered `offered` rows in all and had dropped `dropped` of them, `dropped_outliers` of these for their
    norm. `histograms` is by site (see histogram.py); lines of older stores have none. `crc32c` is of the raw rows, and `stored`, of
    an archive's lines only, gives by array path the compressed file's [bytes, crc32] (see stored.py).
    """

    chunk: int
    rows: int
    crc32c: dict[str, int]
    blocks: dict[str, str]
    sums: dict[str, str]
    norms: dict[str, list[float]]
    generation: int
    generation_rows: int
    offered: int
    dropped: int
    dropped_outliers: int = 0
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)
    stored: dict[str, list[int]] | None = None

    def same_rows(self, other: Line) -> bool:
        """Whether both lines speak of the same bytes at the same place of the stream."""
        return (self.chunk, self.rows, self.crc32c, self.generation_rows, self.offered) == (
            other.chunk,
            other.rows,
            other.crc32c,
            other.generation_rows,
            other.offered,
        )

    def encode(self) -> bytes:
        value = {key: part for key, part in asdict(self).items() if part or key not in OPTIONAL}
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def encode(values: np.ndarray) -> str:
    """Base64 of the array's bytes: `sums` and `blocks` in a line."""
    return base64.b64encode(values.tobytes()).decode()


def decode_sums(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f8")


def decode_blocks(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<u4")


def sealed(line: bytes) -> bytes:
    """A log's line with its own crc32c as its last entry: nothing else speaks of a store that is being written."""
    return line[: -len(b"}\n")] + _SEAL + b"%d}\n" % google_crc32c.value(line)


def _unsealed(line: bytes) -> bytes:
    """The line as it was before `sealed`; one without a seal (a manifest's, or of an older log) as it is. Raises ValueError for another seal."""
    body, seal, crc = line.rpartition(_SEAL)
    if not seal:
        return line
    body += b"}\n"
    if int(crc.removesuffix(b"}\n")) != google_crc32c.value(body):
        raise ValueError("the line does not match its checksum")
    return body


def parse(data: bytes, where: AnyPath) -> tuple[dict[int, Line], int]:
    """The lines by chunk, and the length of the sound part of `data`: a torn last line is left out.

    Raises:
        StoreError: a line other than the last is damaged.
    """
    lines: dict[int, Line] = {}
    sound = 0
    pieces = data.splitlines(keepends=True)
    for number, piece in enumerate(pieces, 1):
        try:
            value: dict[str, Any] = parse_json(_unsealed(piece)) if piece.endswith(b"\n") else {}
            if value.get("withdrawn"):
                lines.pop(value["chunk"], None)
            elif type(value["chunk"]) is int:
                lines[value["chunk"]] = Line(**value)
            else:
                raise TypeError("a chunk has a number")
        except (ValueError, TypeError, KeyError, AttributeError):
            if number == len(pieces):
                break
            raise StoreError(
                f"{where} is damaged in line {number}; restore the file, or begin the store again with --force."
            ) from None
        sound += len(piece)
    return lines, sound


def read(path: AnyPath) -> tuple[dict[int, Line], int]:
    """The manifest at `path` as (lines by chunk, crc32c of the file). A missing file has no lines."""
    if not path.exists():
        return {}, 0
    data = path.read_bytes()
    return parse(data, path)[0], google_crc32c.value(data)


def publish(path: AnyPath, lines: Iterable[Line]) -> int:
    """Rewrite the manifest sorted by chunk, without the column sums; returns its crc32c."""
    data = b"".join(replace(line, sums={}).encode() for line in sorted(lines, key=lambda line: line.chunk))
    write_bytes(path, data)
    return google_crc32c.value(data)


def fingerprint(lines: Iterable[Line]) -> str:
    """16 hex digits that change when any stored row or the order of rows does."""
    digest = hashlib.sha256()
    for line in sorted(lines, key=lambda line: line.chunk):
        digest.update(json.dumps([line.chunk, line.rows, sorted(line.crc32c.items())]).encode())
    return digest.hexdigest()[:16]


class Log:
    """The commit log of a store being written; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Opens (or makes) the log and cuts off a torn last line, so that nothing is appended to a fragment.

        Raises:
            StoreError: a line other than the last is damaged.
        """
        data = path.read_bytes() if path.exists() else b""
        self.lines, self._size = parse(data, path)
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if len(data) != self._size:
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)

    def commit(self, line: Line) -> None:
        """Append `line` durably: after this the chunk counts."""
        self._append(sealed(line.encode()))
        self.lines[line.chunk] = line

    def withdraw(self, chunk: int) -> None:
        """Say durably that a committed chunk no longer counts (it is about to be replaced)."""
        self._append(sealed(json.dumps({"chunk": chunk, "withdrawn": True}).encode() + b"\n"))
        self.lines.pop(chunk, None)

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, data: bytes) -> None:
        with self._lock:
            try:
                write_all(self._fd, memoryview(data))
                os.fsync(self._fd)
            except OSError:
                # Half a line must not stay in front of another thread's whole one.
                os.ftruncate(self._fd, self._size)
                raise
            self._size += len(data)
