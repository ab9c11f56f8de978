"""The mean correlation coefficient (MCC): how well one set of latents is another, whatever their order and scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

CONSTANT = 1e-12  # a variance below this: a dead latent, which correlates with nothing


def mcc(true: Tensor, found: Tensor) -> float:
    """The mean |Pearson correlation| of each true source with its partner, under the best one-to-one matching (Hungarian method).

    Of dictionaries, whose atoms are compared over their dimensions, give the transposes.

    Args:
        true: [R, N]. found: [R, N'], of any scale. A column that is constant correlates 0 with all others, and so does a source without a
            partner where N' < N.
    """
    correlations = np.abs(_correlations(true, found))
    pairs = linear_sum_assignment(correlations, maximize=True)
    return float(correlations[pairs].sum()) / true.shape[1]


def paired(true: Tensor, found: Tensor) -> float:
    """The mean Pearson correlation, signed, of columns in the order that they are in: of codes that were learnt from the true ones."""
    return float(np.diagonal(_correlations(true, found)).mean())


def _correlations(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """[N, N'], float64."""
    x, y = _standardised(a), _standardised(b)
    return np.clip(x.T @ y, -1, 1)


def _standardised(a: Tensor) -> NDArray[np.float64]:
    """Columns of mean 0 and norm 1, or of zeros."""
    x = a.double().numpy()
    x = x - x.mean(0)
    squares = np.square(x).sum(0)
    dead = squares < CONSTANT * len(x)
    return np.where(dead, 0, x / np.sqrt(np.where(dead, 1, squares)))
