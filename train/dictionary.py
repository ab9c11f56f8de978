"""`--method pursuit`: a dictionary for better codes than an encoder makes, and an encoder for that dictionary.

As PAM-SGD, but for what the decoder goes by:
- its gradient is that of pursuit's codes alone (train/pursuit.py), not of the encoder's;
- from the middle of the run on batches are encoded by gradient pursuit (infer/) too; these codes enter the statistics, and the decoder is solved
  for every so often and after the last batch (the method of optimal directions, Engan et al. 1999, streamed). Before, the dictionary
  moves too fast for that to be worth its price.
The encoder learns all the time, towards pursuit's supports: so the result is an SAE like any other, with better codes on demand
(`eval --encoder gradient-pursuit`). There is no last solve: it would fit the decoder to the encoder's codes.
"""

from __future__ import annotations

from torch import Tensor

from ..infer import Dictionary, Target, infer
from ..sae import ByLatent, Codes
from .gradient import StepFigures
from .pam import PAM

FROM = 0.5  # of the steps
METHOD = "gradient-pursuit"


class DictionaryLearning(PAM):
    """The state of such a run on normalised rows; see `PAM`."""

    @property
    def remembers(self) -> bool:
        """See `PAM.remembers`."""
        return self.batches > FROM * self.config.steps

    @property
    def solves(self) -> bool:
        """See `PAM.solves`."""
        return super().solves or self.batches == self.config.steps

    def codes_for_statistics(self, x: Tensor, rows: int, figures: StepFigures) -> tuple[Codes, ByLatent | None, Tensor | None]:
        """The batch's codes by pursuit."""
        return pursued(x, self.weights.W_dec, self.weights.b_dec, self.weights.k), None, None


def pursued(x: Tensor, W_dec: Tensor, b_dec: Tensor, k: int | None) -> Codes:
    """Codes [N, k] of rows x [N, d_in] by pursuit in a dictionary."""
    return infer(METHOD, x, Dictionary(W_dec.detach(), b_dec.detach()), Target(k=k))
