"""A chunk's way into the store: checksums and statistics, its files, then its line in the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, wait

import numpy as np
import torch

from .files import block_and_whole_crcs, crc_bytes, crc_of, write_files
from .histogram import norm_histogram
from .layout import BLOCK, Array
from .manifest import Line, Log, encode
from .plan import Plan
from .pool import column_sums
from .remote_writer import RemoteLog


def commit_chunk(
    plan: Plan,
    log: Log | RemoteLog,
    chunk: int,
    rows: Mapping[str, np.ndarray],
    norms: Mapping[str, np.ndarray],
    at: tuple[int, int, int, int, int],
    beside: Executor,
) -> bool:
    """Store chunk `chunk` for good, unless the log says that these very rows are.

    Args:
        rows: by array path [n, d] or [n] in the storage dtype, n <= chunk_rows.
        norms: by site the Euclidean norms [n] of its rows.
        at: where the source stood: a line's generation, generation_rows, offered, dropped and dropped_outliers.
        beside: takes checksums and sums while the rows are on their way to the disk.

    Returns:
        Whether anything was written.

    Raises:
        OSError: the disk did not take it; the chunk then does not count.
    """
    parts = {a.path: _padded(a, rows[a.path], plan.chunk_rows) for a in plan.arrays}
    line = beside.submit(_line, plan, chunk, parts, norms, at)
    try:
        before = log.lines.get(chunk)
        if before is not None:
            if before.same_rows(line.result()):
                return False
            # The resumed source gives other rows than the first time: the old chunk must stop counting before it goes.
            log.withdraw(chunk)
        write_files(
            [(a.chunk_path(plan.path, chunk), _contents(a, parts[a.path], line)) for a in plan.arrays],
            # Half of all syncs: a resume looks whether each committed chunk's files are there, and publishing syncs the folders.
            sync_folders=False,
        )
        log.commit(line.result())
    finally:
        wait([line])  # it reads the pool's rows
    return True


def _contents(array: Array, parts: Sequence[np.ndarray], line: Future[Line]) -> Iterator[memoryview]:
    """A chunk file's bytes: the rows, then their checksum once it is known."""
    yield from (part.reshape(-1).view(np.uint8).data for part in parts)
    yield memoryview(crc_bytes(line.result().crc32c[array.path]))


def _line(
    plan: Plan,
    chunk: int,
    parts: Mapping[str, list[np.ndarray]],
    norms: Mapping[str, np.ndarray],
    at: tuple[int, int, int, int, int],
) -> Line:
    blocks, sums, norm_sums, crcs = {}, {}, {}, {}
    for array in plan.arrays:
        if array.d is None:
            crcs[array.path] = crc_of(parts[array.path])
    for site in plan.sites:
        rows, *padding = parts[f"{site}/acts"]
        of_blocks, crc = block_and_whole_crcs(rows, BLOCK)
        blocks[site], crcs[f"{site}/acts"] = encode(of_blocks), crc_of(padding, crc)
        sums[site] = encode(column_sums(torch.from_numpy(rows).view(plan.storage.torch)).astype("<f8"))
        r = norms[site]
        norm_sums[site] = [float(r.sum()), float((r * r).sum()), float(r.min()), float(r.max())]
    n = len(parts[plan.arrays[0].path][0])
    histograms = {site: norm_histogram(norms[site]) for site in plan.sites}
    return Line(chunk, n, crcs, blocks, sums, norm_sums, *at, histograms=histograms)


def _padded(array: Array, rows: np.ndarray, chunk_rows: int) -> list[np.ndarray]:
    """The rows, and the fill values that bring the last chunk to full size."""
    missing = chunk_rows - len(rows)
    return [rows] if not missing else [rows, np.full((missing, *rows.shape[1:]), array.fill, array.numpy)]
