"""Proximal alternating minimisation in float64, with half-steps that the theory speaks of: nothing stochastic, nothing approximate but rounding.

Over N rows x [N, d_in], with codes z = ρ(W_enc·x + b_enc), ρ the ReLU or TopK,

    F = (Σ ‖z·W_dec + b_dec − x‖² + l1·Σ z + α‖W_dec‖² + β‖b_dec‖²) / (N·d_in).

The encoder's half-step takes M gradient steps on F + (μ_enc‖W_enc − W_encᵗ‖² + ν_enc‖b_enc − b_encᵗ‖²)/(N·d_in), each as long as Armijo's rule allows, so
that none raises it; the decoder's half-step minimises F + (μ_dec‖W_dec − W_decᵗ‖² + ν_dec‖b_dec − b_decᵗ‖²)/(N·d_in) in closed form (Theorem C.1), from streamed
sums. Hence, D being the pulls' values at what each half-step arrives at (Theorems 3.1 and C.6),

    F(t+½) + D_enc ≤ F(t)   and   F(t+1) + D_dec ≤ F(t+½).

With the half-steps on a part of the rows this holds for those rows; of F over all rows nothing follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...sae import select_topk, to_dense
from ...train import Decoder, Penalties, Statistics, solve_decoder

ARMIJO, SHRINK, GROW, MOST = 1e-4, 0.5, 2.0, 60  # of the line search: what it asks for, and how steps change; at most so many

Solve = Callable[..., Decoder]


@dataclass(frozen=True)
class Objective:
    """Of F and of the pulls. k: of TopK; None: ReLU. All but k are weights in sums over rows."""

    k: int | None
    l1: float = 0.0
    alpha: float = 0.0
    beta: float = 0.0
    mu_enc: float = 0.0
    nu_enc: float = 0.0
    mu_dec: float = 0.0
    nu_dec: float = 0.0

    def codes(self, x: Tensor, p: Parameters) -> Tensor:
        """Dense, [N, d_sae]."""
        pre = torch.addmm(p.b_enc, x, p.W_enc.T)
        return pre.relu() if self.k is None else to_dense(select_topk(pre, self.k), len(p.b_enc))

    def value(self, x: Tensor, p: Parameters, codes: Tensor | None = None) -> float:
        """F over rows x [N, d_in]."""
        z = self.codes(x, p) if codes is None else codes
        error = torch.addmm(p.b_dec, z, p.W_dec).sub_(x).square_().sum() + self.l1 * z.sum()
        return float(error + self.alpha * p.W_dec.square().sum() + self.beta * p.b_dec.square().sum()) / x.numel()

    def pull_enc(self, x: Tensor, p: Parameters, start: Parameters) -> float:
        """D_enc at p, from where `start` is."""
        drawn = self.mu_enc * (p.W_enc - start.W_enc).square().sum() + self.nu_enc * (p.b_enc - start.b_enc).square().sum()
        return float(drawn) / x.numel()

    def pull_dec(self, x: Tensor, p: Parameters, start: Parameters) -> float:
        """D_dec at p, from where `start` is."""
        drawn = self.mu_dec * (p.W_dec - start.W_dec).square().sum() + self.nu_dec * (p.b_dec - start.b_dec).square().sum()
        return float(drawn) / x.numel()


@dataclass(frozen=True)
class Parameters:
    """float64: W_enc [d_sae, d_in], by latents; b_enc [d_sae]; W_dec [d_sae, d_in]; b_dec [d_in]."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    @classmethod
    def begun(cls, d_in: int, d_sae: int, seed: int) -> Parameters:
        """As a training run begins: tied and small."""
        directions = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        directions /= directions.norm(dim=1, keepdim=True)
        return cls(0.5 * directions, directions.new_zeros(d_sae), directions, directions.new_zeros(d_in))


class Turn(NamedTuple):
    """One turn of the alternation: F and D after the encoder's half-step and after the decoder's, over all rows."""

    encoder: float
    pull_enc: float
    decoder: float
    pull_dec: float


def alternation(
    x: Tensor,
    objective: Objective,
    start: Parameters,
    steps: int,
    batches: Iterator[Tensor] | None = None,
    solve: Solve = solve_decoder,
) -> Iterator[Turn]:
    """Turn after turn, without end, from `start`.

    Args:
        x: float64 [N, d_in], all rows. steps: M. batches: the rows that each turn's half-steps see; None: all, every time.
        solve: in the place of `solve_decoder`, for a test that sees what a wrong one does.
    """
    p, rate = start, 1.0
    while True:
        rows = x if batches is None else next(batches)
        before = p
        p, rate = _encoder_half_step(rows, objective, p, steps, rate)
        encoder, pull_enc = objective.value(x, p), objective.pull_enc(rows, p, before)
        before, p = p, _decoder_half_step(rows, objective, p, solve)
        yield Turn(encoder, pull_enc, objective.value(x, p), objective.pull_dec(rows, p, before))


def _encoder_half_step(x: Tensor, objective: Objective, start: Parameters, steps: int, rate: float) -> tuple[Parameters, float]:
    """M steps down the gradient, and the rate to try first the next time."""
    p = start
    for _ in range(steps):
        by_W, by_b = gradient(x, objective, p, start)
        slope = float(by_W.square().sum() + by_b.square().sum())
        at, first = objective.value(x, p) + objective.pull_enc(x, p, start), rate
        for _ in range(MOST):
            tried = replace(p, W_enc=p.W_enc - rate * by_W, b_enc=p.b_enc - rate * by_b)
            if objective.value(x, tried) + objective.pull_enc(x, tried, start) <= at - ARMIJO * rate * slope:
                p, rate = tried, rate * GROW
                break
            rate *= SHRINK
        else:  # rounding leaves nothing to descend: stay
            rate = first
    return p, rate


def gradient(x: Tensor, objective: Objective, p: Parameters, start: Parameters) -> tuple[Tensor, Tensor]:
    """Of F + D_enc by W_enc and b_enc, where ρ has one."""
    z = objective.codes(x, p)
    error = torch.addmm(p.b_dec, z, p.W_dec).sub_(x)
    by_code = (2 * error @ p.W_dec.T).add_(objective.l1).mul_(z > 0)
    by_W = by_code.T @ x + 2 * objective.mu_enc * (p.W_enc - start.W_enc)
    by_b = by_code.sum(0) + 2 * objective.nu_enc * (p.b_enc - start.b_enc)
    return by_W / x.numel(), by_b / x.numel()


def _decoder_half_step(x: Tensor, objective: Objective, p: Parameters, solve: Solve) -> Parameters:
    statistics = Statistics(x.shape[1], len(p.b_enc))
    statistics.add(x, objective.codes(x, p))
    penalties = Penalties(alpha=objective.alpha, beta=objective.beta, mu=objective.mu_dec, nu=objective.nu_dec)
    decoder = solve(statistics, penalties, W0=p.W_dec, b0=p.b_dec)
    return replace(p, W_dec=decoder.W_dec, b_dec=decoder.b_dec)
