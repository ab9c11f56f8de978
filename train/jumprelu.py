"""JumpReLU (Rajamanoharan et al., "Jumping Ahead", arXiv 2407.14435): each latent learns the threshold θ from which it fires.

z = u·H(u − θ) for a pre-activation u, H the unit step. The loss of a batch has the penalty λ·(L0/k − 1)², L0 the mean number of latents a
row and k the number wanted: the paper's loss for a given sparsity, but of the batch's mean, so that rows share out their latents. Its λ
need not be tuned to come to k. Neither z nor L0 has a gradient by θ that is of use: as in the paper, the straight-through ones are

    ∂z/∂θ = −(θ/ε)·K((u − θ)/ε),   ∂H/∂θ = −(1/ε)·K((u − θ)/ε),   K(a) = 1 where |a| < 1/2, else 0,

estimates of the expected loss's gradient from what lies within half a bandwidth ε of the threshold. θ is trained by its logarithm.
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


class Forward(NamedTuple):
    """Of one batch.

    Attributes:
        codes: with entries, of value zero, for all pre-activations from half a bandwidth below the threshold; or dense.
        through: the way back, which leaves the thresholds' gradient behind. penalty: λ(L0/k − 1)².
    """

    codes: RaggedCodes | Tensor
    through: Backward
    penalty: float


class JumpReLU:
    """The thresholds, as `log_threshold` float32 [d_sae], in units of pre-activations: those of normalised rows and unit decoder norms.

    They begin where twice k latents a row fire if pre-activations are normal.
    """

    def __init__(self, d_in: int, config: TrainConfig, device: torch.device) -> None:
        assert config.k is not None
        k = config.k_start or config.k
        share = min(0.5, _MORE * k / config.d_sae)
        at = NormalDist().inv_cdf(1 - share)
        self.log_threshold = torch.full((config.d_sae,), math.log(max(_LEAST, _SPREAD * at)), device=device)
        self.bandwidth, self.weight = config.bandwidth * (d_in / config.k) ** 0.5, config.l0

    @property
    def threshold(self) -> Tensor:
        """θ [d_sae]."""
        return self.log_threshold.detach().exp()

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
        by_step = 2 * self.weight * over / k / len(pre)  # of the penalty, by each H
        window = (reached - theta).abs() < half

        def through(by_code: Tensor) -> Tensor:
            by_theta = torch.where(window, -(theta * by_code + by_step) / self.bandwidth, 0)
            if isinstance(codes, Tensor):
                by_threshold = by_theta.sum(0)
            else:
                by_threshold = torch.zeros_like(threshold).scatter_add_(0, codes.indices, by_theta)
            self.log_threshold.grad = threshold * by_threshold
            return by_code.mul_(fires)

        values = reached * fires
        return Forward(values if isinstance(codes, Tensor) else codes._replace(values=values), through, self.weight * over**2)

    @torch.no_grad()
    def rescale(self, factors: Tensor) -> None:
        """Change of gauge: all pre-activations of latent i are multiplied by factors[i], and so is its threshold; factors [d_sae] > 0."""
        self.log_threshold.add_(factors.log())

    def state(self) -> dict[str, Tensor]:
        """See `train.state`."""
        return {"log_threshold": self.log_threshold.detach()}

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Take the thresholds back."""
        self.log_threshold.copy_(state["log_threshold"])


def firing(codes: RaggedCodes | Tensor) -> RaggedCodes | Tensor:
    """The codes of a `Forward` without the entries that are zero."""
    return codes if isinstance(codes, Tensor) else thinned(codes, codes.values != 0)
