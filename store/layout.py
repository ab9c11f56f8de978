"""The on-disk layout, stated once: names, dtypes, chunk sizes and zarr metadata of a store.

<store>/zarr.json                  group; attributes {"splinterp": {...}}
<store>/log.jsonl                  while writing: one line a committed chunk (see manifest.py)
<store>/pool                       while writing: rows not yet in chunks (see spill.py)
<store>/manifest.jsonl             once complete: the same, in order
<store>/<site>/zarr.json           group; attributes: rows, mean, norm statistics
<store>/<site>/acts/zarr.json      array [N, d], chunks (R, d)
<store>/<site>/acts/c.<i>.0        R*d values, little-endian, then their crc32c (4 bytes, little-endian)
<store>/<column>/zarr.json         array [N] uint32, chunks (R,)
<store>/<column>/c.<i>

A compressed archive has the same arrays and chunks; each chunk file is then a shard (see shards.py).
A store on an object store has, until it is finished, also:
<store>/.log/<i>.json              the line of committed chunk i, in place of log.jsonl
<store>/.writer                    the id of its newest writer
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from ..errors import StoreError
from .places import AnyPath

STORE_VERSION = 2
KEY = "splinterp"
METADATA = "zarr.json"
LOG = "log.jsonl"
POOL = "pool"
RANKS = ".ranks"
MANIFEST = "manifest.jsonl"
LOCK = ".lock"
WRITER = ".writer"
REMOTE_LOG = ".log"
CRC_BYTES = 4
# Rows that are read and checked together.
BLOCK = 256
COLUMN_FILL = 0xFFFFFFFF
CHUNK_BYTES = 96 * 2**20
SMALLEST_CHUNK = 256
LARGEST_CHUNK = 2**20
LARGEST_POOL = 32  # chunks
CHUNKS_OF_A_SMALL_STORE = 16
# Rows that are shuffled, read and compressed as one.
BLOCK = 256
# What the attribute `compression` of an archive says; a plain store has no such attribute.
COMPRESSION = "blosc lz4 bitshuffle"
CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


@dataclass(frozen=True)
class Storage:
    """How one torch dtype lies on disk. The fill value is NaN: zarr reads a missing chunk as fill, and NaN shows."""

    name: str
    torch: torch.dtype
    numpy: np.dtype
    fill: Any
    zarr_fill: Any

    @property
    def itemsize(self) -> int:
        return self.numpy.itemsize


# zarr has no bfloat16: it is kept as its bits in uint16, and the array's attribute `torch_dtype` says so.
STORAGE = {
    "bfloat16": Storage("bfloat16", torch.bfloat16, np.dtype("<u2"), 0x7FC0, 0x7FC0),
    "float16": Storage("float16", torch.float16, np.dtype("<f2"), np.nan, "NaN"),
    "float32": Storage("float32", torch.float32, np.dtype("<f4"), np.nan, "NaN"),
}


@dataclass(frozen=True)
class Array:
    """One array of the store: a site's activations (d is an int) or a row column (d is None).

    `path` is relative to the store; `dtype` is a key of STORAGE or "uint32"; `compressed` in an archive.
    """

    path: str
    d: int | None
    dtype: str
    compressed: bool = False

    @property
    def numpy(self) -> np.dtype:
        return np.dtype("<u4") if self.d is None else STORAGE[self.dtype].numpy

    @property
    def fill(self) -> Any:
        return COLUMN_FILL if self.d is None else STORAGE[self.dtype].fill

    @property
    def row_bytes(self) -> int:
        return self.numpy.itemsize * (1 if self.d is None else self.d)

    def chunk_name(self, i: int) -> str:
        return f"c.{i}" if self.d is None else f"c.{i}.0"

    def chunk_index(self, name: str) -> int | None:
        """The chunk that a file of this name in the array's folder holds; None if it is no chunk file."""
        match = re.fullmatch(r"c\.(0|[1-9]\d*)" if self.d is None else r"c\.(0|[1-9]\d*)\.0", name)
        return int(match[1]) if match else None

    @overload
    def chunk_path(self, root: Path, i: int) -> Path: ...
    @overload
    def chunk_path(self, root: AnyPath, i: int) -> AnyPath: ...
    def chunk_path(self, root: AnyPath, i: int) -> AnyPath:
        return root / self.path / self.chunk_name(i)

    def chunk_bytes(self, chunk_rows: int) -> int:
        """Exact size of an uncompressed chunk file: full chunk (the last one is padded) plus its checksum."""
        return chunk_rows * self.row_bytes + CRC_BYTES

    def metadata(self, rows: int, chunk_rows: int) -> dict[str, Any]:
        """The array's zarr.json for `rows` rows."""
        tail = [] if self.d is None else [self.d]
        fill = COLUMN_FILL if self.d is None else STORAGE[self.dtype].zarr_fill
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [rows, *tail],
            "data_type": self.numpy.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk_rows, *tail]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": fill,
            "codecs": shard_codecs([block_rows(chunk_rows), *tail], self.numpy.itemsize) if self.compressed else CODECS,
            "attributes": {} if self.d is None else {"torch_dtype": self.dtype},
            "storage_transformers": [],
        }


