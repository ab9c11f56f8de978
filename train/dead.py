"""Dead latents: who has not fired for long, and AuxK, the loss that brings them back.

AuxK (Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093, appendix A.2): the error that the live latents leave is
reconstructed from the k_aux dead latents with the largest pre-activations. As in SAELens, and unlike the paper, no ReLU is applied to
these: latents whose bias has fallen far below zero are reached too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sae import Codes, SparseCodes, decode, fired_counts, to_dense
from .group import ALONE, Group
from .state import State


class DeadLatents:
    """How many rows ago every latent last fired."""

    def __init__(self, d_sae: int, dead_after: int, device: torch.device) -> None:
        self.dead_after = dead_after
        self.rows_since = torch.zeros(d_sae, dtype=torch.int64, device=device)

    def update(self, codes: Codes, rows: int, group: Group = ALONE) -> None:
        """Take note of the codes of one batch of `rows` rows, which the ranks of `group` share."""
        fired = (fired_counts(codes, len(self.rows_since)) > 0).byte()
        group.max_(fired)
        self.rows_since = torch.where(fired.bool(), 0, self.rows_since + rows)

    def indices(self) -> Tensor:
        """The dead latents, int64 [n_dead]."""
        return (self.rows_since >= self.dead_after).nonzero().squeeze(1)

    def state(self) -> dict[str, Tensor]:
        """See `train.state`."""
        return {"rows_since": self.rows_since}

    def load_state(self, state: State) -> None:
        """Take the counters back."""
        self.rows_since.copy_(state["rows_since"])


# With more dead latents than this many times those chosen a row, sparse codes of them are decoded and differentiated faster than dense ones.
_SPARSE_FROM = 16


def auxk_loss(error: Tensor, pre: Tensor, W_dec: Tensor, whole: Tensor | None = None) -> Tensor:
    """‖e − ê‖²/‖e‖² with ê the error's reconstruction by at most d_in/2 dead latents a row; scaled down while few are dead.

    Args:
        error: what the live latents leave, x − x̂, detached, [N, d_in].
        pre: pre-activations of the dead latents [N, n_dead ≥ 1]. W_dec: their rows [n_dead, d_in].
        whole: ‖e‖² of the batch, where these rows are a part of it.
    """
    wanted = max(1, error.shape[1] // 2)
    k_aux = min(wanted, len(W_dec))
    values, chosen = pre.topk(k_aux, dim=1, sorted=False)
    codes = SparseCodes(chosen, values)  # without ReLU, or latents far below zero would get no gradient
    if len(W_dec) <= _SPARSE_FROM * k_aux:
        codes = to_dense(codes, len(W_dec))
    rest = error - decode(codes, W_dec, error.new_zeros(error.shape[1]))
    whole = error.square().sum() if whole is None else whole
    return (k_aux / wanted) * rest.square().sum() / whole.clamp(min=1e-12)
