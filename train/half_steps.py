"""The objective that PAM alternates on, at its half-steps, from the streamed sums: what Theorems 3.1 and C.6 of SplInterp (arXiv 2505.11836) speak of.

Over the N rows of the statistics, with the codes z by which they entered,

    F(W, b) = (Σ_r ‖z_r·W + b − x_r‖² + l1·Σ_r Σ_i z_ri + α‖W‖² + β‖b‖²) / (N·d_in),

in the units of `loss` and `fvu` of a training step: rows have mean square 1 per dimension. JumpReLU's penalty on L0 and AuxK's loss are not in it:
they do not depend on W and b, or are no part of the problem that is solved. A solve drawn towards the (W₀, b₀) that it begins from minimises F + D with

    D(W, b) = (μ‖W − W₀‖² + ν‖b − b₀‖²) / (N·d_in),

μ with the ridge. So for the same sums F(W*, b*) + D(W*, b*) ≤ F(W₀, b₀): that is exact, and must hold in every line that tells it. From one
solve to the next nothing of the kind is promised: other rows have come in, and those that stay have the codes of older encoders. What happens
with all rows in every step is shown by papers/convergence.
"""

from __future__ import annotations

import math

from torch import Tensor

from .config import TrainConfig
from .cost import cg_cost, objective_cost, solve_cost, step_cost
from .decoder import Decoder, Penalties
from .moments import Moments, squared_error

SHARE = 0.01  # of the time that measuring may take
MOST = 200  # solves of a run that are measured


def objective(moments: Moments, W_dec: Tensor, b_dec: Tensor, penalties: Penalties, l1: float) -> float:
    """F at W_dec [d_sae, d_in], b_dec [d_in]: one product with the Gram matrix, in float64. `l1` is `TrainConfig.l1`."""
    penalty = penalties.alpha * _squared(W_dec) + penalties.beta * _squared(b_dec) + l1 * float(moments.sum_z.sum())
    return (squared_error(moments, W_dec, b_dec) + penalty) / (moments.rows * len(b_dec))


def half_steps(moments: Moments, penalties: Penalties, W0: Tensor, b0: Tensor, solved: Decoder, l1: float) -> dict[str, float]:
    """What a line of metrics.jsonl tells of a solve that began from W0, b0, which are its anchors too.

    `objective_after_encoder`: F(W₀, b₀), after the encoder's steps. `objective_after_decoder`: F(W*, b*), before the solved rows are brought
    to unit norm. `objective_proximal`: D(W*, b*). `objective_rows`: N, fractional where rows have decayed.
    """
    drawn = penalties.mu * _squared(solved.W_dec - W0) + penalties.nu * _squared(solved.b_dec - b0)
    return {
        "objective_after_encoder": objective(moments, W0, b0, penalties, l1),
        "objective_after_decoder": objective(moments, solved.W_dec, solved.b_dec, penalties, l1),
        "objective_proximal": drawn / (moments.rows * len(b0)),
        "objective_rows": moments.rows,
    }


def measured_every(config: TrainConfig, d_in: int, solve_every: int, kept_rows: int | None) -> int:
    """Of how many solves one is measured: all, where that takes at most SHARE of the time, as counted in `cost`, and they are no more than MOST;
    in any case one in a run.

    Args:
        kept_rows: in the window whose codes are kept in place of a Gram matrix; None: there is such a matrix.
    """
    if kept_rows is None:
        cost, solve = objective_cost(d_in, config.d_sae), solve_cost(d_in, config.d_sae)
    else:
        assert config.k is not None
        cost, solve = (cg_cost(kept_rows, d_in, config.k, products) for products in (2, 1))  # it takes at least one
    between = solve_every * step_cost(config.batch_size, d_in, config.d_sae, config.k) + solve
    solves = config.steps // solve_every
    return max(1, min(solves, math.ceil(cost / (SHARE * between))), math.ceil(solves / MOST))


def _squared(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().sum())
