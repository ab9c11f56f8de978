"""What the pipeline costs alone: a forward pass that takes no time, so that only the way to the disk is left."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import store as stores
from ..harvest.fill import fill
from ..harvest.pack import TokenBatch
from ..harvest.plan import COLUMNS
from ..harvest.prefetch import prefetched
from ..harvest.run import BATCHES_AHEAD
from ..store.layout import default_chunk_rows
from .contest import compare, measure, touch_page_cache
from .store import write_raw

SITE = "blocks.0.hook_resid_post"
D = 2304
BATCH = 32
RAW, OURS, SAELENS = "raw writing, one fsync a chunk", "ours", "SAELens runner"
FREE_STEPS = 2
# It writes buffer by buffer at an even rate; a part of the rows shows it.
SAELENS_PART = 4


class FreeReader:
    """In a SiteReader's place: rows that lie ready, as many as tokens are kept."""

    device = torch.device("cpu")

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows

    def read(self, ids: np.ndarray, keep: np.ndarray) -> dict[str, torch.Tensor]:
        # Not always the same ones: they would stay in the processor's cache.
        n = int(keep.sum())
        first = int(ids[0, -1]) * n % (len(self._rows) - n + 1)
        return {SITE: self._rows[first : first + n]}


def measure_free(tokens: int, context: int, rounds: int, folder: Path, progress: Callable[[], None]) -> dict[str, Any]:
    """`tokens` rows [D] in bfloat16 through each pipeline, in whole batches (SAELens: a quarter of them, in float16, which it can store).

    Raises:
        SplinterpError: the disk is full.
    """
    folder.mkdir()
    n = -(-tokens // (BATCH * context)) * BATCH
    ids = torch.randint(1000, (n, context), generator=torch.Generator().manual_seed(0))
    rows = torch.randn(4 * BATCH * context, D, generator=torch.Generator().manual_seed(0)).bfloat16()
    chunk_rows = default_chunk_rows(2 * D, None)
    chunk = torch.cat([rows] * -(-chunk_rows // len(rows)))[:chunk_rows]
    bytes_in_all = ids.numel() * D * 2
    reader, shares, few = FreeReader(rows), {}, ids

    def ours() -> None:
        def note(_: int, figures: dict[str, Any]) -> None:
            shares.update({name: value for name, value in figures.items() if name.endswith("_share")})

        with stores.create(
            folder / "ours", sites={SITE: D}, dtype="bfloat16", columns=COLUMNS, rows=ids.numel(), chunk_rows=chunk_rows
        ) as writer:
            with prefetched(_batches(ids.numpy()), BATCHES_AHEAD) as stream:
                fill(writer, reader, ((batch, None) for batch in stream), note)
            writer.finish()

    contenders: dict[str, Callable[[], None]] = {RAW: lambda: _write_chunks(chunk, ids.numel(), folder), OURS: ours}
    if find_spec("sae_lens") is not None:
        from .saelens import free_runner

        half = rows.half()

        def acts(batch: torch.Tensor) -> torch.Tensor:
            n = batch.numel()
            first = int(batch[0, -1]) * n % (len(half) - n + 1)
            return half[first : first + n].view(*batch.shape, D)

        few = ids[: max(BATCH, n // SAELENS_PART // BATCH * BATCH)]
        contenders[SAELENS] = free_runner(few, BATCH, acts, D, folder / "saelens").run

    def fresh(_: str) -> None:
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        os.sync()
        touch_page_cache(folder, bytes_in_all)

    seconds = measure(contenders, rounds, fresh, progress)
    if SAELENS in seconds:
        seconds[SAELENS] = [t * ids.numel() / few.numel() for t in seconds[SAELENS]]
    ratios = {"of raw writing": compare(seconds, RAW)}
    if SAELENS in seconds:
        ratios["of SAELens writing"] = compare(seconds, SAELENS)
    return {
        "tokens": ids.numel(),
        "d": D,
        "shares": shares,
        "tokens_per_s": {"free": {name: ids.numel() / statistics.median(times) for name, times in seconds.items()}},
        "ratios": ratios,
    }


def _write_chunks(chunk: torch.Tensor, rows: int, folder: Path) -> None:
    """The limit: files of a chunk's rows each, one after the other, until there are `rows`."""
    for i in range(-(-rows // len(chunk))):
        place = folder / f"raw{i}"
        place.mkdir()
        write_raw(chunk[: min(len(chunk), rows - i * len(chunk))], place, len(chunk), 1)


def _batches(ids: np.ndarray) -> Iterator[TokenBatch]:
    for first in range(0, len(ids), BATCH):
        part = ids[first : first + BATCH]
        numbers = np.arange(first, first + len(part), dtype=np.uint32)
        document = np.repeat(numbers[:, None], ids.shape[1], 1)
        yield TokenBatch(ids=part, sequence=numbers, document=document, keep=np.ones(part.shape, bool))
