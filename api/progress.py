"""How far a function has come, and what it has to say on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

Progress = Callable[[str, int, int, Mapping[str, Any]], None]  # stage, done, total, figures
Tell = Callable[[str], None]  # a sentence that is no error

log: Tell = logging.getLogger("splinterp").warning


def counted(batches: Iterable[Tensor], total: int, stage: str, progress: Progress | None) -> Iterator[Tensor]:
    """The batches, each told of once it has been dealt with."""
    done = 0
    for x in batches:
        yield x
        done += len(x)
        if progress:
            progress(stage, done, total, {})


def first(batches: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """The first so many rows."""
    left = rows
    for x in batches:
        yield x[:left]
        left -= len(x)
        if left <= 0:
            return
