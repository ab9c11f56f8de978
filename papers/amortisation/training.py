"""The training loop: full batches, Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .encoders import Codes
from .losses import Loss

Seen = Callable[[int, Tensor], None]


@torch.no_grad()
def train(codes: Codes, loss: Loss, steps: int, rate: float, marks: Sequence[int] = (), seen: Seen | None = None) -> None:
    """Take `steps` full-batch steps of Adam on all seeds at once.

    Args:
        marks: numbers of steps after which `seen` is called with the number and the training rows' codes.
    """
    adam = torch.optim.Adam([*codes.parameters, *loss.parameters], lr=rate, fused=True)
    due = set(marks) if seen else set()
    for step in range(1, steps + 1):
        codes.backward(loss.backward(codes.forward()))
        adam.step()
        if step in due and seen:
            seen(step, codes.forward())


def marks(steps: int, count: int) -> list[int]:
    """About `count` numbers of steps, even on a logarithmic scale from 1 % on, the last among them; of one, the last alone."""
    if count == 1:
        return [steps]
    return sorted({max(1, round(steps * 0.01 ** (1 - i / (count - 1)))) for i in range(count)})
