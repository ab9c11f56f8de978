"""Whether the products of sparse codes go through Triton's kernels or torch's own operations: decided here, and nowhere else."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """`triton_kernels` for a float32 tensor on a CUDA device, where Triton is installed (torch brings it there); else None.

    Without them torch's operations do the same sums in another order. Float64, as in the last solve, is always theirs. In Triton's
    interpreter (TRITON_INTERPRET=1, for tests) the kernels take tensors on the CPU as well.
    """
    kernels = _triton_kernels()
    if kernels is None or tensor.dtype != torch.float32:
        return None
    return kernels if tensor.is_cuda or (kernels.INTERPRETED and tensor.device.type == "cpu") else None


@cache
def _triton_kernels() -> ModuleType | None:
    try:
        import triton  # noqa: F401
    except ImportError:  # no CUDA build of torch, or a platform that Triton does not know
        return None
    from . import triton_kernels

    return triton_kernels
