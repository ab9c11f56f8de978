"""How the one dense product of a training step, x·W_enc, is rounded, and with ReLU its gradients; nothing else ever is.

- float32: not at all.
- tf32: a GPU's tensor cores take the operands with 10 bits of mantissa in place of 23; products and sums are float32. Several times as
  fast, and half a unit of the tenth bit is 5e-4 of an operand: noise beside that of a batch.
- bfloat16: the operands are rounded to bfloat16 first (7 bits, 4e-3), in copies made for the step; products and sums are float32. Up to
  twice as fast again.

Weights, Adam, the sparse products, statistics, solves and every evaluation keep float32 or float64: torch's switch for TF32 is on within
the product alone. On a CPU bfloat16 multiplies the rounded operands in float32, so that its numerics, not its speed, can be tried there.
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
    """x·W + b for rows x [N, d_in], W by latents [d_sae, d_in], b [d_sae], all float32 -> float32 [N, d_sae].

    Differentiable, with its gradients' products rounded alike; but not with `out`, where the result then is.
    """
    if out is None and torch.is_grad_enabled():
        return _PreActivations.apply(x, W_rows, b, rounded)  # type: ignore[return-value]
    return _product(x, W_rows.T, rounded, b, out)


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, W_rows: Tensor, b: Tensor, rounded: Rounding) -> Tensor:
        ctx.save_for_backward(x, W_rows)
        ctx.rounded = rounded
        return _product(x, W_rows.T, rounded, b)

    @staticmethod
    def backward(ctx, by_pre: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, W_rows = ctx.saved_tensors
        by_x = _product(by_pre, W_rows, ctx.rounded) if ctx.needs_input_grad[0] else None
        by_W_rows = _product(by_pre.T, x, ctx.rounded) if ctx.needs_input_grad[1] else None
        return by_x, by_W_rows, by_pre.sum(0) if ctx.needs_input_grad[2] else None, None


def _product(a: Tensor, b: Tensor, rounded: Rounding, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """a·b (+ bias): float32 [N, m], [m, n], [n] -> [N, n]."""
    if rounded == "bfloat16":
        a, b = a.bfloat16(), b.bfloat16()
        if a.is_cuda:
            product = torch.mm(a, b, out_dtype=torch.float32, out=out)
            # Not addmm: what it allows a float32 bias beside bfloat16 operands is not the same in every torch.
            return product if bias is None else product.add_(bias)
        a, b = a.to(torch.float32), b.to(torch.float32)
    with tensor_cores(rounded == "tf32"):
        return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)


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
