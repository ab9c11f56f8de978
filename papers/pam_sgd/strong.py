"""The strong preset: the product's own trainer, every method at its best rate.

Steps, schedule, jitter and last solve are those of `splinterp train`; only the rows lie in memory, so that validation and test rows are the same for
every size. Four arms of three trainings: PAM-SGD with its defaults (`pam`), the alternation as published (`--solve-only`: `alternation`), and our
strong Adam (untied, unit-norm decoder, AuxK, warm-up and decay) as trained (`adam`) and after the last solve (`adam+solve`). With ReLU the
product's PAM-SGD is Adam with the last solve, to the bit, and is not trained twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...sae import SAE
from ...train import Penalties, TrainConfig, last_solve
from ...train.group import ALONE
from ...train.jitter import jittered
from ...train.schedule import k_at, lr_at
from ...train.stages import METHODS
from ..alternation import AT_ONCE
from .data import Split
from .published import Check, figures

Trainer = Literal["pam", "alternation", "adam"]
SETTINGS: dict[Trainer, dict[str, Any]] = {
    "pam": {"method": "pam"}, "alternation": {"method": "pam", "decoder_steps": False}, "adam": {"method": "adam"}
}  # fmt: skip
TRAINED, SOLVED = "trained", "solved"


@dataclass(frozen=True)
class Strong:
    """One method, whose rate is to be tuned: by validation FVU, on a grid in units of `unit` that grows, at most `extensions` times, while the
    best lies at its end.

    Attributes:
        config: the product's settings; its rate and seed do not count. rows: different ones to train on. stages: whose rates are tuned, each for
            itself: SOLVED, and for Adam TRAINED.
    """

    config: TrainConfig
    rows: int
    unit: float
    factors: tuple[float, ...]
    extensions: int
    stages: tuple[str, ...] = (SOLVED,)

    @property
    def steps(self) -> int:
        """Gradient steps of one training, for the progress."""
        return self.config.steps * self.config.encoder_steps

    def at(self, lr: float, seed: int) -> TrainConfig:
        return replace(self.config, lr=lr, seed=seed)


def trained(config: TrainConfig, data: Split, check: Check) -> tuple[SAE | None, dict[str, Any]]:
    """The SAE after its last solve (None: it diverged), and by stage the figures of its cell: on test rows, and `validation_fvu`."""
    rows, validation, mean, scale = normalised(data)
    sae = steps(config, batches(rows, config), check)
    if not bool(torch.isfinite(sae.W_enc).all() and torch.isfinite(sae.W_dec).all()):
        return None, {TRAINED: None, SOLVED: None}
    solved = solve(sae, config, rows, validation)
    told = {}
    for stage, one in ((TRAINED, sae), (SOLVED, solved)):
        raw = one.fold_normalisation(mean, scale)
        found = figures(raw, data.test)
        told[stage] = {**found, "loss": found["mse"], "validation_fvu": figures(raw, data.validation)["fvu"]}
    return solved.fold_normalisation(mean, scale), told


def normalised(data: Split) -> tuple[Tensor, Tensor, Tensor, float]:
    """Training and validation rows as the trainer wants them: mean 0 and mean square 1 over the training rows; and that mean and scale."""
    mean = data.train.mean(0)
    scale = float((data.train - mean).square().mean().sqrt()) or 1.0
    return (data.train - mean) / scale, (data.validation - mean) / scale, mean, scale


def batches(rows: Tensor, config: TrainConfig) -> Iterator[Tensor]:
    """`config.rows` rows, epoch after epoch, each in an order of its own; an epoch's rest begins the next one's first batch."""
    generator, epochs = torch.Generator().manual_seed(config.seed_of_order), -(-config.rows // len(rows))
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(epochs)])[: config.rows]
    for some in order.split(config.batch_size):
        yield rows[some]


def steps(config: TrainConfig, of: Iterable[Tensor], check: Check = lambda: None) -> SAE:
    """The SAE of normalised rows that the product's steps on these batches lead to."""
    method = None
    for step, x in enumerate(of):
        check()
        method = method or METHODS[config.method](x.shape[1], config, x.device)
        method.weights.k = k_at(step, config)
        if config.noise:  # as in train/training.py
            x = jittered(x, config.noise, len(x), (config.seed << 31 | 1 << 30) % 2**62 + step, ALONE)
        method.step(x, lr_at(step, config))
    assert method is not None
    return method.weights.sae()


def solve(sae: SAE, config: TrainConfig, rows: Tensor, validation: Tensor) -> SAE:
    """The last solve over all rows, its ridge chosen on validation rows."""
    penalties = Penalties(config.alpha, config.beta, config.mu_dec, config.nu_dec)
    solution = last_solve(sae, rows.split(AT_ONCE), penalties, config.ridge, validation=validation.split(AT_ONCE))
    assert solution  # there are no other ranks
    return solution[0]
