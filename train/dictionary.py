"""`--method pursuit`: a dictionary for better codes than an encoder makes, and an encoder for that dictionary.

In three parts of one run (K-SVD's alternation of pursuit and dictionary, Aharon et al. 2006, with the method of optimal directions, Engan et
al. 1999, in place of K-SVD's atoms one by one):
- up to FROM of the steps, PAM-SGD whose decoder follows its gradient by pursuit's codes alone (train/pursuit.py), not by the encoder's;
- up to UNTIL, batches are encoded by gradient pursuit (infer/), these codes enter the statistics, and the decoder is what is solved from them;
- to the end, the decoder stays.
The encoder learns all the time, drawn towards pursuit's supports: so the result is an SAE like any other, with better codes on demand. There is
no last solve: it would fit the decoder to the encoder's codes.
"""

from __future__ import annotations

from torch import Tensor

from ..infer import Dictionary, Target, infer
from ..sae import ByLatent, Codes
from .gradient import StepFigures
from .pam import PAM

FROM, UNTIL = 0.5, 0.85
PURSUIT_METHOD = "gradient-pursuit"


class DictionaryLearning(PAM):
    """The state of such a run on normalised rows; see `PAM`."""

    @property
    def remembers(self) -> bool:
        """See `PAM.remembers`."""
        return round(FROM * self.config.steps) < self.batches <= self._last

    @property
    def solves(self) -> bool:
        """See `PAM.solves`: the last batch that is remembered always is followed by a solve."""
        return super().solves or self.batches == self._last

    def codes_for_statistics(self, x: Tensor, rows: int, figures: StepFigures) -> tuple[Codes, ByLatent | None, Tensor | None]:
        """The batch's codes by pursuit."""
        return pursued(x, self.weights.W_dec, self.weights.b_dec, self.weights.k), None, None

    @property
    def _last(self) -> int:
        return round(UNTIL * self.config.steps)


def pursued(x: Tensor, W_dec: Tensor, b_dec: Tensor, k: int | None) -> Codes:
    """Codes [N, k] of rows x [N, d_in] by pursuit in a dictionary."""
    return infer(PURSUIT_METHOD, x, Dictionary(W_dec.detach(), b_dec.detach()), Target(k=k))
