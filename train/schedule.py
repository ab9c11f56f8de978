"""The learning rate over a run: linear warm-up, flat, linear decay to zero."""

from __future__ import annotations

WARM_UP, DECAY = 0.05, 0.35  # shares of the run
WARM_UP_AT_MOST = 1000  # steps


def lr_factor(step: int, steps: int) -> float:
    """The factor on the peak rate at `step` (0-based) of `steps`."""
    warm_up = max(1, min(WARM_UP_AT_MOST, int(WARM_UP * steps)))
    return max(0.0, min(1.0, (step + 1) / warm_up, (steps - step) / max(1.0, DECAY * steps)))
