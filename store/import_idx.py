"""IDX files (MNIST's): two zero bytes, a type, the number of dimensions, then the dimensions and the values, big-endian."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import numpy as np
import torch

from ..errors import StoreError
from .sources import BEST_RATIO, Source, matrix_source, stream

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx_source(path: Path, site: str | None) -> Source:
    """An IDX file, gzipped or not: [N, ...] as float32 rows [N, product of the rest].

    The header is believed only if the file has exactly the bytes that it promises; a gzipped one is decompressed
    once to count them.

    Raises:
        StoreError: not IDX, lying, damaged, or without a second dimension (labels).
    """
    try:
        with _open(path) as file:
            shape, dtype = _header(path, file)
            promised = math.prod(shape) * dtype.itemsize
            if not _has(path, file, promised):
                raise StoreError(f"{path} is damaged: its header promises {promised} bytes of values, which it does not hold.")
    except (OSError, EOFError, zlib.error):
        raise StoreError(f"{path} cannot be read or is damaged.") from None
    if len(shape) < 2:
        raise StoreError(f"{path} has shape {list(shape)}: these are labels, not rows.")

    def slabs() -> Iterator[torch.Tensor]:
        with _open(path) as file:
            _header(path, file)
            for piece in stream(path, file, shape, dtype):
                # A double beyond float32's range becomes infinite, and the writer drops and counts it.
                with np.errstate(over="ignore"):
                    yield torch.from_numpy(piece.reshape(len(piece), -1).astype(np.float32))

    return matrix_source(path, site, (shape[0], math.prod(shape[1:])), "float32", slabs)


def _open(path: Path) -> BufferedIOBase:
    return cast(BufferedIOBase, gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _header(path: Path, file: BufferedIOBase) -> tuple[tuple[int, ...], np.dtype]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES or not start[3]:
        raise StoreError(f"{path} is not an IDX file.")
    sizes = file.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise StoreError(f"{path} is not an IDX file: its header ends early.")
    return tuple(np.frombuffer(sizes, ">u4").tolist()), np.dtype(_TYPES[start[2]])


def _has(path: Path, file: BufferedIOBase, promised: int) -> bool:
    """Whether exactly `promised` bytes are left in `file`."""
    size = path.stat().st_size
    if path.suffix != ".gz":
        return size - file.tell() == promised
    if promised > BEST_RATIO * size:
        return False
    left = promised
    while left >= 0 and (data := file.read(2**20)):
        left -= len(data)
    return left == 0
