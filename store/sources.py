"""What an import reads from: a file (or folder) looked at once, whose rows then come in slabs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import StoreError

SLAB_BYTES = 32 * 2**20
# Deflate cannot do better than 1032 to 1, which unmasks most lies without decompressing anything.
BEST_RATIO = 1032
DEFAULT_SITE = "imported"
FLOATS = ("float16", "bfloat16", "float32", "float64")

Slab = tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Source:
    """`rows` rows at each of `sites` (width by name), in `dtype`, one of FLOATS.

    Attributes:
        slabs: gives the rows in order, as (rows [n, d] by site, whole numbers [n] by column).
        sequences: how many sequences the column `sequence` counts, from 0; several files' are numbered on.
        attributes: what the store should say of these rows.
        narrowed: whether the files hold float64, which `slabs` gives as float32.
    """

    path: Path
    rows: int
    sites: dict[str, int]
    dtype: str
    slabs: Callable[[], Iterator[Slab]]
    columns: tuple[str, ...] = ()
    sequences: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)
    narrowed: bool = False


def matrix_source(
    path: Path, site: str | None, shape: tuple[int, ...], dtype: str, slabs: Callable[[], Iterator[torch.Tensor]]
) -> Source:
    """The source of one array [N, d] or [B, T, d]; `slabs` gives pieces of it along the first axis."""
    name = site or DEFAULT_SITE
    rows, d = rows_and_width(path, shape)
    return Source(path, rows, {name: d}, dtype, lambda: (({name: x.reshape(-1, d)}, {}) for x in slabs()))


def rows_and_width(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """Raises StoreError for any other shape than [N, d] or [B, T, d]."""
    if len(shape) not in (2, 3) or shape[-1] < 1 or min(shape) < 0:
        raise StoreError(f"{path} has shape {list(shape)}; rows come as [N, d] or [B, T, d].")
    return math.prod(shape[:-1]), shape[-1]


def choose(path: Path, site: str | None, shapes: Mapping[str, tuple[int, ...]], what: str) -> str:
    """The name in `shapes` that is `site`, or the only one of two or three dimensions.

    Raises:
        StoreError: there is neither; lists what could be meant.
    """
    wanted = site or DEFAULT_SITE
    if wanted in shapes:
        return wanted
    matrices = sorted(name for name, shape in shapes.items() if len(shape) in (2, 3))
    if len(matrices) == 1:
        return matrices[0]
    raise StoreError(
        f"{path} holds {len(matrices)} {what} that could be rows and none named '{wanted}'; "
        f"choose with --site: {', '.join(matrices) or '(none)'}."
    )


def require_float(path: Path, dtype: np.dtype) -> str:
    """The dtype's name, if it is a floating-point one that can be imported.

    Raises:
        StoreError: it is not.
    """
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise StoreError(f"{path} holds {dtype} numbers; only float16, float32 and float64 arrays can be imported.")
    return f"float{8 * dtype.itemsize}"


def steps(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """[a, b) along the first axis, about 32 MiB each."""
    step = max(1, SLAB_BYTES // max(1, math.prod(shape[1:]) * itemsize))
    for a in range(0, shape[0], step):
        yield a, min(shape[0], a + step)


def native(values: np.ndarray) -> torch.Tensor:
    """A copy in native byte order: torch takes neither read-only nor foreign memory."""
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))


def state_of(path: Path | int) -> tuple[int, ...]:
    """What changes where a file does."""
    seen = os.stat(path)
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


@contextmanager
def opened(path: Path, seen: tuple[int, ...]) -> Iterator[BufferedIOBase]:
    """A file to read rows from, whose state is what was seen when its header was read.

    Raises:
        StoreError: it is another one now, or when its rows have been read; or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            if state_of(file.fileno()) != seen:
                raise _changed(path)
            yield file
            if state_of(file.fileno()) != seen:
                raise _changed(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from None


def _changed(path: Path) -> StoreError:
    return StoreError(f"{path} was changed while it was imported; import it again once it is written.")


def stream(path: Path, file: BufferedIOBase, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
    """An array in C order read from `file`, piece by piece along its first axis.

    Raises:
        StoreError: the file ends early.
    """
    for a, b in steps(shape, dtype.itemsize):
        piece = np.empty((b - a, *shape[1:]), dtype)
        left = piece.reshape(-1).view(np.uint8).data
        while left:
            got = file.readinto(left)
            if not got:
                raise StoreError(f"{path} is truncated: its rows end early.")
            left = left[got:]
        yield piece
