"""Which torch device a name stands for."""

from __future__ import annotations

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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that it was not built for
        raise SplinterpError(f"There is no device '{name}' here; use --device auto or cpu.") from error
    return device
