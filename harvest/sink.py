"""The way from the forward pass to the store: a copy to the host, then the writer, in a thread some batches behind the model."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch

from ..store import Writer
from .host import HostCopies, Rows

DEPTH = 2


class _Item(NamedTuple):
    rows: Rows
    columns: Mapping[str, np.ndarray]


class Sink:
    """Gives rows to a writer in a thread of its own, so that shuffling and writing hide behind the next forward pass.

    A context manager: leaving it ends the thread once it has given the writer all it holds, or nothing more after a failure.
    `DEPTH` batches may wait; then `put` waits.

    Attributes:
        busy: seconds that the thread has spent in the writer.
    """

    def __init__(self, writer: Writer, device: torch.device) -> None:
        self._writer = writer
        self._copies = HostCopies(device, DEPTH + 1)
        self._items: queue.Queue[_Item | None] = queue.Queue(DEPTH)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="splinterp-sink", daemon=True)
        self.busy = 0.0

    def put(self, acts: Mapping[str, torch.Tensor], columns: Mapping[str, np.ndarray]) -> None:
        """Hand over rows as `Writer.add` takes them; on a GPU they may still be in the making.

        Raises:
            StoreError: the writer failed, at these rows or earlier ones.
        """
        self._items.put(_Item(self._copies.start(acts), columns))
        self._check()

    def drain(self) -> None:
        """Wait until the writer has all rows.

        Raises:
            StoreError: as `put`.
        """
        self._items.join()
        self._check()

    def __enter__(self) -> Sink:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._items.put(None)
        self._thread.join()
        if error is None:
            self._check()

    def _work(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                if self._failure is None:
                    acts = item.rows.wait()
                    begun = time.perf_counter()
                    self._writer.add(acts, item.columns)
                    self.busy += time.perf_counter() - begun
            except BaseException as error:
                self._failure = error
            finally:
                item.rows.release()
                self._items.task_done()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
