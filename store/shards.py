"""The chunk file of an archive: a Zarr shard that is written and read without zarr.

    <block 0> <crc32c> <block 1> <crc32c> ... <index> <crc32c>

A block is 256 rows (see layout.block_rows) as one blosc frame, the index (offset, size) of each block with its crc32c as
uint64, and every number little-endian. We write blocks in order and without gaps, and read no shard that is otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]

from ..errors import StoreError
from .files import crc_bytes, crc_of
from .layout import CRC_BYTES

# One thread a frame, as zarr has it too: we compress several frames at a time instead, which pays better.
blosc.use_threads = False

LARGEST_BLOCK = blosc.MAX_BUFFERSIZE
_ENTRY = np.dtype([("offset", "<u8"), ("size", "<u8")])
# A frame's header: blosc version, lz4 version, flags, item size, raw bytes, bytes of blosc's own blocks, frame bytes.
_HEADER = struct.Struct("<BBBBIII")
_DAMAGED = "{} is damaged: {}; `splinterp verify --full` checks the others."


def encode_block(rows: np.ndarray) -> bytes:
    """A block of contiguous `rows` as its blosc frame and crc32c."""
    frame = blosc.compress(rows, b"lz4", 5, blosc.BITSHUFFLE, 0)
    return frame + crc_bytes(google_crc32c.value(frame))


def encode_index(sizes: Sequence[int]) -> bytes:
    """The index of blocks of these sizes, in order, and its crc32c."""
    entries = np.empty(len(sizes), _ENTRY)
    entries["size"] = sizes
    entries["offset"] = np.cumsum(sizes) - sizes
    index = entries.tobytes()
    return index + crc_bytes(google_crc32c.value(index))


def index_bytes(blocks: int) -> int:
    """Size of the index of a shard with `blocks` blocks."""
    return blocks * _ENTRY.itemsize + CRC_BYTES


def decode_index(data: bytes, file_bytes: int, block_bytes: int, where: Path) -> np.ndarray:
    """Where each block begins and the last ends, [blocks + 1] int64, from the index of a file of `file_bytes` bytes.

    Raises:
        StoreError: the index is damaged, or speaks of blocks that cannot lie so in the file `where`.
    """
    if google_crc32c.value(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise StoreError(_DAMAGED.format(where, "its index does not match its checksum"))
    entries = np.frombuffer(data[:-CRC_BYTES], _ENTRY)
    least, most = _HEADER.size + CRC_BYTES, block_bytes + blosc.MAX_OVERHEAD + CRC_BYTES
    # Sizes first: within bounds they cannot overflow when they are added.
    if not ((entries["size"] >= least) & (entries["size"] <= most)).all():
        raise StoreError(_DAMAGED.format(where, "its index gives blocks of impossible sizes"))
    ends = np.concatenate([[0], np.cumsum(entries["size"].astype(np.int64))])
    if not (entries["offset"] == ends[:-1].astype(np.uint64)).all() or ends[-1] + len(data) != file_bytes:
        raise StoreError(_DAMAGED.format(where, "its index does not fit its size"))
    return ends


def decode_block(data: np.ndarray, into: memoryview, where: Path) -> None:
    """Decode a block (frame and crc32c, uint8 [bytes]) to exactly fill `into`.

    Raises:
        StoreError: it is damaged, or would not fill `into`; named by `where`.
    """
    frame = data[:-CRC_BYTES]
    if crc_of([frame]) != int.from_bytes(data[-CRC_BYTES:].tobytes(), "little"):
        raise StoreError(_DAMAGED.format(where, "a block does not match its checksum"))
    # blosc trusts a frame's own sizes.
    *_, raw, _, size = _HEADER.unpack(frame[: _HEADER.size].tobytes())
    if raw != len(into) or size != len(frame):
        raise StoreError(_DAMAGED.format(where, "a block has the wrong size"))
    try:
        blosc.decompress(frame, into)
    except (RuntimeError, ValueError):
        raise StoreError(_DAMAGED.format(where, "a block cannot be decompressed")) from None