def block_rows(chunk_rows: int) -> int:
    """Rows in an inner chunk of an archive: a block, or the whole chunk where blocks do not divide it."""
    return chunk_rows if chunk_rows % BLOCK else BLOCK


def shard_codecs(inner: list[int], itemsize: int) -> list[dict[str, Any]]:
    """Zarr's codecs of an archive's array with inner chunks of shape `inner`."""
    blosc = {"typesize": itemsize, "cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
    shard = {
        "chunk_shape": inner,
        "codecs": [CODECS[0], {"name": "blosc", "configuration": blosc}, CODECS[1]],
        "index_codecs": CODECS,
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": shard}]


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """A group's zarr.json."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def arrays_of(sites: dict[str, int], dtype: str, columns: Sequence[str], compressed: bool = False) -> list[Array]:
    """Every array of a store, sites first, in the order given."""
    acts = [Array(f"{site}/acts", d, dtype, compressed) for site, d in sites.items()]
    return acts + [Array(name, None, "uint32", compressed) for name in columns]


def check_name(name: str, what: str) -> None:
    """Refuse names that could leave the store's folder, hide in it, or collide with zarr's own files.

    Raises:
        StoreError: naming the name and the rule.
    """
    reserved = name.startswith((".", "__")) or name in (METADATA, LOG, MANIFEST, POOL)
    if not name or reserved or ".." in name or any(c in "/\\:" or not c.isprintable() for c in name) or len(name) > 200:
        raise StoreError(
            f"'{name}' cannot be the name of a {what}: use a plain name such as blocks.5.hook_resid_post, "
            "without slashes, colons, '..' or a leading dot."
        )


def default_chunk_rows(row_bytes: int, rows: int | None) -> int:
    """Rows a chunk for the widest site's `row_bytes`: the largest power of two within 96 MiB.

    Never more than 2**20 rows: with rows of a few bytes the permutation would outweigh them.
    A store known to be small gets about 16 chunks, so that shuffling and held-out blocks still mean something,
    but never fewer than 256 rows a chunk.
    """
    largest = min(LARGEST_CHUNK, 2 ** (max(1, CHUNK_BYTES // row_bytes).bit_length() - 1))
    if rows is None:
        return largest
    share = max(1, round(rows / CHUNKS_OF_A_SMALL_STORE))
    small = 2 ** max(0, round(float(np.log2(share))))
    return min(largest, max(SMALLEST_CHUNK, small))


def default_pool_chunks(row_bytes: int, chunk_rows: int, rows: int | None, memory: int) -> int:
    """Chunks in one pool buffer, so that two buffers of all arrays (`row_bytes` a row in all) stay within `memory` bytes.

    Between 1 and LARGEST_POOL, and no more than the planned rows need.
    """
    pool = min(LARGEST_POOL, memory // (2 * chunk_rows * row_bytes))
    if rows is not None:
        pool = min(pool, -(-rows // chunk_rows))
    return max(1, pool)
