"""JumpReLU (Rajamanoharan et al., "Jumping Ahead", arXiv 2407.14435): each latent learns the threshold θ from which it fires.

z = u·H(u − θ) for a pre-activation u, H the unit step. The loss of a batch has the penalty

    λ·h(L0/k − 1),   h(a) = a² up to |a| = 1/10 and linear beyond,

L0 the mean number of latents a row and k the number wanted. It is the paper's loss for a given sparsity, (L0/k − 1)², but for the batch's
mean, so that rows share out their latents, and but for the linear part: Adam's second moments remember large gradients for a thousand steps,
and a square let L0 fall below k at first and hardly come back. λ need not be tuned to come to k.

Neither z nor L0 has a gradient by θ that is of use: as in the paper, the straight-through ones are

    ∂z/∂θ = −(θ/ε)·K((u − θ)/ε),   ∂H/∂θ = −(1/ε)·K((u − θ)/ε),   K(a) = 1 where |a| < 1/2, else 0,

estimates of the expected loss's gradient from what lies within half a bandwidth ε of the threshold. (Handing them on to the encoder too left
fewer latents dead and the FVU higher when tried.) θ is trained by its logarithm.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from ..sae import Codes, RaggedCodes, sparse_if_sparse, thinned
from .config import TrainConfig
from .sparse import Backward
from .state import State

# Pre-activations have a root mean square of one half at the beginning (`Weights`).
_SPREAD, _LEAST = 0.5, 0.05
# Times k that fire at the beginning: what lies far below its threshold has no gradient, so that L0 comes down more easily than up.
_MORE = 2
# How far from k, relative to it, the penalty is a square.
_NEAR = 0.1
# Adam takes steps of the same size on everything: thresholds keep up with the encoder at this many times its rate.
_PACE = 3.0


class Forward(NamedTuple):
    """Of one batch.

    Attributes:
        codes: with entries, of value zero, for all pre-activations from half a bandwidth below the threshold; or dense.
        through: the way back, which leaves the thresholds' gradient behind. penalty: λ·h(L0/k − 1).
    """

    codes: RaggedCodes | Tensor
    through: Backward
    penalty: float


class JumpReLU:
    """The thresholds θ = exp(3·slow_log), float32 [d_sae], in units of pre-activations: those of normalised rows and unit decoder norms.

    They begin where twice k latents a row fire if pre-activations are normal.
    """

    def __init__(self, d_in: int, config: TrainConfig, device: torch.device) -> None:
        assert config.k is not None
        k = config.k_start or config.k
        share = min(0.5, _MORE * k / config.d_sae)
        at = NormalDist().inv_cdf(1 - share)
        self.slow_log = torch.full((config.d_sae,), math.log(max(_LEAST, _SPREAD * at)) / _PACE, device=device)
        self.bandwidth, self.weight = config.bandwidth * (d_in / config.k) ** 0.5, config.l0

    @property
    def threshold(self) -> Tensor:
        """θ [d_sae]."""
        return (_PACE * self.slow_log.detach()).exp()

    def encode(self, pre: Tensor) -> Codes:
        """Pre-activations [N, d_sae] -> codes."""
        return sparse_if_sparse(pre * ~(pre <= self.threshold))  # put like this, a NaN stays and is seen

    def forward(self, pre: Tensor, k: int) -> Forward:
        """As `encode`, for pre-activations [N, d_sae] on the way to gradients; `k` latents a row are wanted."""
        threshold, half = self.threshold, self.bandwidth / 2
        codes = sparse_if_sparse(pre, ~(pre <= threshold - half))
        reached, theta = (codes, threshold) if isinstance(codes, Tensor) else (codes.values, threshold[codes.indices])
        fires = ~(reached <= theta)
        over = float(fires.sum()) / len(pre) / k - 1
        near = max(-_NEAR, min(_NEAR, over))
        by_step = 2 * self.weight * near / k / len(pre)  # of the penalty, by each H
        window = (reached - theta).abs() < half

        def through(by_code: Tensor) -> Tensor:
            by_theta = torch.where(window, -(theta * by_code + by_step) / self.bandwidth, 0)
            if isinstance(codes, Tensor):
                by_threshold = by_theta.sum(0)
            else:
                by_threshold = torch.zeros_like(threshold).scatter_add_(0, codes.indices, by_theta)
            self.slow_log.grad = _PACE * threshold * by_threshold
            return by_code.mul_(fires)

        values = reached * fires
        return Forward(
            values if isinstance(codes, Tensor) else codes._replace(values=values),
            through,
            self.weight * near * (2 * over - near),
        )

    @torch.no_grad()
    def rescale(self, factors: Tensor) -> None:
        """Change of gauge: all pre-activations of latent i are multiplied by factors[i], and so is its threshold; factors [d_sae] > 0."""
        self.slow_log.add_(factors.log() / _PACE)

    def state(self) -> dict[str, Tensor]:
        """See `train.state`."""
        return {"slow_log": self.slow_log.detach()}

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Take the thresholds back."""
        self.slow_log.copy_(state["slow_log"])


def firing(codes: RaggedCodes | Tensor) -> RaggedCodes | Tensor:
    """The codes of a `Forward` without the entries that are zero."""
    return codes if isinstance(codes, Tensor) else thinned(codes, codes.values != 0)
