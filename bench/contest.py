"""Contenders that run in turn, round by round, and what their speed is worth beside a limit's."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch


def measure(
    contenders: Mapping[str, Callable[[], None]], rounds: int, before: Callable[[str], None], after: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of each contender, round by round; `before` is called with its name ahead of each, `after` behind it, neither timed."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = random.Random(0)
    for _ in range(rounds):
        # In a new order each round, so that nobody always runs after the same neighbour.
        for name in order.sample(list(contenders), len(contenders)):
            before(name)
            begun = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - begun)
            after()
    return seconds


def compare(seconds: Mapping[str, Sequence[float]], limit: str) -> dict[str, dict[str, float]]:
    """Each contender's speed as a share of the limit's in the same round: median, smallest and largest."""
    shares = {name: [a / b for a, b in zip(seconds[limit], times, strict=True)] for name, times in seconds.items()}
    return {name: {"median": statistics.median(s), "low": min(s), "high": max(s)} for name, s in shares.items()}


def touch_page_cache(folder: Path, size: int) -> None:
    """Fill `size` bytes of the page cache by a file that is never synced, and free them.

    A virtual machine's host lends memory page by page and takes back what lies idle; a page not lent costs 10 times the copy into it.
    """
    scratch, slab = folder / "scratch", bytes(2**20)
    with scratch.open("wb", buffering=0) as file:
        for _ in range(0, size, len(slab)):
            file.write(slab)
    scratch.unlink()


@contextmanager
def threads_set(number: int | None) -> Iterator[None]:
    """So many threads for torch within the block; None: as many as there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
