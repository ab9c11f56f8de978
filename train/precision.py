"""How the dense products of a training step, x·W_enc and pursuit's (x − x̂)·W_decᵀ, are rounded; nothing else ever is.

- float32: not at all.
- tf32: a GPU's tensor cores take the operands with 10 bits of mantissa in place of 23; products and sums are float32. Several times as
  fast, and half a unit of the tenth bit is 5e-4 of an operand: noise beside that of a batch.
- bfloat16: the operands are rounded to bfloat16 first (7 bits, 4e-3), in copies made for the step; products and sums are float32. Up to
  twice as fast again.

Weights, Adam, the sparse products, statistics, solves and every evaluation keep float32 or float64: torch's switch for TF32 is on within
these products alone. On a CPU bfloat16 multiplies the rounded operands in float32, so that its numerics, not its speed, can be tried there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor

from ..errors import SplinterpError
from .config import Precision

Rounding = Literal["float32", "tf32", "bfloat16"]


def rounding(precision: Precision, device: torch.device) -> Rounding:
    """What a precision means on a device; auto is float32 on a CPU and tf32 on a GPU.

    Raises:
        SplinterpError: the device, or this torch, cannot do it.
    """
    if precision == "auto":
        return "tf32" if device.type == "cuda" else "float32"
    if precision == "tf32" and device.type != "cuda":
        raise SplinterpError("--precision tf32 is a GPU's; use float32 or bfloat16 on a CPU, or leave it out.")
    if precision == "bfloat16" and device.type == "cuda" and not hasattr(torch.ops.aten.mm, "dtype"):
        raise SplinterpError(
            f"--precision bfloat16 needs a newer torch on a GPU than {torch.__version__} (one whose mm has out_dtype); use tf32."
        )
    return cast(Rounding, precision)


def pre_activations(x: Tensor, W_rows: Tensor, b: Tensor, rounded: Rounding, out: Tensor | None = None) -> Tensor:
    """x·W + b for rows x [N, d_in], W by latents [d_sae, d_in], b [d_sae], all float32 -> float32 [N, d_sae], in `out` if given."""
    W = W_rows.T
    if rounded == "bfloat16":
        x, W = x.bfloat16(), W.bfloat16()
        if x.is_cuda:
            # Not addmm: what it allows a float32 bias beside bfloat16 operands is not the same in every torch.
            return torch.mm(x, W, out_dtype=torch.float32, out=out).add_(b)
        x, W = x.to(torch.float32), W.to(torch.float32)
    with tensor_cores(rounded == "tf32"):
        return torch.addmm(b, x, W, out=out)


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Whether float32 products may use TF32 within the block; afterwards it is as it was."""
    matmul = torch.backends.cuda.matmul
    name, value = (
        ("fp32_precision", "tf32" if allowed else "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", allowed)
    )
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)
