"""NumPy's own files, read as streams: .npy, and .npz out of the zip."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from tokenize import TokenError
from typing import cast

import numpy as np
import torch
from numpy.lib import format as npy_format

from ..errors import StoreError
from .sources import BEST_RATIO, Source, choose, matrix_source, native, opened, require_float, state_of, steps, stream

# Whatever numpy's parser comes to in a header: it is Python's own, for a dictionary.
HEADER_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    EOFError,
    SyntaxError,
    TokenError,
    RecursionError,
    MemoryError,
)
# And all that zipfile raises for damaged, encrypted or exotically compressed archives.
_DAMAGE = (*HEADER_DAMAGE, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, RuntimeError)
_HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


def npy_source(path: Path, site: str | None) -> Source:
    """An array in a .npy file, read as a stream; one in Fortran order through a memory map."""
    try:
        seen = state_of(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (*HEADER_DAMAGE, OSError):
        raise StoreError(f"{path} is not a plain .npy array; pickled and damaged arrays are not read.") from None
    dtype, shape, kind = require_float(path, array.dtype), array.shape, array.dtype

    def slabs() -> Iterator[torch.Tensor]:
        if not array.flags.c_contiguous:
            yield from (native(array[a:b]) for a, b in steps(shape, kind.itemsize))
            return
        # Not through the map: where a file is written anew while it is read, that ends a process without a word.
        with opened(path, seen) as file:
            file.seek(array.offset)
            for piece in stream(path, file, shape, kind):
                yield native(piece)

    return matrix_source(path, site, shape, dtype, slabs)


def npz_source(path: Path, site: str | None) -> Source:
    """The only member of two or three dimensions of a .npz file, or the one named like the site."""
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {
                info.filename.removesuffix(".npy"): _header(archive, info)
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
    except _DAMAGE:
        raise _damaged(path) from None
    name = choose(path, site, {name: shape for name, (shape, *_) in headers.items()}, "members")
    shape, fortran, kind, sound = headers[name]
    dtype = require_float(path, kind)
    # A member's size is what the archive says it is.
    if not sound or math.prod(shape) * kind.itemsize > BEST_RATIO * path.stat().st_size:
        raise StoreError(f"{path} is damaged: '{name}' is not as large as its header says.")
    if fortran and len(shape) > 1 and min(shape) > 1:
        raise StoreError(f"{path} holds '{name}' column by column; save it from np.ascontiguousarray first.")

    def slabs() -> Iterator[torch.Tensor]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
                file = cast(BufferedIOBase, member)
                _read_header(file)
                for piece in stream(path, file, shape, kind):
                    yield native(piece)
        except _DAMAGE:
            raise _damaged(path) from None

    return matrix_source(path, site, shape, dtype, slabs)


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype, bool]:
    """(shape, whether in Fortran order, dtype, whether the member has exactly the bytes that follow from them)."""
    with archive.open(info) as member:
        shape, fortran, dtype = _read_header(cast(BufferedIOBase, member))
        return shape, fortran, dtype, info.file_size - member.tell() == math.prod(shape) * dtype.itemsize


def _read_header(file: BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy_format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"unknown .npy version {version}")
    return _HEADERS[version](file)


def _damaged(path: Path) -> StoreError:
    return StoreError(f"{path} is not a plain .npz archive; encrypted and damaged ones are not read.")
