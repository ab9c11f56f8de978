"""What changes over a run: the learning rate (linear warm-up, flat, linear decay to zero) and k, which may come down to its value."""

from __future__ import annotations

from .config import TrainConfig

WARM_UP = 0.05  # share of the run, where none is given
WARM_UP_AT_MOST = 1000  # steps, where none is given


def lr_at(step: int, config: TrainConfig) -> float:
    """The learning rate at `step` (0-based): the peak `config.lr`, but for warm-up and decay."""
    steps = config.steps
    rising, falling = (step + 1) / max(1, warm_up_steps(config)), (steps - step) / max(1.0, config.decay * steps)
    return config.lr * max(0.0, min(1.0, rising, falling))


def warm_up_steps(config: TrainConfig) -> int:
    """Steps over which the rate rises."""
    if config.warmup is not None:
        return int(config.warmup * config.steps)
    return min(WARM_UP_AT_MOST, int(WARM_UP * config.steps))


def k_at(step: int, config: TrainConfig) -> int | None:
    """How many latents a row keeps at `step` (0-based): from `k_start` linearly to `k` over the share `k_anneal` of the run."""
    if config.k is None or config.k_start is None:
        return config.k
    left = max(0.0, 1 - step / max(1.0, config.k_anneal * config.steps))
    return config.k + round(left * (config.k_start - config.k))
