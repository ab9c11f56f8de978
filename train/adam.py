"""The baseline, as strong as we can make it: Adam on everything, untied, unit-norm decoder rows, AuxK, warm-up and decay."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import TrainConfig
from .encoder import Weights
from .gradient import GradientSteps, StepFigures
from .group import ALONE, Group
from .state import State, joined, part


class AdamBaseline:
    """The state of an Adam run on normalised rows."""

    def __init__(self, d_in: int, config: TrainConfig, device: torch.device, group: Group = ALONE) -> None:
        self.weights = Weights(d_in, config, device, group)
        self.gradient = GradientSteps(self.weights, config, decoder=True)

    def step(self, x: Tensor, lr: float, rows: int | None = None) -> StepFigures:
        """One batch of normalised rows, of which x [N, d_in] is this rank's share; it has `rows` in all (None: N)."""
        return self.gradient.step(x, lr, rows)

    def whole_state(self) -> dict[str, Tensor]:
        """On the first rank the state of all of them, which is that of each."""
        return self.state()

    def state(self) -> dict[str, Tensor]:
        """See `train.state`."""
        return joined(weights=self.weights.state(), gradient=self.gradient.state())

    def load_state(self, state: State) -> None:
        """Go on where `state` was taken."""
        self.weights.load_state(part(state, "weights"))
        self.gradient.load_state(part(state, "gradient"))
