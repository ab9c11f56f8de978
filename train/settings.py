"""From the options of `train` to settings: what is left out follows from the store, or from other options."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypedDict

from ..errors import SplinterpError
from .auto import auto_batch_size, auto_lr
from .config import TrainConfig
from .effects import no_effect, refuse

# Where none is given; `TrainConfig` has the other defaults.
EXPANSION, K = 8, 32
L1 = 5.0  # of relu


class TrainSettings(TypedDict, total=False):
    """What `splinterp.train` takes of `TrainOptions`, by the same names."""

    method: str
    activation: str
    latents: int | None
    expansion: int | None
    k: int | None
    k_start: int | None
    k_anneal: float | None
    l1: float | None
    l0: float | None
    bandwidth: float | None
    revive: str
    tokens: int | None
    epochs: int | None
    batch_size: int | None
    lr: float | None
    warmup: float | None
    decay: float
    encoder_steps: int
    mu_enc: float | None
    nu_enc: float | None
    mu_dec: float | None
    nu_dec: float | None
    alpha: float | None
    beta: float | None
    ridge: float | None
    decoder_steps: bool | None
    pursuit: float | None
    jitter: float | None
    solve_every: int | None
    memory_rows: int | None
    last_solve: bool | None
    memory: int | None
    precision: str
    seed: int
    order_seed: int | None


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of `train` that decide what is trained, by their names, as the command line has them; None: left out, or auto.

    `latents` is `TrainConfig`'s d_sae, or `expansion` times d_in (8); `tokens` its rows, or `epochs` times the training rows (1). For the others
    see `TrainConfig`.
    """

    method: str = "pam"
    activation: str = "topk"
    latents: int | None = None
    expansion: int | None = None
    k: int | None = None
    k_start: int | None = None
    k_anneal: float | None = None
    l1: float | None = None
    l0: float | None = None
    bandwidth: float | None = None
    revive: str = "auxk"
    tokens: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    warmup: float | None = None
    decay: float = 1.0
    encoder_steps: int = 1
    mu_enc: float | None = None
    nu_enc: float | None = None
    mu_dec: float | None = None
    nu_dec: float | None = None
    alpha: float | None = None
    beta: float | None = None
    ridge: float | None = None
    decoder_steps: bool | None = None
    pursuit: float | None = None
    jitter: float | None = None
    solve_every: int | None = None
    memory_rows: int | None = None
    last_solve: bool | None = None
    memory: int | None = None
    precision: str = "auto"
    seed: int = 0
    order_seed: int | None = None

    @property
    def solves_last(self) -> bool:
        """Whether there is a last solve: for pam if nothing is said."""
        return self.method == "pam" if self.last_solve is None else self.last_solve

    def config(self, d_in: int, training_rows: int) -> TrainConfig:
        """The settings for a site of width d_in with so many training rows.

        Raises:
            SplinterpError: an option is out of its range, does not go with another one, or has no effect.
        """
        if self.tokens is not None and self.epochs is not None:
            raise SplinterpError("Rows to train on are told by --tokens or by --epochs, not by both.")
        rows = self.tokens if self.tokens is not None else (self.epochs or 1) * training_rows
        as_given = {field.name: getattr(self, field.name, None) for field in fields(TrainConfig)}
        relu = self.activation == "relu"
        config = TrainConfig(
            **{name: value for name, value in as_given.items() if value is not None}  # else TrainConfig's own default
            | {
                "d_sae": self.latents or (self.expansion or EXPANSION) * d_in,
                "k": None if relu else self.k or K,
                "l1": (L1 if self.l1 is None else self.l1) if relu else 0.0,
                "rows": rows,
                "different_rows": min(rows, training_rows),
                "batch_size": self.batch_size or auto_batch_size(rows),
                "lr": auto_lr(d_in) if self.lr is None else self.lr,
                "last_solve": self.solves_last,
            }
        )
        refuse(no_effect(self))
        return config
