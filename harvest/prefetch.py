"""Run an iterator ahead of its consumer, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def prefetched(items: Iterator[T], depth: int) -> Iterator[Iterator[T]]:
    """Within the block, `items` is consumed by a worker thread that keeps up to `depth` of them ready, in order.

    An exception raised by `items` is raised where its item would have come. Leaving the block, however, stops the worker
    after the item at hand.
    """
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)  # an item, an error, or the end
    stop = threading.Event()

    def put(entry: tuple[T] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item,))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    def results() -> Iterator[T]:
        while True:
            entry = ready.get()
            if entry is None:
                return
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]

    worker = threading.Thread(target=work, name="splinterp-prefetch", daemon=True)
    worker.start()
    try:
        yield results()
    finally:
        stop.set()
        worker.join(timeout=10)  # it may hang in a network read; it is a daemon, so it cannot hold the process
