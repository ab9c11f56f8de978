"""The strong preset: every method at its best rate, with a rate that decays, and with ridges chosen on validation rows.

Five arms of four trainings. Of the product's own trainer: PAM-SGD with its defaults (`pam`), and our Adam (untied, unit-norm decoder, AuxK, warm-up
and decay) as trained (`adam`) and after the last solve (`adam+solve`). Of the paper's mathematics: Algorithm 3.1 (`alternation`) and plain Adam on
everything (`sgd`), both from preset paper. The product's steps, schedule, jitter and last solve are those of `splinterp train`; only the rows lie in
memory, so that validation and test rows are the same for every size. With ReLU the product's PAM-SGD is Adam with the last solve, to the bit, and is
not trained twice.
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
from .published import Check, Published, figures, fit

Trainer = Literal["pam", "adam"]
TRAINED, SOLVED = "trained", "solved"


@dataclass(frozen=True)
class Grid:
    """Rates to try: `factors` times `unit`, and further factors of two, `extensions` at most, while the best by validation FVU lies at an end."""

    unit: float
    factors: tuple[float, ...]
    extensions: int


@dataclass(frozen=True)
class Strong:
    """A training by the product, whose rate is to be tuned.

    Attributes:
        config: the product's settings; its rate and seed do not count. rows: different ones to train on. stages: whose rates are tuned, each for
            itself: SOLVED, and for Adam TRAINED.
    """

    config: TrainConfig
    rows: int
    grid: Grid
    stages: tuple[str, ...] = (SOLVED,)

    @property
    def steps(self) -> int:
        """Gradient steps of one training, for the progress."""
        return self.config.steps * self.config.encoder_steps

    def at(self, lr: float, seed: int) -> TrainConfig:
        """The product's settings at this rate."""
        return replace(self.config, lr=lr, seed=seed)


@dataclass(frozen=True)
class Tuned:
    """A training of the paper's, whose rate is to be tuned and decays; that of `setting` does not count."""

    setting: Published
    grid: Grid
    stages: tuple[str, ...] = (SOLVED,)

    @property
    def rows(self) -> int:
        """Different ones to train on."""
        return self.setting.rows

    @property
    def steps(self) -> int:
        """Gradient steps of one training, for the progress."""
        return self.setting.steps

    def at(self, lr: float) -> Published:
        """The paper's settings at this rate."""
        return replace(self.setting, lr=lr)


def tuned(setting: Published, data: Split, seed: int, check: Check) -> tuple[SAE | None, dict[str, Any]]:
    """The SAE of a training of the paper's with a decaying rate (None: it diverged), and the figures of its cell, as `trained` has them."""
    sae = fit(setting, data, seed, check, decay=True)
    if not bool(torch.isfinite(sae.W_enc).all() and torch.isfinite(sae.W_dec).all()):
        return None, {SOLVED: None}
    return sae, {SOLVED: _figures(sae, data)}


def trained(config: TrainConfig, data: Split, check: Check) -> tuple[SAE | None, dict[str, Any]]:
    """The SAE after its last solve (None: it diverged), and by stage the figures of its cell: on test rows, and `validation_fvu`."""
    rows, validation, mean, scale = normalised(data)
    sae = steps(config, batches(rows, config), check)
    if not bool(torch.isfinite(sae.W_enc).all() and torch.isfinite(sae.W_dec).all()):
        return None, {TRAINED: None, SOLVED: None}
    solved = solve(sae, config, rows, validation)
    both = {stage: one.fold_normalisation(mean, scale) for stage, one in ((TRAINED, sae), (SOLVED, solved))}
    return both[SOLVED], {stage: _figures(one, data) for stage, one in both.items()}


def _figures(sae: SAE, data: Split) -> dict[str, float]:
    found = figures(sae, data.test)
    return {**found, "loss": found["mse"], "validation_fvu": figures(sae, data.validation)["fvu"]}


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
