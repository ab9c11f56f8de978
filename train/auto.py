"""Defaults that depend on the store and the machine: batch size, learning rate, device."""

from __future__ import annotations

import torch

from ..errors import SplinterpError

# At least this many steps, as far as the rows allow: small batches make better SAEs of few rows.
STEPS_WANTED = 500
SMALLEST_BATCH, LARGEST_BATCH = 128, 4096


def auto_batch_size(rows: int) -> int:
    """The largest power of two from 128 to 4096 that leaves about 500 steps or more in `rows` rows."""
    size = LARGEST_BATCH
    while size > SMALLEST_BATCH and rows < STEPS_WANTED * size:
        size //= 2
    return size


def auto_lr(d_in: int) -> float:
    """The peak learning rate for rows of mean square 1 per dimension: 8e-3 at d_in=192, falling as the square root of d_in.

    Fitted to sweeps at d_in = 192, 576 and 784 (bench/RESULTS.md); wider sites are an extrapolation.
    """
    return 8e-3 * (192 / d_in) ** 0.5


def choose_device(name: str) -> torch.device:
    """ "auto" (CUDA where there is one, else the CPU) or a torch device's name.

    Raises:
        SplinterpError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that it was not built for
        raise SplinterpError(f"There is no device '{name}' here; use --device auto or cpu.") from error
    return device
