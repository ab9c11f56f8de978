"""Resampling of dead latents (Bricken et al., "Towards Monosemanticity", transformer-circuits.pub, 2023): they begin anew, towards rows that
the SAE reconstructs badly.

Rows are drawn from the present batch with probabilities in proportion to the square of their loss. A dead latent's decoder row is set to
the direction of what is left of its row, x − x̂ (the paper takes x itself, which live latents explain in part), its encoder column to the
same, smaller than those of live latents, its bias to zero, and Adam's moments of all of them to zero. Ranks draw from the rows of all.

A latent counts as dead when it has not fired for `dead_after` rows, and has as long again after each resampling; none is resampled late in a
run, when the learning rate is below half of its peak: it would not have the time to learn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import TrainConfig
from .encoder import Weights
from .group import Group
from .state import State

# The norm of a new encoder column, in units of the mean norm of live ones.
_NORM = 0.2


class Resampling:
    """Draws rows and begins latents anew; its one random generator is part of the run's state."""

    def __init__(self, config: TrainConfig) -> None:
        self.peak = config.lr
        self.generator = torch.Generator().manual_seed(config.seed)

    @torch.no_grad()
    def revive(
        self, weights: Weights, optimizer: torch.optim.Optimizer, dead: Tensor, error: Tensor, lr: float
    ) -> Tensor | None:
        """Begin dead latents anew, as many of them as there are rows.

        Args:
            dead: their indices [n_dead]. error: x̂ − x of this rank's share of the batch [N, d_in]. lr: the present learning rate.
        Returns: the indices of those that begin anew; None where none does.
        """
        if not len(dead) or lr < self.peak / 2:
            return None
        group = weights.group
        weight = group.gather(error.square().sum(1).double().square().cpu())
        # From a loss that is no number there is nothing to learn; the loop will tell.
        if not bool(weight.sum().isfinite()):
            return None
        dead = dead[: len(weight)]
        drawn = torch.multinomial(weight.clamp(min=1e-300), len(dead), generator=self.generator).to(error.device)
        directions = torch.nn.functional.normalize(-_rows(error, drawn, group), dim=1)
        live = torch.ones(len(weights.b_enc), dtype=torch.bool, device=error.device)
        live[dead] = False
        norm = weights.W_enc_rows[live].norm(dim=1).mean() if bool(live.any()) else 1.0
        weights.W_dec[dead] = directions
        weights.W_enc_rows[dead] = _NORM * norm * directions
        weights.b_enc[dead] = 0
        if weights.jumprelu and bool(live.any()):
            thresholds = weights.jumprelu.slow_log
            thresholds[dead] = thresholds[live].mean()
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            if len(p) == len(live) and p is not weights.b_dec:
                for name in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[p][name][dead] = 0
        return dead

    def state(self) -> dict[str, Tensor]:
        """See `train.state`."""
        return {"generator": self.generator.get_state()}

    def load_state(self, state: State) -> None:
        """Take the generator's state back."""
        self.generator.set_state(state["generator"].cpu())


def _rows(shares: Tensor, drawn: Tensor, group: Group) -> Tensor:
    """The rows [n, d_in] with these indices [n] in a batch of which each rank has its share [N, d_in]."""
    first = int(group.gather(torch.tensor([len(shares)]))[: group.rank].sum())
    own = (drawn >= first) & (drawn < first + len(shares))
    rows = shares.new_zeros(len(drawn), shares.shape[1])
    rows[own] = shares[drawn[own] - first]
    group.sum_(rows)
    return rows
