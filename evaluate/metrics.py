"""Reconstruction and sparsity over rows, accumulated in float64 batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..sae import SAE, Codes, fired_counts, l0

Encode = Callable[[Tensor], Codes]  # rows [N, d_in] -> their codes, for the SAE's decoder

_ROUNDING = 1e-12  # a variance below this share of the sum of squares that it is a difference of is none
_ROWS_AT_ONCE = 512  # in float64: of all rows of a batch it would be the largest thing in a training run


class Metrics:
    """Running sums over rows x [N, d_in], their reconstructions and their codes.

    The rows' variance is taken around a `shift` [d_in] near their mean, so that a mean much larger than the spread costs no digits.
    """

    def __init__(self, d_in: int, d_sae: int, shift: Tensor) -> None:
        self.d_in, self.rows = d_in, 0
        self.shift = shift.double()
        self.squared_error, self.squared, self.active = 0.0, 0.0, 0.0
        self.sum = torch.zeros_like(self.shift)
        self.fired = torch.zeros(d_sae, dtype=torch.int64, device=shift.device)

    @torch.no_grad()
    def add(self, sae: SAE, x: Tensor, encode: Encode | None = None) -> None:
        """Encode (None: by the SAE's own encoder), decode and count rows x [N, d_in]."""
        codes = (encode or sae.encode)(x)
        self.add_errors(x, sae.decode(codes).sub_(x), l0(codes) * len(x), fired_counts(codes, len(self.fired)))

    def add_errors(self, x: Tensor, error: Tensor, active: float, fired: Tensor) -> None:
        """Count rows x [N, d_in] of which something else than an SAE made x̂.

        Args:
            error: x̂ − x, [N, d_in]. active: numbers a reconstruction was made of, over all rows. fired: [d_sae], the rows in which each was.
        """
        for some, error_of_some in zip(x.split(_ROWS_AT_ONCE), error.split(_ROWS_AT_ONCE), strict=True):
            shifted = some.double() - self.shift
            self.squared_error += float(error_of_some.double().square().sum())
            self.sum += shifted.sum(0)
            self.squared += float(shifted.square_().sum())
        self.active += active
        self.fired += fired
        self.rows += len(x)

    def figures(self) -> dict[str, float | int]:
        """fvu = Σ‖x − x̂‖²/Σ‖x − x̄‖², explained_variance = 1 − fvu, mse (per element), l0, dead_fraction, n_rows.

        dead_fraction is the share of latents that fired on none of these rows. Of rows that are all alike fvu is 0 where the reconstruction is
        perfect, else infinite: there is nothing to explain. Of an SAE or rows that are not finite fvu is NaN.
        """
        if not self.rows:
            raise SplinterpError("There are no rows to evaluate on.")
        variance = self.squared - float(self.sum @ self.sum) / self.rows
        if math.isnan(self.squared_error):
            fvu = math.nan
        elif variance > _ROUNDING * self.squared:
            fvu = self.squared_error / variance
        else:
            fvu = 0.0 if self.squared_error == 0 else math.inf
        return {
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "mse": self.squared_error / (self.rows * self.d_in),
            "l0": self.active / self.rows,
            "dead_fraction": float((self.fired == 0).double().mean()),
            "n_rows": self.rows,
        }


@torch.no_grad()
def paired_gain(before: SAE, after: SAE, batches: Iterable[Tensor]) -> tuple[float, float]:
    """How much lower ‖x − x̂‖² is after than before, over rows x [N, d_in]: its mean, and the standard error of that mean.

    The same rows are harder or easier for both SAEs, so that their difference, row by row, scatters much less than either.

    Raises:
        SplinterpError: there are fewer than two rows.
    """
    n, total, squared = 0, 0.0, 0.0
    for x in batches:
        gain = _squared_errors(before, x) - _squared_errors(after, x)
        n, total, squared = n + len(x), total + float(gain.sum()), squared + float(gain.square().sum())
    if n < 2:
        raise SplinterpError("There are too few rows to compare two SAEs on.")
    mean = total / n
    return mean, max(0.0, (squared / n - mean**2) / (n - 1)) ** 0.5


def _squared_errors(sae: SAE, x: Tensor) -> Tensor:
    """‖x − x̂‖² of each row, float64 [N]."""
    return sae.decode(sae.encode(x)).sub_(x).double().square_().sum(1)


def evaluate_rows(
    sae: SAE, batches: Iterable[Tensor], shift: Tensor | None = None, encode: Encode | None = None
) -> dict[str, float | int]:
    """The figures of `Metrics` over all batches [N, d_in] (float32, on the SAE's device).

    Args:
        shift: [d_in], near the rows' mean; the SAE's b_dec if left out.
        encode: where codes come from, if not from the SAE's own encoder.
    """
    metrics = Metrics(sae.config.d_in, sae.config.d_sae, sae.b_dec if shift is None else shift.to(sae.b_dec.device))
    for x in batches:
        metrics.add(sae, x, encode)
    return metrics.figures()
