"""Which torch device a name stands for, and how many threads suit the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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


# Weights of a matrix below which a product with it is too short to share out.
SMALL_MATRIX = 2**20


@contextmanager
def suitable_threads(weights: int, device: torch.device) -> Iterator[None]:
    """One thread where the largest matrix has few weights, on a CPU: its products end before more threads have met.

    On an idle machine two threads would gain up to 1.4 there; on a busy one, where they wait for each other, they lost a factor of four
    (harvesting the embedded model) to six (training on it).
    """
    threads = torch.get_num_threads()
    if device.type == "cpu" and weights < SMALL_MATRIX:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
