"""The rows that wait in the shuffle pool, kept in a file of their own when a writer stops early, so that none is harvested twice.

<store>/pool: a line of JSON, then the rows in stream order, a few at a time with their norms, then the crc32c of all of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from .files import crc_bytes, sync_folder, temporary, write_all
from .layout import CRC_BYTES, POOL, Array
from .manifest import Line
from .places import on_disk
from .plan import Plan
from .pool import Buffers

PIECE = 4096
HEADER_BYTES = 4096


@dataclass(frozen=True)
class Kept:
    """What the file holds: the first `fill` rows of pool generation `generation`, up to `offered` offered rows in all.

    `dropped_outliers` of the offered rows had been left out for their norm.
    """

    generation: int
    fill: int
    offered: int
    dropped_outliers: int = 0


def keep(plan: Plan, kept: Kept, slots: np.ndarray, buffers: Buffers) -> None:
    """Durably write the first `kept.fill` rows of a generation; `slots` are their places in `buffers`.

    Raises:
        OSError: the disk did not take them; what an earlier call wrote is still there.
    """
    path = on_disk(plan.path) / POOL
    fd = os.open(temporary(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        header = np.frombuffer(json.dumps(asdict(kept)).encode() + b"\n", np.uint8)
        crc = 0
        for part in (header, *(v[slots[a:b]] for a, b in _pieces(kept.fill) for v in _values(buffers))):
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            crc = google_crc32c.extend(crc, data)  # pyright: ignore[reportArgumentType]
            write_all(fd, data.data)
        write_all(fd, memoryview(crc_bytes(crc)))
        os.fsync(fd)
        os.replace(temporary(path), path)
    except OSError:
        temporary(path).unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    sync_folder(plan.path)


def restore(plan: Plan, generation: int, slots: np.ndarray, buffers: Buffers) -> Kept | None:
    """Bring a generation's kept rows back to their slots; None when there are none of this generation, or they are damaged.

    Damage costs nothing but time: the rows are then offered again. `buffers` is filled only where it returns a Kept.
    """
    path = on_disk(plan.path) / POOL
    kept = _sound(path, plan.arrays, plan.sites)
    if kept is None or kept.generation != generation or kept.fill > len(slots):
        return None
    with path.open("rb") as file:
        file.readline(HEADER_BYTES)
        for a, b in _pieces(kept.fill):
            for values in _values(buffers):
                shape = (b - a, *values.shape[1:])
                count = int(np.prod(shape))
                values[slots[a:b]] = np.frombuffer(file.read(count * values.itemsize), values.dtype).reshape(shape)
    return kept


def kept_rows(path: Path, arrays: Collection[Array], sites: Collection[str], lines: Iterable[Line]) -> int:
    """How many rows the file keeps for the resume of a store at `path`, beside those of the log's lines; none where it is damaged or of
    another time."""
    kept = _sound(path / POOL, arrays, sites)
    after = max((line.generation for line in lines), default=-1) + 1
    return kept.fill if kept is not None and kept.generation == after else 0


def _sound(path: Path, arrays: Collection[Array], sites: Collection[str]) -> Kept | None:
    """What the file says it holds, if its length and its checksum agree with that."""
    row_bytes = sum(array.row_bytes for array in arrays) + 8 * len(sites)
    try:
        with path.open("rb") as file:
            header = file.readline(HEADER_BYTES)
            kept = Kept(**json.loads(header))
            left = path.stat().st_size - len(header) - CRC_BYTES
            if any(type(n) is not int or n < 0 for n in asdict(kept).values()) or left != kept.fill * row_bytes:
                return None
            crc = google_crc32c.value(header)
            while left:
                slab = file.read(min(left, 2**23))
                crc, left = google_crc32c.extend(crc, slab), left - len(slab)
                if not slab:
                    return None
            return kept if crc_bytes(crc) == file.read(CRC_BYTES) else None
    except (OSError, ValueError, TypeError):
        return None


def _pieces(fill: int) -> Iterator[tuple[int, int]]:
    for a in range(0, fill, PIECE):
        yield a, min(fill, a + PIECE)


def _values(buffers: Buffers) -> list[np.ndarray]:
    return [*buffers.rows.values(), *buffers.norms.values()]
