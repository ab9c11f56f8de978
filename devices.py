"""Which torch device a name stands for, and how many threads suit the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from .errors import SplinterpError


def choose_device(name: str) -> torch.device:
    """ "auto" (CUDA where there is one, else the CPU) or a torch device's name.

    Raises:
        SplinterpError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type in ("cpu", "cuda"):  # others lack float64, which the solves need
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError):  # torch raises either for a device that it was not built for
        pass
    raise SplinterpError(f"There is no device '{name}' to use here; use --device auto, cpu, cuda or cuda:N.")


_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def total_memory(device: torch.device) -> int:
    """Bytes of memory that the device has; on a CPU what a container's limit leaves of it, if there is one."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return total if limit == "max" else min(total, int(limit))


# Weights of a matrix below which a product with it is too short to share out.
SMALL_MATRIX = 2**20


def threads_for(weights: int, device: torch.device) -> int:
    """One thread where the largest matrix has few weights, on a CPU: its products end before more threads have met; else as they are set.

    On an idle machine two threads would gain up to 1.4 there; on a busy one, where they wait for each other, they lost a factor of four
    (harvesting the embedded model) to six (training on it).
    """
    return 1 if device.type == "cpu" and weights < SMALL_MATRIX else torch.get_num_threads()


@contextmanager
def suitable_threads(weights: int, device: torch.device) -> Iterator[None]:
    """`threads_for` such a matrix within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_for(weights, device))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def work_alone() -> None:
    """From now on the element-wise operations that this Python thread asks torch for run in it alone.

    Those of other threads are not touched. Operations on some thousand rows, shared out, spend most of their time waiting: beside a
    busy machine the store's statistics took 3 to 9 times longer with two threads than with one.
    """
    torch.get_num_threads()  # at a thread's first operation torch would set the number again
    for library in _openmp():
        library.set_num_threads(1)


def threads_at_hand(n: int, name: str) -> ThreadPoolExecutor:
    """A pool of n threads that work alone, all of them begun.

    A pool begins its threads when work comes. Where memory has run out by then, Python waits for ever for a thread that could not take its
    first step.
    """
    pool = ThreadPoolExecutor(n, thread_name_prefix=name, initializer=work_alone)
    met = Barrier(n)  # each waits for all, so that none does another's part
    try:
        wait([pool.submit(met.wait) for _ in range(n)])
    except BaseException:
        met.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return pool


@contextmanager
def working_alone() -> Iterator[None]:
    """`work_alone` within the block."""
    torch.get_num_threads()
    before = [library.get_num_threads() for library in _openmp()]
    work_alone()
    try:
        yield
    finally:
        for library, threads in zip(_openmp(), before, strict=True):
            library.set_num_threads(threads)


@cache
def _openmp() -> list[Any]:
    """The OpenMP libraries in this process, whose number of threads is each calling thread's own."""
    return ThreadpoolController().select(user_api="openmp").lib_controllers
