"""Inference-time optimisation (arXiv 2411.13117): Adam on free codes u = exp(p) of each row, for the loss that trained the SAE,

    MSE + λ·mean|u|   =   ‖y − u·A‖²/d_in + λ·Σu_i/d_sae.

From nothing all sizes begin alike, at ‖y‖/√d_sae. From an encoder's codes p is their logarithm; latents that it left out begin at a small part
of ‖y‖, since a logarithm has no zero and Adam, whose steps in p do not depend on the gradient's size, brings back those that are needed. Each row
is given the best codes that it has seen, those of the start included; of these, codes that exp left at next to nothing, which no penalty would
pay for, are made zero: all without which the loss alone would fall, or as few of them as it takes that it does not rise.
The problem itself is a lasso, which fista solves to the end (see `Target`): this is the paper's way there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Dictionary

RATE = 0.02
_BETAS = (0.9, 0.999)
FLOOR = 1e-4  # in units of ‖y‖: where latents begin that the start left out
_TRIES = 8  # to make codes zero


def optimise(
    y: Tensor, dictionary: Dictionary, l1: float, steps: int, rate: float = RATE, start: Tensor | None = None
) -> Tensor:
    """Sizes [N, d_sae], none negative, of rows y [N, d_in]; from those of `start` [N, d_sae], if given."""
    atoms, (d_sae, d_in) = dictionary.atoms, dictionary.atoms.shape
    scale = y.norm(dim=1, keepdim=True).clamp_(min=torch.finfo(y.dtype).tiny)
    there = dictionary.norms > 0
    if start is None:
        p = (scale / d_sae**0.5).log().expand(-1, d_sae).clone()
        best, lowest = torch.zeros_like(p), y.square().mean(1)
    else:
        best = start.clamp(min=0) * there
        lowest = (y - best @ atoms).square().mean(1) + l1 * best.mean(1)
        p = torch.maximum(best, FLOOR * scale).log()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for i in range(1, steps + 2):
        u = p.exp() * there
        rest = y - u @ atoms
        loss = rest.square().mean(1) + l1 * u.mean(1)
        better = loss < lowest
        lowest = torch.where(better, loss, lowest)
        best = torch.where(better[:, None], u, best)
        if i > steps:
            break
        gradient = torch.addmm(u.new_full((1, 1), l1 / d_sae), rest, atoms.T, alpha=-2 / d_in).mul_(u)
        m.lerp_(gradient, 1 - _BETAS[0])
        v.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        spread = (v / (1 - _BETAS[1] ** i)).sqrt_().add_(torch.finfo(y.dtype).tiny)
        p.addcdiv_(m, spread, value=-rate / (1 - _BETAS[0] ** i))
    return _without_the_idle(y, dictionary, l1, best, lowest)


def _without_the_idle(y: Tensor, dictionary: Dictionary, l1: float, u: Tensor, lowest: Tensor) -> Tensor:
    """Of each row's codes those zero that its loss, now `lowest` [N], is lower without one by one; and where it is not without all of them
    together, the smallest alone."""
    atoms, (d_sae, d_in) = dictionary.atoms, dictionary.atoms.shape
    rest = y - u @ atoms
    change = (2 * rest @ atoms.T + u * atoms.square().sum(1)).mul_(u / d_in).sub_(u, alpha=l1 / d_sae)
    limit = u.amax(1, keepdim=True)  # of sizes that may go
    done = torch.zeros_like(lowest, dtype=torch.bool)
    for _ in range(_TRIES):
        kept = torch.where((change < 0) & (u <= limit), 0.0, u)
        loss = (y - kept @ atoms).square().mean(1) + l1 * kept.mean(1)
        good = (loss <= lowest) & ~done
        u, done = torch.where(good[:, None], kept, u), done | good
        if done.all():
            break
        limit = limit / 8
    return u
