"""The last solve: the optimal decoder of a finished encoder, over all training rows, in float64, with a ridge chosen by validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..sae import SAE, SparseCodes, to_double
from .conjugate import solve_by_cg
from .decoder import Decoder, Penalties, solve_decoder
from .gram import Statistics
from .group import ALONE, Group
from .kept_codes import CodeCache, KeptCodes
from .moments import mean_diagonal

# Relative ridges that are tried (`--ridge auto`), in units of the Gram matrix's mean diagonal.
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
# One row in this many of every batch is kept apart while choosing the ridge, then joins the rest.
VALIDATION_ONE_IN = 10
# Fewer rows than this many times the latents: the ridge decides (double descent at rows ≈ latents).
FEW_ROWS = 4
# Relative residuals at which conjugate gradients end, and their most iterations: for the decoder, and for a ridge that is only tried.
EXACT, TRIED = (1e-7, 300), (1e-4, 100)


@dataclass(frozen=True)
class LastSolve:
    """What the last solve did: the relative ridge and its validation FVU if it was chosen, how the system was solved, rows, a warning, and
    of conjugate gradients the iterations and the largest relative residual of a column."""

    ridge: float
    validation_fvu: dict[float, float]
    how: str
    rows: int
    warning: str | None
    iterations: int | None = None
    residual: float | None = None


@dataclass(frozen=True)
class WithoutGram:
    """The last solve is by conjugate gradients, on codes of which `memory` bytes are kept in memory and the rest in a temporary file
    without a name in `directory`."""

    memory: int
    directory: Path


@torch.no_grad()
def last_solve(
    sae: SAE,
    batches: Iterable[Tensor],
    penalties: Penalties,
    ridge: float | None = None,
    progress: Callable[[int], None] | None = None,
    without_gram: WithoutGram | None = None,
    group: Group = ALONE,
) -> tuple[SAE, LastSolve] | None:
    """The SAE with the decoder of Theorem C.1 for its own codes, over every row of `batches` [N, d_in] once.

    Each rank of `group` gives batches of its own; the sums are those of all. Only the first solves and has the result, the others None.

    Args:
        penalties: α, β, μ, ν as sums over the rows; the anchors are the SAE's present decoder.
        ridge: relative ridge, added to α in units of the centred Gram matrix's mean diagonal; None: chosen among RIDGES by the exact loss
            on one row in ten, which are left out for that and join the statistics afterwards.
        progress: told the number of rows of each batch.
        without_gram: no Gram matrix is made; the SAE's codes must be sparse. The rows are read once all the same.

    Raises:
        SplinterpError: there are no rows, or the disk has no room for the codes.
    """
    sae = sae.plain()
    parts = _parts(sae, 2 if ridge is None else 1, without_gram, group)
    for x in batches:
        apart = len(x) // VALIDATION_ONE_IN if ridge is None else 0
        for part, some in zip(parts, (x[apart:], x[:apart]), strict=False):  # nothing is set apart where the ridge is given
            if len(some):
                _add(part, some, sae)
        if progress:
            progress(len(x))
    for part in parts:
        if isinstance(part, Statistics):
            part.sum_to_first(group)
        else:
            part.sum_over_ranks()
    if without_gram is None and not group.first:
        return None  # without a Gram matrix each rank's codes are needed for the products
    whole, validation = parts[0], parts[-1]  # the whole once the validation rows have joined

    def solve(statistics: Statistics | KeptCodes, relative: float, start: Tensor, accuracy: tuple[float, int]) -> Decoder:
        alpha = penalties.alpha + relative * mean_diagonal(statistics)
        p = Penalties(alpha, penalties.beta, penalties.mu, penalties.nu)
        if isinstance(statistics, Statistics):
            return solve_decoder(statistics, p, W0=sae.W_dec, b0=sae.b_dec)
        tolerance, most = accuracy
        return solve_by_cg(statistics, p, sae.W_dec, sae.b_dec, start=start, tolerance=tolerance, most=most)

    tried: dict[float, float] = {}
    start = sae.W_dec
    if ridge is None and validation.rows and validation.variance() > 0:
        for relative in reversed(RIDGES):  # the easiest system first: each solution is where the next one begins
            decoder = solve(whole, relative, start, TRIED)
            start = decoder.W_dec
            tried[relative] = validation.loss(decoder.W_dec, decoder.b_dec) / validation.variance()
        tried = {relative: tried[relative] for relative in RIDGES}
    chosen = min(tried, key=lambda r: tried[r]) if tried else (1e-3 if ridge is None else ridge)
    if validation is not whole:
        whole.absorb(validation)  # type: ignore[arg-type]  # both are of one kind
    if whole.rows == 0:
        raise SplinterpError("There are no training rows for the last solve.")
    decoder = solve(whole, chosen, start, EXACT)
    if not group.first:
        return None
    fired = whole.diagonal > 0  # a latent without codes has no least-squares row: it keeps its own
    W_dec = torch.where(fired[:, None], decoder.W_dec, sae.W_dec.double())
    n, d = round(whole.rows), sae.config.d_sae
    warning = None
    if n < FEW_ROWS * d:
        warning = (
            f"{n:,} training rows for {d:,} latents: with fewer than {FEW_ROWS} rows a latent the ridge decides the decoder's quality "
            f"(it is {chosen:g} here); harvest more rows or use fewer latents."
        )
    if decoder.residual is not None and decoder.residual > EXACT[0]:
        unfinished = (
            f"conjugate gradients ended after {decoder.iterations} iterations at a relative residual of {decoder.residual:.1e}."
        )
        warning = f"{warning} Also, {unfinished}" if warning else unfinished[0].upper() + unfinished[1:]
    return sae.with_decoder(W_dec, decoder.b_dec), LastSolve(
        chosen, tried, decoder.how, n, warning, decoder.iterations, decoder.residual
    )


def _parts(sae: SAE, number: int, without_gram: WithoutGram | None, group: Group) -> list[Statistics] | list[KeptCodes]:
    d_in, d_sae, device = sae.config.d_in, sae.config.d_sae, sae.W_enc.device
    if without_gram is None:
        return [Statistics(d_in, d_sae, device) for _ in range(number)]
    for_validation = without_gram.memory // VALIDATION_ONE_IN if number == 2 else 0
    memories = (without_gram.memory - for_validation, for_validation)[:number]
    return [KeptCodes(d_in, d_sae, device, CodeCache(memory, without_gram.directory), group) for memory in memories]


def _add(part: Statistics | KeptCodes, x: Tensor, sae: SAE) -> None:
    codes = sae.encode(x)
    if isinstance(part, Statistics):
        part.add(x.double(), to_double(codes))
    elif isinstance(codes, SparseCodes):
        part.add(x, codes)
    else:
        raise SplinterpError("Codes of this SAE are dense: its last solve needs the Gram matrix; raise --memory.")
