"""BatchTopK (Bussmann et al., "BatchTopK Sparse Autoencoders", arXiv 2412.06410): k latents a row on average over the batch.

In training the k·N largest positive pre-activations of a batch of N rows are kept, wherever they lie. A finished encoder must not depend on
who shares the batch: it keeps what exceeds a threshold, the running mean of the smallest pre-activation that batches kept, as in SAELens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sae import Codes, RaggedCodes, rows_of, select_topk, starts_of, to_ragged
from .config import TrainConfig
from .state import State

# The search for the smallest that is kept begins with this many times k candidates a row.
_CANDIDATES = 4
# The threshold's running mean remembers this many batches, as SAELens's does, but no more than this share of the run: the encoder it
# belongs to is the last one.
_BATCHES_REMEMBERED, _SHARE_REMEMBERED = 100, 0.05


def select_batch_topk(pre: Tensor, k: int, candidates: int = _CANDIDATES) -> RaggedCodes:
    """The k·N largest pre-activations [N, d_sae] of the batch, as far as they are positive; those equal to the smallest kept are kept too.

    The search is exact. Each row's candidates·k largest come first; a row whose least candidate stays below the smallest kept has no other
    that could be kept, and where that is so of all rows the candidates suffice.
    """
    width = min(candidates * k, pre.shape[1])
    indices, values = select_topk(pre, width)
    smallest, least = _nth_largest(values.flatten(), k * len(pre)), values.amin(1)
    if width == pre.shape[1] or bool(((least < smallest) | (least == 0)).all()):
        kept = ~((values < smallest) | (values == 0))  # put like this, a NaN stays and is seen
        rows, places = kept.nonzero(as_tuple=True)
        return RaggedCodes(indices[rows, places], values[rows, places], starts_of(rows, len(pre)))
    # The candidates' smallest is a lower bound, so that few more than k·N are left to choose from.
    smallest = _nth_largest(pre[pre >= smallest], k * len(pre))
    return to_ragged(pre, ~((pre < smallest) | (pre <= 0)))


def _nth_largest(values: Tensor, n: int) -> Tensor:
    """Of values [M], without dimensions; zero where there are fewer than n."""
    return values.kthvalue(len(values) - n + 1).values if n <= len(values) else values.new_zeros(())


class Threshold:
    """The running mean of the smallest pre-activation that is kept, in units of normalised rows: `value`, float64 without dimensions."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.value = torch.zeros((), dtype=torch.float64, device=device)
        self._rate = min(1.0, max(1 / _BATCHES_REMEMBERED, 1 / (_SHARE_REMEMBERED * config.steps)))
        self._whole_batch = min(config.batch_size, config.rows)

    def update(self, codes: Codes) -> None:
        """Take note of the codes of one batch; a smaller batch, as the last may be, counts for less."""
        values = codes if isinstance(codes, Tensor) else codes.values
        kept = values[values > 0]
        if len(kept):
            self.value.lerp_(kept.min().double(), self._rate * rows_of(codes) / self._whole_batch)

    def state(self) -> dict[str, Tensor]:
        """See `train.state`."""
        return {"value": self.value}

    def load_state(self, state: State) -> None:
        """Take the running mean back."""
        self.value.copy_(state["value"])
