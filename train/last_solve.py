"""The last solve: the optimal decoder of a finished encoder, over all training rows, in float64, with a ridge chosen by validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..sae import SAE, to_double
from .decoder import Decoder, Penalties, mean_diagonal, solve_decoder
from .gram import Statistics

# Relative ridges that are tried (`--ridge auto`), in units of the Gram matrix's mean diagonal.
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
# One row in this many of every batch is kept apart while choosing the ridge, then joins the rest.
VALIDATION_ONE_IN = 10
# Fewer rows than this many times the latents: the ridge decides (double descent at rows ≈ latents).
FEW_ROWS = 4


@dataclass(frozen=True)
class LastSolve:
    """What the last solve did: the relative ridge and its validation FVU if it was chosen, how the system was solved, rows, and a warning."""

    ridge: float
    validation_fvu: dict[float, float]
    how: str
    rows: int
    warning: str | None


@torch.no_grad()
def last_solve(
    sae: SAE,
    batches: Iterable[Tensor],
    penalties: Penalties,
    ridge: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[SAE, LastSolve]:
    """The SAE with the decoder of Theorem C.1 for its own codes, over every row of `batches` [N, d_in] once.

    Args:
        penalties: α, β, μ, ν as sums over the rows; the anchors are the SAE's present decoder.
        ridge: relative ridge, added to α in units of the centred Gram matrix's mean diagonal; None: chosen among RIDGES by the exact loss
            on one row in ten, which are left out for that and join the statistics afterwards.
        progress: told the number of rows of each batch.
    """
    sae = sae.plain()
    parts = [Statistics(sae.config.d_in, sae.config.d_sae, sae.W_enc.device) for _ in range(2 if ridge is None else 1)]
    for x in batches:
        apart = len(x) // VALIDATION_ONE_IN if ridge is None else 0
        for part, some in zip(parts, (x[apart:], x[:apart]), strict=False):  # nothing is set apart where the ridge is given
            if len(some):
                part.add(some.double(), to_double(sae.encode(some)))
        if progress:
            progress(len(x))
    whole, validation = parts[0], parts[-1]  # the whole once the validation rows have joined

    def solve(statistics: Statistics, relative: float) -> Decoder:
        alpha = penalties.alpha + relative * mean_diagonal(statistics)
        p = Penalties(alpha, penalties.beta, penalties.mu, penalties.nu)
        return solve_decoder(statistics, p, W0=sae.W_dec, b0=sae.b_dec)

    tried: dict[float, float] = {}
    if ridge is None and validation.rows and validation.variance() > 0:
        for relative in RIDGES:
            decoder = solve(whole, relative)
            tried[relative] = validation.loss(decoder.W_dec, decoder.b_dec) / validation.variance()
    chosen = min(tried, key=lambda r: tried[r]) if tried else (1e-3 if ridge is None else ridge)
    if validation is not whole:
        whole.absorb(validation)
    if whole.rows == 0:
        raise SplinterpError("There are no training rows for the last solve.")
    decoder = solve(whole, chosen)
    fired = whole.gram.diagonal() > 0  # a latent without codes has no least-squares row: it keeps its own
    W_dec = torch.where(fired[:, None], decoder.W_dec, sae.W_dec.double())
    n, d = round(whole.rows), sae.config.d_sae
    warning = None
    if n < FEW_ROWS * d:
        warning = (
            f"{n:,} training rows for {d:,} latents: with fewer than {FEW_ROWS} rows a latent the ridge decides the decoder's quality "
            f"(it is {chosen:g} here); harvest more rows or use fewer latents."
        )
    return sae.with_decoder(W_dec, decoder.b_dec), LastSolve(chosen, tried, decoder.how, n, warning)
