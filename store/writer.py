"""Writer: rows in, shuffled and checksummed chunks out, by background threads; nothing that is committed can be lost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ..devices import threads_at_hand, working_alone
from ..errors import StoreError
from .commit import commit_chunk
from .files import Lock
from .layout import POOL
from .manifest import Log
from .opening import open_store
from .plan import Plan, plain_attributes
from .pool import Buffers, Generation, row_norms
from .publish import publish_complete
from .reader import Store
from .remote_writer import Fence, RemoteLog
from .spill import Kept, keep, restore

# More than cores: most of a commit is waiting for the disk, and the disk should never wait for a checksum.
THREADS = 4
# A slow harvest keeps its pool in a file this often, so that a kill costs no more than these minutes.
SPILL_SECONDS = 300.0
PIECE = 2048


class Writer:
    """Writes one store; made by `create`. A context manager: leaving it without `finish` stops cleanly and can be resumed.

    Attributes:
        rows: rows accepted so far in stream order, those of a resumed run included.
        offered: rows offered so far, those dropped included.
        dropped_outliers: rows left out so far because a norm was above the plan's bound.
        resume_offered: how many offered rows an earlier run has kept; the caller offers the rows from there on.
        bytes_written: bytes of chunk files written by this process.
    """

    def __init__(self, plan: Plan, log: Log | RemoteLog, lock: Lock | Fence) -> None:
        self._plan, self._log, self._lock = plan, log, lock
        self._next_generation, self.rows, self.offered, self.dropped_outliers = plan.committed(log.lines)
        self._bounds = {f"{site}/acts": largest for site, largest in (plan.max_norms or {}).items()}
        self.bytes_written = 0
        self._count = threading.Lock()
        self._threads = threads_at_hand(THREADS, "splinterp-store")
        self._beside = threads_at_hand(THREADS, "splinterp-sums")
        self._generation: Generation | None = None
        self._buffers: list[Buffers | None] = [None, None]
        self._running: list[list[Future[None]]] = [[], []]
        self._failure: StoreError | None = None
        # At a URL it would go over the network again and again.
        self._keeps_pool = plan.resumable and isinstance(plan.path, Path)
        self._closed = False
        self._spilled = Kept(0, 0, 0)
        # What is kept when the writer stops: the state after the last whole `add`, whatever an interrupt came amidst of.
        self._whole = Kept(0, 0, 0)
        self._safe_at = time.monotonic()
        self._take_up_pool()
        self.resume_offered = self.offered

    @property
    def remaining(self) -> int | None:
        """Rows still wanted, or None when the number of rows was not given."""
        return None if self._plan.rows is None else self._plan.rows - self.rows

    @property
    def full(self) -> bool:
        return self.remaining == 0

    @property
    def kept(self) -> int:
        """Rows that a resume begins with: those of wholly committed pool generations, and those of the pool kept by `close`."""
        generation, rows, *_ = self._plan.committed(self._log.lines)
        return rows + (self._spilled.fill if self._spilled.generation == generation else 0)

    @property
    def _goes_on(self) -> str:
        """How, once the disk takes more."""
        if self._plan.resumable:
            return "The rows stored so far are kept: mend that and run again with --resume."
        return f"Mend that and run the {self._plan.attributes['source']} again with --force."

    @property
    def dropped(self) -> int:
        """Rows left out so far: outliers, and those with an element not finite at some site, in the source's dtype or the store's."""
        return self.offered - self.rows

    def add(self, activations: Mapping[str, torch.Tensor], columns: Mapping[str, Any] | None = None) -> int:
        """Take rows, aligned over all sites and columns; returns how many were accepted.

        Args:
            activations: for every site [n, d], any floating dtype, any device; cast to the storage dtype, to nearest even.
            columns: for every column [n] whole numbers from 0 to 2**32 - 1, as array or tensor.

        Rows that are not finite at some site (before or after the cast), or whose norm there is above the plan's bound, are dropped
        everywhere and counted. Rows beyond the planned number are ignored. Blocks while both pool buffers are waiting for the disk.

        Raises:
            StoreError: wrong shapes, or a background write failed (a full disk); the store can then be resumed.
        """
        self._check_usable()
        if self.full:
            return 0
        n = self._check_shapes(activations, columns or {})
        numbers = {name: _as_column(name, (columns or {})[name]) for name in self._plan.columns}
        # What is on a GPU comes over whole; on the CPU rows are looked at and put into the pool while they are in the cache.
        step = PIECE if all(x.device.type == "cpu" for x in activations.values()) else n
        accepted = 0
        with working_alone():
            for a in range(0, n, max(1, step)):
                part = slice(a, min(n, a + step))
                accepted += self._take({s: x[part] for s, x in activations.items()}, {c: v[part] for c, v in numbers.items()})
        if self._generation is not None:
            self._whole = Kept(self._generation.index, self._generation.fill, self.offered, self.dropped_outliers)
            if time.monotonic() - self._safe_at > SPILL_SECONDS:
                self._spill()
        return accepted

    def _take(self, activations: dict[str, torch.Tensor], columns: dict[str, np.ndarray]) -> int:
        """Some rows of `add`; returns how many were accepted."""
        if self.full:
            return 0
        rows, norms = self._cast(activations)
        rows |= columns
        n = len(next(iter(rows.values())))
        finite, outlying = np.ones(n, bool), np.zeros(n, bool)
        for path, values in norms.items():
            finite &= np.isfinite(values)
            if path in self._bounds:
                outlying |= values > self._bounds[path]
        outlying &= finite
        kept = np.flatnonzero(finite & ~outlying)
        used = n
        if self.remaining is not None and len(kept) >= self.remaining:
            kept = kept[: self.remaining]
            used = int(kept[-1]) + 1
        if len(kept) < n:
            rows = {path: values[kept] for path, values in rows.items()}
            norms = {path: values[kept] for path, values in norms.items()}
        offered, dropped = self.offered, self.dropped_outliers

        def passed(count: int) -> None:
            self.offered, self.dropped_outliers = offered + count, dropped + int(np.count_nonzero(outlying[:count]))

        done = 0
        while done < len(kept):
            generation = self._generation or self._start_generation()
            part = slice(done, min(len(kept), done + generation.room))
            generation.put({p: v[part] for p, v in rows.items()}, {p: v[part] for p, v in norms.items()})
            self.rows += part.stop - done
            done = part.stop
            passed(int(kept[done - 1]) + 1)
            if not generation.room:
                self._drain(generation)
        passed(used)
        return len(kept)

    def finish(self, extra_attributes: dict[str, Any] | None = None) -> Store:
        """Write what the pool still holds, publish the metadata, and open the finished store.

        The source may have ended before the planned number of rows. `extra_attributes` join the store's attributes.

        Raises:
            StoreError: a write failed (the store can be resumed), or no rows came.
        """
        extra = plain_attributes(extra_attributes)
        self._check_usable()
        if self._generation is not None:
            self._drain(self._generation)
        self._wait([f for futures in self._running for f in futures])
        if not self.rows:
            self.close()
            outliers = " or as outliers" if self._bounds else ""
            why = (
                f"All {self.offered:,} rows that came are left out, as not finite (in {self._plan.dtype}){outliers}"
                if self.offered
                else "No rows came"
            )
            see = "look at what makes them" if self.offered else "see that the source is not empty"
            raise StoreError(f"{why}, so {self._plan.path} holds nothing; {see}.")
        self._threads.shutdown()
        self._beside.shutdown()
        self._log.close()
        self._closed = True
        try:
            publish_complete(
                self._plan, self._log.lines, self.rows, self.offered, self.dropped_outliers, extra, self._lock.check
            )
        except OSError as error:
            self._lock.release()
            raise StoreError(f"{self._plan.path} could not be finished: {error.strerror}. {self._goes_on}") from None
        except StoreError:
            self._lock.release()
            raise
        self._lock.release(remove=True)
        return open_store(self._plan.path)

    def close(self) -> None:
        """Let waiting chunk writes end and commit, keep the pool's rows in a file, free the lock. The store stays resumable."""
        if not self._closed:
            self._closed = True
            try:
                self._threads.shutdown(wait=True, cancel_futures=self._failure is not None)
                self._beside.shutdown()
                if self._failure is None and self._generation is not None:
                    # Where the disk does not take them, those rows are not kept, and `kept` says so.
                    with contextlib.suppress(StoreError):
                        self._spill()
            finally:
                self._log.close()
                self._lock.release()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise StoreError(f"The writer of {self._plan.path} is closed; open it again with --resume.")
        self._wait([f for futures in self._running for f in futures if f.done()])

    def _check_shapes(self, activations: Mapping[str, torch.Tensor], columns: Mapping[str, Any]) -> int:
        plan = self._plan
        if set(activations) != set(plan.sites) or set(columns) != set(plan.columns):
            raise StoreError(
                f"{plan.path} takes the sites {', '.join(plan.sites)} and the columns {', '.join(plan.columns) or '(none)'}; "
                f"it was given {', '.join(activations)} and {', '.join(columns) or '(none)'}."
            )
        n = len(activations[next(iter(plan.sites))])
        for name, x in activations.items():
            if x.ndim != 2 or x.shape != (n, plan.sites[name]) or not x.is_floating_point():
                raise StoreError(
                    f"Site '{name}' takes {n} rows of {plan.sites[name]} floating-point numbers; it was given "
                    f"{str(x.dtype).removeprefix('torch.')} of shape {list(x.shape)}."
                )
        for name, column in columns.items():
            if tuple(column.shape) != (n,):
                raise StoreError(f"Column '{name}' must have one number for each of {n} rows, not shape {list(column.shape)}.")
        return n

    def _cast(self, activations: Mapping[str, torch.Tensor]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Rows in the storage dtype and their norms, by array path. The cast keeps NaN and infinity, so norms show both."""
        rows, norms = {}, {}
        for name in self._plan.sites:
            x = activations[name].detach().to(self._plan.storage.torch)
            norms[f"{name}/acts"] = row_norms(x).cpu().numpy()
            # Viewed as bits: numpy has no bfloat16.
            rows[f"{name}/acts"] = _bits(x.cpu()).view(self._plan.storage.numpy)
        return rows, norms

    def _start_generation(self) -> Generation:
        g = self._next_generation
        self._wait(self._running[g % 2])
        self._running[g % 2] = []
        buffers = self._buffers[g % 2] or Buffers.make(self._plan.arrays, min(self._plan.pool_rows, self._plan.rows or 2**63))
        self._buffers[g % 2] = buffers
        self._generation = Generation(g, self._plan.permutation(g), buffers)
        self._next_generation += 1
        return self._generation

    def _take_up_pool(self) -> None:
        """Go on with the rows that an interrupted writer had kept of its last generation."""
        g = self._next_generation
        if self._keeps_pool and (self._plan.path / POOL).exists() and self._plan.generation_size(g):
            generation = self._start_generation()
            kept = restore(self._plan, g, generation.slots, generation.buffers)
            if kept is not None:
                generation.fill = kept.fill
                self._spilled = self._whole = kept
                self.rows += kept.fill
                self.offered, self.dropped_outliers = kept.offered, kept.dropped_outliers

    def _spill(self) -> None:
        """Keep the pool's rows in a file, as of the last whole `add`."""
        generation, kept = self._generation, self._whole
        if self._keeps_pool and generation is not None and kept.generation == generation.index and kept.fill:
            try:
                keep(self._plan, kept, generation.slots, generation.buffers)
            except OSError as error:
                raise StoreError(f"{self._plan.path / POOL} could not be written: {error.strerror}. {self._goes_on}") from None
            self._spilled = kept
        self._safe_at = time.monotonic()

    def _drain(self, generation: Generation) -> None:
        generation.seal()
        self._generation = None
        self._safe_at = time.monotonic()
        # Taken now: the caller goes on offering rows while the threads write.
        at = (generation.index, generation.fill, self.offered, self.dropped, self.dropped_outliers)
        self._running[generation.index % 2] = [
            self._threads.submit(self._commit, generation, i, at)
            for i in self._plan.chunks_of(generation.index, generation.fill)
        ]

    def _wait(self, futures: list[Future[None]]) -> None:
        """Wait for `futures`; after a failed write the writer only repeats its sentence."""
        wait(futures)
        for future in futures:
            error = None if future.cancelled() else future.exception()
            if self._failure is None and isinstance(error, OSError):
                where = error.filename or self._plan.path
                self._failure = StoreError(f"{where} could not be written: {error.strerror or error}. {self._goes_on}")
            elif error is not None and not isinstance(error, OSError):
                raise error
        if self._failure is not None:
            for future in (f for futures in self._running for f in futures):
                future.cancel()
            raise self._failure

    def _commit(self, generation: Generation, chunk: int, at: tuple[int, int, int, int, int]) -> None:
        """Write chunk `chunk` of all arrays, then its line in the log. Runs in a background thread."""
        plan = self._plan
        self._lock.check()
        first = (chunk - generation.index * plan.pool_chunks) * plan.chunk_rows
        last = min(first + plan.chunk_rows, generation.fill)
        rows = {a.path: generation.rows(a.path, first, last) for a in plan.arrays}
        norms = {site: generation.norms(f"{site}/acts", first, last) for site in plan.sites}
        if commit_chunk(plan, self._log, chunk, rows, norms, at, self._beside):
            with self._count:
                self.bytes_written += sum(a.chunk_bytes(plan.chunk_rows) for a in plan.arrays)


def _bits(x: torch.Tensor) -> np.ndarray:
    return x.contiguous().view(torch.uint16 if x.element_size() == 2 else torch.float32).numpy()


def _as_column(name: str, values: Any) -> np.ndarray:
    """[n] uint32, refusing what does not fit."""
    column = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if column.dtype.kind not in "iu" or (len(column) and (column.min() < 0 or column.max() > 0xFFFFFFFF)):
        raise StoreError(f"Column '{name}' takes whole numbers from 0 to 4294967295; it was given others.")
    return column.astype(np.uint32)
