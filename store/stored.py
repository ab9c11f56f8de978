"""What an archive's manifest says of each compressed file, and whether the file is so.

The checksum of a whole file is the zlib crc32, not crc32c: in a file made of parts that each end in their own crc32c, one
such part can be exchanged for another and crc32c over the file stays the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

from .files import slabs
from .layout import MANIFEST, Array
from .manifest import Line
from .places import AnyPath


def stored_of(parts: Iterable[bytes | memoryview]) -> list[int]:
    """[bytes, crc32] of a file of these parts."""
    size = crc = 0
    for part in parts:
        size, crc = size + len(part), zlib.crc32(part, crc)
    return [size, crc]


def stored_sound(line: Line, paths: Sequence[str] | None) -> bool:
    """Whether `line` gives [bytes, crc32] for exactly the arrays at `paths`; None: for a plain store, which has none."""
    stored = line.stored
    if paths is None or not isinstance(stored, dict):
        return paths is stored is None
    whole = (isinstance(v, list) and len(v) == 2 and all(type(n) is int and n >= 0 for n in v) for v in stored.values())
    return sorted(stored) == sorted(paths) and all(whole)


def expected_bytes(array: Array, line: Line, chunk_rows: int) -> int:
    """Exact size of the file of `line`'s chunk."""
    return array.chunk_bytes(chunk_rows) if line.stored is None else line.stored[array.path][0]


def stored_problem(file: AnyPath, stored: list[int]) -> str | None:
    """A sentence if the compressed `file` is not, byte for byte, what `stored` ([bytes, crc32]) says."""
    try:
        found = stored_of(slabs(file))
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}."
    if found != stored:
        return f"{file} does not match its checksum in {MANIFEST}: it is damaged or belongs to another store."
    return None
