"""Rows by slabs, so that what a solver holds does not grow with their number; on a CPU a slab a thread.

A slab's many short operations, each shared out over the cores, would spend their time waiting for each other; a slab for each core has nothing to
wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from ..devices import work_alone
from ..sae import Codes, RaggedCodes, SparseCodes, to_dense

# Bytes of a solver's largest matrices in a slab: enough that a core, and a GPU, have something to do between two operations.
_CPU_BYTES, _GPU_BYTES = 2**26, 2**30


def slabs(rows: int, row_bytes: int, device: torch.device) -> list[slice]:
    """Slices of so many rows whose solver holds `row_bytes` a row: at least one, and where there are enough rows one for every thread."""
    on_cpu = device.type == "cpu"
    most = max(1, (_CPU_BYTES if on_cpu else _GPU_BYTES) // row_bytes)
    number = max(1, -(-rows // most), min(rows // 64, torch.get_num_threads()) if on_cpu else 1)
    size = max(1, -(-rows // number))
    return [slice(a, min(a + size, rows)) for a in range(0, max(rows, 1), size)]


def by_slabs(solve: Callable[[slice], Codes], parts: Sequence[slice], device: torch.device, d_sae: int) -> Codes:
    """The codes of all parts, in order."""
    return join(list(_solved(solve, parts, device)), d_sae)


def _solved(solve: Callable[[slice], Codes], parts: Sequence[slice], device: torch.device) -> Iterator[Codes]:
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield from map(solve, parts)
        return
    pool = ThreadPoolExecutor(threads, initializer=work_alone)
    try:
        yield from pool.map(solve, parts)
    finally:
        pool.shutdown(cancel_futures=True)


def rows_between(codes: Codes, part: slice) -> Codes:
    """The codes of some rows."""
    if isinstance(codes, SparseCodes):
        return SparseCodes(codes.indices[part], codes.values[part])
    if isinstance(codes, RaggedCodes):
        starts = codes.starts[part.start : part.stop + 1]
        entries = slice(int(starts[0]), int(starts[-1]))
        return RaggedCodes(codes.indices[entries], codes.values[entries], starts - starts[0])
    return codes[part]


def join(parts: Sequence[Codes], d_sae: int) -> Codes:
    """Codes of rows, one part after the other: of one kind, or dense."""
    if len(parts) == 1:
        return parts[0]
    sparse = [part for part in parts if isinstance(part, SparseCodes)]
    if len(sparse) == len(parts):
        k = max(part.indices.shape[1] for part in sparse)
        assert all(part.indices.shape[1] == k for part in sparse), "a solver's width is of its target, not of its rows"
        return SparseCodes(torch.cat([part.indices for part in sparse]), torch.cat([part.values for part in sparse]))
    ragged = [part for part in parts if isinstance(part, RaggedCodes)]
    if len(ragged) == len(parts):
        counts = torch.cat([part.starts.diff() for part in ragged])
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return RaggedCodes(torch.cat([p.indices for p in ragged]), torch.cat([p.values for p in ragged]), starts)
    return torch.cat([to_dense(part, d_sae) for part in parts])
