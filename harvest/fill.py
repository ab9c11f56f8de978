"""The harvest's loop: batches of tokens through the model, rows to the sink, until the store is full or the text at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from ..store import Writer
from .pack import TokenBatch
from .sink import Sink

Progress = Callable[[int, dict[str, object]], None]


class Reader(Protocol):
    """What a SiteReader is to the loop."""

    @property
    def device(self) -> torch.device: ...

    def read(self, ids: np.ndarray, keep: np.ndarray) -> dict[str, torch.Tensor]: ...


def fill(
    writer: Writer,
    reader: Reader,
    stream: Iterator[tuple[TokenBatch, dict[str, torch.Tensor] | None]],
    progress: Progress | None,
) -> None:
    """Forward what is not stored yet.

    Args:
        stream: from the text's beginning; batches that are forwarded already come with their rows.
        progress: as `harvest`'s.

    Raises:
        StoreError: a write failed.
    """
    # Whole batches are skipped without a forward pass. One that is stored in part runs as it ran the first time, because
    # another batch shape could round otherwise.
    skip = writer.resume_offered
    watch = _Watch(writer)
    with Sink(writer, reader.device) as sink:
        # Rows wanted beyond those on their way: nothing is forwarded that the store may not need.
        wanted = writer.remaining
        while True:
            if wanted is not None and wanted <= 0:
                watch.time("disk", sink.drain)
                wanted = writer.remaining  # what was dropped as non-finite is made up for
                if not wanted:
                    break
            entry = watch.time("text", lambda: next(stream, None))
            if entry is None:
                break
            batch, rows = entry
            if skip >= batch.kept:
                skip -= batch.kept
                continue
            if rows is None:
                rows = watch.time("forward", lambda b=batch: reader.read(b.ids, b.keep))
            else:
                watch.not_counted = batch.kept - skip
            acts = {site: x[skip:] for site, x in rows.items()}
            columns = {name: values[skip:] for name, values in batch.columns().items()}
            wanted = None if wanted is None else wanted - (batch.kept - skip)
            skip = 0
            watch.time("disk", lambda a=acts, c=columns: sink.put(a, c))
            if progress is not None:
                progress(writer.rows, watch.figures())
    if progress is not None:
        progress(writer.rows, watch.figures())


class _Watch:
    """Where the time goes: in the forward pass, waiting for text, waiting for the disk.

    not_counted: rows whose forward pass lies before the watch was started.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer, self._rows_before, self._begun = writer, writer.rows, time.perf_counter()
        self._seconds = {"forward": 0.0, "text": 0.0, "disk": 0.0}
        self.not_counted = 0

    def time(self, what: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return call()
        finally:
            self._seconds[what] += time.perf_counter() - start

    def figures(self) -> dict[str, object]:
        elapsed = time.perf_counter() - self._begun
        return {
            "tokens_per_s": max(0, self._writer.rows - self._rows_before - self.not_counted) / elapsed,
            "bytes_written": self._writer.bytes_written,
            "dropped": self._writer.dropped,
            **{f"{what}_share": spent / elapsed for what, spent in self._seconds.items()},
        }
