"""Gradient steps on an SAE's weights: Adam, as the baseline takes them on everything and PAM-SGD on what it does not solve for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..sae import Codes
from .config import TrainConfig
from .dead import DeadLatents
from .encoder import Weights
from .state import State, joined, part


class StepFigures(NamedTuple):
    """What a step tells: the loss, Σ‖x̂ − x‖² over the batch and the codes, all as they were in its first forward pass."""

    loss: float
    squared_error: float
    codes: Codes


class GradientSteps:
    """Adam's steps on the encoder, and on the decoder (unit-norm rows) if `decoder` says so."""

    def __init__(self, weights: Weights, config: TrainConfig, decoder: bool) -> None:
        self.weights, self.config, self.decoder = weights, config, decoder
        self.dead = DeadLatents(config.d_sae, config.dead_after, weights.b_enc.device)
        self.encoder = [weights.W_enc.requires_grad_(), weights.b_enc.requires_grad_()]
        trained = [*self.encoder, weights.W_dec.requires_grad_(), weights.b_dec.requires_grad_()] if decoder else self.encoder
        self.optimizer = torch.optim.Adam(trained, lr=config.lr, betas=(0.9, 0.999), fused=True)

    def step(self, x: Tensor, lr: float) -> StepFigures:
        """M = config.encoder_steps steps on one batch of normalised rows x [N, d_in]."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        start = [p.detach().clone() for p in self.encoder] if self._proximal else None
        first = None
        for _ in range(self.config.encoder_steps):
            loss, squared, codes = self.weights.loss(x, self.dead)
            if start is not None:
                loss = loss + self._pull(start)
            self.optimizer.zero_grad()
            loss.backward()
            self._update()
            first = first or StepFigures(float(loss.detach()), float(squared), codes)
        assert first is not None
        self.dead.update(first.codes, len(x))
        return first

    def state(self) -> dict[str, Tensor]:
        """The moments of Adam, once there has been a step, and the dead latents' counters; the weights belong to others."""
        moments = {f"{i}.{name}": value for i, p in enumerate(self._trained) for name, value in self.optimizer.state[p].items()}
        return joined(adam=moments, dead=self.dead.state())

    def load_state(self, state: State) -> None:
        """Take moments and counters back."""
        moments = part(state, "adam")
        for i, p in enumerate(self._trained):
            self.optimizer.state[p] = {name: value.clone().to(p.device) for name, value in part(moments, str(i)).items()}
        self.dead.load_state(part(state, "dead"))

    @property
    def _trained(self) -> list[Tensor]:
        return self.optimizer.param_groups[0]["params"]

    @property
    def _proximal(self) -> bool:
        # After one step only: at the first the weights are where they started, and the pull is zero.
        return self.config.encoder_steps > 1 and bool(self.config.mu_enc or self.config.nu_enc)

    def _pull(self, start: list[Tensor]) -> Tensor:
        """μ_enc‖W_enc − W_encᵗ‖² + ν_enc‖b_enc − b_encᵗ‖²."""
        W, b = (p - p0 for p, p0 in zip(self.encoder, start, strict=True))
        return self.config.mu_enc * W.square().sum() + self.config.nu_enc * b.square().sum()

    @torch.no_grad()
    def _update(self) -> None:
        W_dec = self.weights.W_dec
        if self.decoder:
            assert W_dec.grad is not None
            # Along a row the gradient would only change its norm, which is then put back to one.
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
        self.optimizer.step()
        if self.decoder:
            W_dec /= W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
