"""Rows from other programs' files: .npy and .safetensors, streamed in slabs into a new store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import StoreError
from .create import create
from .reader import Store

SLAB_BYTES = 32 * 2**20
_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Source:
    """A tensor in a file: `rows` rows of width `d`; `slabs()` gives them in order as tensors [n, d]."""

    path: Path
    rows: int
    d: int
    dtype: str
    slabs: Callable[[], Iterator[torch.Tensor]]


def import_files(
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    site: str = "imported",
    dtype: str | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Make a store of one site from the rows of `files`, in that order, shuffled like any store.

    A file holds one array [N, d] or [B, T, d] (taken as [B*T, d]): .npy, or .safetensors with a single such tensor or
    one named like the site. Rows that are not finite are dropped and counted.

    Args:
        dtype: of the store; None keeps the files' (float64 becomes float32).
        progress: called with (rows read, rows in all).

    Raises:
        StoreError: a file is missing, of another kind, not floating-point, or of another width; or `out` exists.
    """
    if not files:
        raise StoreError("Name at least one file to import.")
    sources = [open_source(Path(file), site) for file in files]
    for source in sources:
        if source.d != sources[0].d:
            raise StoreError(f"{source.path} has rows of width {source.d}, but {sources[0].path} of width {sources[0].d}.")
        if dtype is None and source.dtype != sources[0].dtype:
            raise StoreError(
                f"{source.path} holds {source.dtype}, but {sources[0].path} {sources[0].dtype}; choose one with --dtype."
            )
    total = sum(source.rows for source in sources)
    if not total:
        raise StoreError(f"{sources[0].path} holds no rows.")
    kept = "float32" if sources[0].dtype == "float64" else sources[0].dtype
    attributes = {"source": "import", "files": [str(source.path) for source in sources]}
    with create(
        out, sites={site: sources[0].d}, dtype=dtype or kept, rows=total, attributes=attributes, seed=seed, force=force
    ) as writer:
        done = 0
        for source in sources:
            for slab in source.slabs():
                writer.add({site: slab})
                done += len(slab)
                if progress:
                    progress(done, total)
        return writer.finish()


def open_source(path: Path, site: str) -> Source:
    """Look at a file without reading its rows.

    Raises:
        StoreError: it cannot be imported; says why.
    """
    if not path.is_file():
        raise StoreError(f"There is no file {path}; check the path.")
    if path.suffix == ".npy":
        return _npy(path)
    if path.suffix == ".safetensors":
        return _safetensors(path, site)
    raise StoreError(f"{path} cannot be imported: give .npy or .safetensors files.")


def _npy(path: Path) -> Source:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise StoreError(f"{path} is not a plain .npy array; pickled and damaged arrays are not read.") from None
    dtype = f"float{8 * array.dtype.itemsize}"
    if array.dtype.kind != "f" or dtype not in _FLOATS.values():
        raise StoreError(f"{path} holds {array.dtype} numbers; only float16, float32 and float64 arrays can be imported.")
    rows, d = _shape(path, array.shape)

    def read(a: int, b: int) -> torch.Tensor:
        # A copy in native byte order: torch takes neither read-only nor foreign memory.
        return torch.from_numpy(np.array(array[a:b], dtype=array.dtype.newbyteorder("=")))

    return Source(path, rows, d, dtype, lambda: _slabs(array.shape, array.dtype.itemsize, read))


def _safetensors(path: Path, site: str) -> Source:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            matrices = [name for name, shape in shapes.items() if len(shape) in (2, 3)]
            name = site if site in shapes else matrices[0] if len(matrices) == 1 else None
            if name is None:
                raise StoreError(
                    f"{path} holds {len(matrices)} tensors that could be rows and none named '{site}'; "
                    f"choose with --site: {', '.join(sorted(matrices)) or '(none)'}."
                )
            kind = file.get_slice(name).get_dtype()
    except (SafetensorError, OSError):
        raise StoreError(f"{path} is not a safetensors file, or is damaged.") from None
    if kind not in _FLOATS:
        raise StoreError(
            f"{path} holds {kind} numbers in '{name}'; only floating-point tensors of 16 to 64 bits can be imported."
        )
    shape = shapes[name]
    rows, d = _shape(path, shape)

    def slabs() -> Iterator[torch.Tensor]:
        with safe_open(path, framework="pt") as file:
            part: Any = file.get_slice(name)
            yield from _slabs(shape, 2 if kind.endswith("16") else int(kind[1:]) // 8, lambda a, b: part[a:b])

    return Source(path, rows, d, _FLOATS[kind], slabs)


def _shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) not in (2, 3) or not shape[-1]:
        raise StoreError(f"{path} has shape {list(shape)}; rows come as [N, d] or [B, T, d].")
    return int(np.prod(shape[:-1])), shape[-1]


def _slabs(shape: tuple[int, ...], itemsize: int, read: Callable[[int, int], torch.Tensor]) -> Iterator[torch.Tensor]:
    """`read` over the first axis in steps of about 32 MiB, flattened to rows."""
    step = max(1, SLAB_BYTES // max(1, int(np.prod(shape[1:])) * itemsize))
    for a in range(0, shape[0], step):
        yield read(a, min(shape[0], a + step)).reshape(-1, shape[-1])
