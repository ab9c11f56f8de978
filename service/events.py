"""Server-sent events: the queue's changes, and a run's figures as it writes them. A stream looks once a second, and costs little."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from .follow import METRICS, lines_from

EVERY = 1.0
BEAT = 15.0  # seconds after which a silent stream says that it is there
MOST = 500  # streams at a time


class TooManyStreams(Exception):
    """As many streams are open as the service keeps."""


class Streams:
    """Counts what is open, so that nobody can open streams without end."""

    def __init__(self) -> None:
        self.open = 0
        self.closing = False

    async def queue(self, state: Callable[[], dict[str, Any]], changed: Callable[[], int]) -> AsyncIterator[str]:
        """`event: queue` with the counts, once at first and then with every change."""
        self._take()
        try:
            last, silent = -1, 0.0
            while not self.closing:
                now = changed()
                if now != last:
                    last, silent = now, 0.0
                    yield _event("queue", await run_in_threadpool(state))
                elif silent >= BEAT:
                    silent = 0.0
                    yield ": still here\n\n"
                await asyncio.sleep(EVERY)
                silent += EVERY
        finally:
            self.open -= 1

    async def run(self, directory: Path, offset: int, state: Callable[[], str]) -> AsyncIterator[str]:
        """`event: metrics` with new lines, whose id is the offset to go on from; `event: state` where that changes.

        `event: reset` before lines that take the place of all that were told: the run went back to a checkpoint.
        """
        self._take()
        try:
            last, silent, first = "", 0.0, True
            while not self.closing:
                lines, now = await run_in_threadpool(lines_from, directory / METRICS, offset)
                if not first and now < offset:
                    yield _event("reset", {})
                first = False
                if lines:
                    silent = 0.0
                    yield _event("metrics", {"lines": lines}, now)
                offset = now
                told = await run_in_threadpool(state)
                if told != last:
                    last, silent = told, 0.0
                    yield _event("state", {"state": told})
                if silent >= BEAT:
                    silent = 0.0
                    yield ": still here\n\n"
                await asyncio.sleep(EVERY)
                silent += EVERY
        finally:
            self.open -= 1

    def _take(self) -> None:
        if self.open >= MOST:
            raise TooManyStreams
        self.open += 1


def _event(name: str, value: dict[str, Any], id: int | None = None) -> str:
    told = "" if id is None else f"id: {id}\n"
    return f"{told}event: {name}\ndata: {json.dumps(value, allow_nan=False)}\n\n"
