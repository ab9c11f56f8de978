"""Codes that reconstruct better than the encoder's one pass, for training towards them: a step of hard-thresholding pursuit.

The encoder is an SAE's bottleneck: on the same dictionary at the same k, codes from pursuit leave two thirds of its error (the amortisation
gap, arXiv 2411.13117). So each training step looks, from the encoder's codes z, for better ones (Foucart, "Hard thresholding pursuit",
SIAM J. Numer. Anal. 49, 2011; non-negative, with gradient steps in place of the exact solve):

    u = z + η·(x − x̂)·W_decᵀ,   S′ = the k largest of u,   z′ ← max(0, z′ + a·g) on S′, twice,

where z′ starts as max(0, u) on S′, g = (x − x̂′)·W_decᵀ there, and a is the step's exact minimiser along g. Two things follow from z′.
The encoder is drawn towards its support: λ/(N·d_in) times Σ min(0, pre − z′)² over the latents that it missed and Σ z² over those that
it chose and pursuit did not; the loss's own gradient knows of neither, since it reaches chosen latents alone. And the decoder's gradient
is a mean of that by the encoder's codes and that by z′: its rows become what a row of activations consists of, not what this encoder makes
of it; at the end the last solve fits them to the finished encoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..sae import SparseCodes, decode, select_topk
from .precision import Rounding, pre_activations

# η and the gradient steps on the support. Three thresholdings instead of one, and four gradient steps, gave the same SAEs when tried.
STEP = 0.5
ON_SUPPORT = 2
# The part of the decoder's gradient that goes by z′ at the peak of the learning rate: 0.3 to 0.7 were alike, 1 worse. That it falls with the
# rate changes nothing in one pass, and is worth 1 % in many passes over few rows, where the last solve has nothing to add.
DECODER_SHARE = 0.5


class Pursued(NamedTuple):
    """Better codes [N, k] of a batch, x̂′ − x [N, d_in], and the gradients of the pull by the pre-activations, before the factor
    2λ/(N·d_in): [N, k] at the entries of the encoder's codes, and [N, k] at those of the better ones."""

    codes: SparseCodes
    error: Tensor
    at_encoders: Tensor
    at_pursued: Tensor


@torch.no_grad()
def pursue(
    x: Tensor, codes: SparseCodes, error: Tensor, pre: Tensor, W_dec: Tensor, b_dec: Tensor, rounded: Rounding, room: Tensor
) -> Pursued:
    """Better codes for rows x [N, d_in], from the encoder's `codes`, which leave `error` = x̂ − x, and from its pre-activations [N, d_sae].

    Args:
        W_dec: [d_sae, d_in] with unit-norm rows. rounded: how the one dense product is.
        room: [N, d_sae], overwritten.
    """
    k = codes.indices.shape[1]
    u = pre_activations(error.mul(-STEP), W_dec, b_dec.new_zeros(len(W_dec)), rounded, room)
    u.scatter_add_(1, codes.indices, codes.values)
    better = select_topk(u, k)
    for _ in range(ON_SUPPORT):
        with torch.enable_grad():  # for the values alone, as in `sparse_pass`
            values = better.values.detach().requires_grad_()
            x_hat = decode(better._replace(values=values), W_dec.detach(), b_dec.detach())
        rest = x - x_hat.detach()
        (g,) = torch.autograd.grad(x_hat, values, rest)
        g = g * (better.values > 0)
        moved = decode(better._replace(values=g), W_dec, torch.zeros_like(b_dec))
        a = (rest * moved).sum(1, keepdim=True) / moved.square().sum(1, keepdim=True).clamp_(min=1e-12)
        better = better._replace(values=better.values.addcmul(a, g).clamp_(min=0))
    ours, theirs = codes.values > 0, better.values > 0
    # Who is in whose support: marks in a matrix, of which only the marked places are looked at.
    marks = room.zero_()
    missed = theirs & (marks.scatter_(1, codes.indices, ours.to(marks.dtype)).gather(1, better.indices) == 0)
    marks.scatter_(1, codes.indices, 0.0)
    wrong = ours & (marks.scatter_(1, better.indices, theirs.to(marks.dtype)).gather(1, codes.indices) == 0)
    return Pursued(
        better,
        decode(better, W_dec, b_dec) - x,
        codes.values * wrong,
        (pre.gather(1, better.indices) - better.values).clamp_(max=0) * missed,
    )
