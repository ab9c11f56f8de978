"""Whether the products of sparse codes go through Triton's kernels or torch's own operations: decided here, and nowhere else."""

from __future__ import annotations

import subprocess
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

_LARGEST_DEVIATION = 1e-4  # of the kernels from float64, on a problem where float32 leaves some 1e-6


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """`triton_kernels` for a float32 tensor on a CUDA device, where Triton is installed (torch brings it there) and works; else None.

    Without them torch's operations do the same sums in another order. Float64, as in the last solve, is always theirs. In Triton's
    interpreter (TRITON_INTERPRET=1, for tests) the kernels take tensors on the CPU instead.
    """
    if tensor.dtype != torch.float32 or tensor.device.type not in ("cpu", "cuda"):
        return None
    kernels = _triton_kernels()
    if kernels is None or tensor.device.type != ("cpu" if kernels.INTERPRETED else "cuda"):
        return None
    return kernels if _work(kernels, tensor.device) else None


@cache
def _triton_kernels() -> ModuleType | None:
    try:
        from . import triton_kernels
    except ImportError:  # no Triton: no CUDA build of torch, or a platform that it does not know
        return None
    return triton_kernels


@cache
def _work(kernels: ModuleType, device: torch.device) -> bool:
    """Whether the kernels start on a device and are right there, tried once: Triton wants a C compiler, and these few have seen no GPU."""
    try:
        deviation = kernels.deviation(device)
        problem = f"they are off by {deviation:.1e}" if not deviation <= _LARGEST_DEVIATION else None
    except (kernels.TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    if problem:
        warnings.warn(
            f"The Triton kernels do not work on {device} ({problem}); torch's own operations, which are slower, do their work.",
            RuntimeWarning,
            stacklevel=4,
        )
    return problem is None
