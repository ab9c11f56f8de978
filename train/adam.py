"""The baseline, as strong as we can make it: Adam on everything, untied, unit-norm decoder rows, AuxK, warm-up and decay."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import TrainConfig
from .encoder import Weights
from .gradient import GradientSteps, StepFigures
from .state import State, joined, part


class AdamBaseline:
    """The state of an Adam run on normalised rows."""

    def __init__(self, d_in: int, config: TrainConfig, device: torch.device) -> None:
        self.weights = Weights(d_in, config, device)
        self.gradient = GradientSteps(self.weights, config, decoder=True)

    def step(self, x: Tensor, lr: float) -> StepFigures:
        """One batch of normalised rows x [N, d_in]."""
        return self.gradient.step(x, lr)

    def state(self) -> dict[str, Tensor]:
        """See `train.state`."""
        return joined(weights=self.weights.state(), gradient=self.gradient.state())

    def load_state(self, state: State) -> None:
        """Go on where `state` was taken."""
        self.weights.load_state(part(state, "weights"))
        self.gradient.load_state(part(state, "gradient"))
