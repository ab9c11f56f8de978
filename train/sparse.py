"""The gradients of an SAE by hand, from codes that stay (indices, values): nothing here is [N, d_sae] but the pre-activations, unless the
codes are dense, as ReLU's may be.

With e = x̂ − x, loss Σ‖e‖²/(N·d_in), s = 2/(N·d_in), entries (r, i) of the codes Z:
    h_ri = s·e_r·W_dec,i,   g_ri = h_ri where z_ri > 0, else 0    (by the codes; by the pre-activations)
    ∂W_enc,i = Σ_r g_ri x_r,   ∂b_enc,i = Σ_r g_ri,   ∂W_dec,i = s Σ_r z_ri e_r,   ∂b_dec = s Σ_r e_r.
L1, λ Σ z_ri/(N·d_in), adds its constant to every h. By the decoder it is λ Σ_r z_ri ‖W_dec,i‖: that gradient lies along the row, and the
step, which keeps norms at one, takes none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..sae import ByLatent, Codes, RaggedCodes, SparseCodes, by_latent, decode, kernels_for, sum_rows
from .dead import auxk_loss
from .pursuit import Pursued

# Given the gradient by the codes' entries h, which may be overwritten, returns that by their pre-activations g, of the same shape.
Backward = Callable[[Tensor], Tensor]
# Given x̂ − x, better codes.
Pursuit = Callable[[Tensor], Pursued]


class Gradients(NamedTuple):
    """Of the loss, by the encoder's columns [d_sae, d_in] and biases [d_sae] and the decoder [d_sae, d_in], [d_in] (or None)."""

    W_enc_rows: Tensor
    b_enc: Tensor
    W_dec: Tensor | None
    b_dec: Tensor | None


class Pass(NamedTuple):
    """One pass forward and back: Σ‖x̂ − x‖², x̂ − x [N, d_in], the gradients, the pattern that they share, of sparse codes, and Zᵀx
    [d_sae, d_in] where it came along."""

    squared_error: Tensor
    error: Tensor
    gradients: Gradients
    pattern: ByLatent | None
    cross: Tensor | None = None


def through_relu(codes: Codes, l1: float = 0.0) -> Backward:
    """Of ReLU, and of TopK, which ends with it; `l1` is λ/(N·d_in)."""
    values = codes if isinstance(codes, Tensor) else codes.values
    return lambda by_code: (by_code.add_(l1) if l1 else by_code).mul_(values > 0)


def sparse_pass(
    x: Tensor, codes: SparseCodes | RaggedCodes, W_dec: Tensor, b_dec: Tensor, decoder: bool = True, through: Backward | None = None,
    rows: int | None = None, *, moment: bool = False, pursuit: Pursuit | None = None, pull: float = 0.0, share: float = 0.0,
) -> Pass:  # fmt: skip
    """The loss Σ‖x̂ − x‖²/(N·d_in) of rows x [N, d_in] with their codes, and its gradients; the decoder's if asked for.

    Args:
        rows: N, where x is a part of the batch; the results are then what this part adds to those of the batch.
        through: the activation's part of the way back; ReLU's if left out.
        moment: whether Zᵀx will be wanted too. A GPU's kernel takes it from the rows of x that it gathers for ∂W_enc; a CPU gains nothing
            by that, and makes it later.
        pursuit: gives better codes, towards whose support the encoder is drawn with the weight λ = `pull`, and which have the `share` of
            the decoder's gradient (train/pursuit.py). The loss that is told stays that of the codes.
    """
    pattern = by_latent(codes, len(W_dec))
    with torch.enable_grad():  # for the values alone: embedding_bag's own gradient is the gathered product e_r·W_dec,i
        values = codes.values.detach().requires_grad_()
        x_hat = decode(codes._replace(values=values), W_dec.detach(), b_dec.detach())
    error = x_hat.detach() - x
    scale = _scale(x, rows)
    (by_code,) = torch.autograd.grad(x_hat, values, error)
    by_pre = (through or through_relu(codes))(by_code.mul_(scale))
    better = pursuit(error) if pursuit else None
    if better:
        by_pre.add_(better.at_encoders, alpha=pull * scale)
    b_enc = by_pre.new_zeros(len(W_dec)).scatter_add_(0, codes.indices.reshape(-1), by_pre.reshape(-1))
    if moment and (kernels := kernels_for(x)):
        W_enc_rows, cross = kernels.sum_rows(pattern, x, by_pre, codes.values)
    else:
        W_enc_rows, cross = sum_rows(pattern, by_pre, x), None
    ours = scale * (1 - share) if better else scale
    gradients = Gradients(
        W_enc_rows,
        b_enc,
        sum_rows(pattern, ours * codes.values, error) if decoder else None,
        ours * error.sum(0) if decoder else None,
    )
    if better:
        _add_pursuit(gradients, x, better, pull * scale, share * scale)
    return Pass(error.square().sum(), error, gradients, pattern, cross)


def _add_pursuit(to: Gradients, x: Tensor, better: Pursued, pull: float, share: float) -> None:
    """What better codes add to the gradients, but for what concerns latents that the encoder chose."""
    pattern = by_latent(better.codes, len(to.b_enc))
    by_pre = better.at_pursued * pull
    to.W_enc_rows.add_(sum_rows(pattern, by_pre, x))
    to.b_enc.scatter_add_(0, better.codes.indices.reshape(-1), by_pre.reshape(-1))
    if to.W_dec is not None and to.b_dec is not None:
        to.W_dec.add_(sum_rows(pattern, share * better.codes.values, better.error))
        to.b_dec.add_(better.error.sum(0), alpha=share)


def dense_pass(
    x: Tensor, codes: Tensor, W_dec: Tensor, b_dec: Tensor, decoder: bool = True, through: Backward | None = None,
    rows: int | None = None,
) -> Pass:  # fmt: skip
    """As `sparse_pass`, from dense codes [N, d_sae]."""
    error = decode(codes, W_dec, b_dec) - x
    scale = _scale(x, rows)
    by_pre = (through or through_relu(codes))((error @ W_dec.T).mul_(scale))
    gradients = Gradients(
        by_pre.T @ x,
        by_pre.sum(0),
        (codes.T @ error).mul_(scale) if decoder else None,
        scale * error.sum(0) if decoder else None,
    )
    return Pass(error.square().sum(), error, gradients, None)


def _scale(x: Tensor, rows: int | None) -> float:
    return 2 / ((len(x) if rows is None else rows) * x.shape[1])


def add_auxk(
    done: Pass, coefficient: float, x: Tensor, pre: Tensor, W_dec: Tensor, dead: Tensor, whole: Tensor | None = None
) -> Tensor:
    """coefficient · AuxK; its gradients, which reach the dead latents alone, are added to those of the pass.

    Args:
        pre: pre-activations [N, d_sae]. dead: indices of dead latents [n_dead ≥ 1].
        whole: Σ‖x̂ − x‖² over the batch, where x is a part of it; the result is then this part's share.
    """
    with torch.enable_grad():
        pre_dead, rows = pre[:, dead].requires_grad_(), W_dec[dead].detach().requires_grad_()
        loss = coefficient * auxk_loss(-done.error, pre_dead, rows, whole)
    by_pre, by_rows = torch.autograd.grad(loss, [pre_dead, rows])
    to = done.gradients
    to.W_enc_rows.index_add_(0, dead, by_pre.T @ x)
    to.b_enc.index_add_(0, dead, by_pre.sum(0))
    if to.W_dec is not None:
        to.W_dec.index_add_(0, dead, by_rows)
    return loss.detach()
