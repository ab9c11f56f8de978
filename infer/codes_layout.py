"""How a store of codes lies on disk, and whether one lies so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from ..quantities import is_count
from ..store.files import read_json
from ..store.layout import CODECS, CRC_BYTES, METADATA
from ..store.places import sizes

FORMAT = "splinterp codes 1"
# Numbers in a chunk of a store with at least as many of them; of one with fewer they are one chunk.
CHUNK = 2**21
ARRAYS = {"indptr": np.dtype("<i8"), "indices": np.dtype("<i4"), "data": np.dtype("<f4"), "rows": np.dtype("<i8")}


def array_metadata(dtype: np.dtype, length: int, chunk: int) -> dict[str, Any]:
    """An array's zarr.json."""
    return {
        "zarr_format": 3, "node_type": "array", "shape": [length], "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if dtype.kind == "f" else -1, "codecs": CODECS, "attributes": {}, "storage_transformers": [],
    }  # fmt: skip


def shape_of(path: Path, attributes: dict[str, Any]) -> tuple[tuple[int, int], int]:
    """(rows, latents) and the number of codes, by the attributes of the store at `path`. Raises StoreError where they do not say."""
    shape, nnz = attributes.get("shape"), attributes.get("nnz")
    if isinstance(shape, list) and len(shape) == 2 and is_count(shape[0]) and is_count(shape[1]) and is_count(nnz):
        return (shape[0], shape[1]), nnz
    raise StoreError(f"{path / METADATA} is damaged: it does not say how many codes there are; encode again with --force.")


def check_array(folder: Path, dtype: np.dtype, length: int) -> None:
    """See that an array is as it is written: its metadata, and the size of every chunk file.

    Raises:
        StoreError: it is not.
    """
    size = CHUNK if length >= CHUNK else max(1, length)
    try:
        whole, found = read_json(folder / METADATA) == array_metadata(dtype, length, size), sizes(folder)
    except OSError:
        whole, found = False, dict[str, int]()
    # Counted against the files that are there: a header that lies has no time spent on it.
    chunks = -(-length // size)
    if not whole or chunks > len(found) or any(found.get(f"c.{i}") != size * dtype.itemsize + CRC_BYTES for i in range(chunks)):
        raise StoreError(
            f"{folder} is damaged: it does not hold {length:,} numbers of {dtype.name}; encode again with --force."
        )
