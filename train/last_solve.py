"""The last solve: the optimal decoder of a finished encoder, over all training rows, in float64, with a ridge chosen on validation rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
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

# Relative ridges that are tried (`--ridge auto`), in units of the Gram matrix's mean diagonal, the strongest first.
RIDGES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
# After so many in a row that validate worse than the best, weaker ones are not tried: the error falls, and rises once they fit noise.
WORSE_ENOUGH = 2
# Where there are no rows to choose by.
DEFAULT_RIDGE = 1e-3
# Where there are no validation rows, one row in this many of every batch is kept apart while choosing, then joins the rest.
VALIDATION_ONE_IN = 10
# The name, among the ridges tried, of one without end: the present decoder.
PRESENT = "present"
# Fewer rows than this many times the latents: the ridge decides (double descent at rows ≈ latents).
FEW_ROWS = 4
# Relative residuals at which conjugate gradients end, and their most iterations: for the decoder, and for a ridge that is only tried.
EXACT, TRIED = (1e-7, 300), (1e-4, 100)


@dataclass(frozen=True)
class LastSolve:
    """What the last solve did.

    Attributes:
        ridge: relative; None: none validated better than the present decoder, which stays.
        validation_fvu: of every ridge that was tried, by its name ("0.01", "present"); empty where it was given.
        how: see `Decoder.how`; "kept" where the present decoder stays.
        rows: that were solved over. validation_rows: that it was chosen by.
        iterations, residual: of conjugate gradients, the latter the largest relative one of a column.
    """

    ridge: float | None
    validation_fvu: dict[str, float]
    how: str
    rows: int
    validation_rows: int
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
    validation: Iterable[Tensor] | None = None,
) -> tuple[SAE, LastSolve] | None:
    """The SAE with the decoder of Theorem C.1 for its own codes, over every row of `batches` [N, d_in] once.

    Each rank of `group` gives batches of its own; the sums are those of all. Only the first solves and has the result, the others None.

    The ridge pulls towards the SAE's present decoder: where the rows say little (a latent that fires on few of them), what training found
    is worth more than zero. Without α and β, which the present decoder knows nothing of, that decoder itself is among those tried on
    validation rows: a solve that only fits noise is not taken.

    Args:
        penalties: α, β, μ, ν as sums over the rows; the anchors are the SAE's present decoder.
        ridge: relative ridge, added to μ in units of the centred Gram matrix's mean diagonal; None: chosen among RIDGES by the exact loss
            on `validation`.
        progress: told the number of rows of each batch.
        without_gram: no Gram matrix is made; the SAE's codes must be sparse. The rows are read once all the same.
        validation: batches of other rows, which the SAE was not trained on; read only where the ridge is to be chosen. None (of every
            rank): one row in ten of `batches` is left out while choosing, and joins the statistics afterwards. The SAE may know those by
            heart, so the present decoder is not tried on them.

    Raises:
        SplinterpError: there are no rows, or the disk has no room for the codes.
    """
    sae = sae.plain()
    parts = _parts(sae, 2 if ridge is None else 1, without_gram, group)
    one_in = VALIDATION_ONE_IN if ridge is None and validation is None else 0
    for x in batches:
        apart = len(x) // one_in if one_in else 0
        for part, some in zip(parts, (x[apart:], x[:apart]), strict=False):  # nothing is set apart where the ridge is given
            if len(some):
                _add(part, some, sae)
        if progress:
            progress(len(x))
    if ridge is None:
        for x in validation or ():
            _add(parts[1], x, sae)
    for part in parts:
        if isinstance(part, Statistics):
            part.sum_to_first(group)
        else:
            part.sum_over_ranks()
    if without_gram is None and not group.first:
        return None  # without a Gram matrix each rank's codes are needed for the products
    whole = parts[0]
    if whole.rows == 0:
        raise SplinterpError("There are no training rows for the last solve.")

    def solve(relative: float, start: Tensor, accuracy: tuple[float, int]) -> Decoder:
        p = replace(penalties, mu=penalties.mu + relative * mean_diagonal(whole))
        if isinstance(whole, Statistics):
            return solve_decoder(whole, p, W0=sae.W_dec, b0=sae.b_dec)
        tolerance, most = accuracy
        return solve_by_cg(whole, p, sae.W_dec, sae.b_dec, start=start, tolerance=tolerance, most=most)

    tried: dict[str, float] = {}
    chosen: float | None = DEFAULT_RIDGE if ridge is None else ridge
    decoder, exact = _present(sae), False
    if ridge is None and parts[1].rows and parts[1].variance() > 0:
        with_present = validation is not None and not (penalties.alpha or penalties.beta)
        chosen, decoder, tried = _choose(sae, parts[1], solve, with_present)
        exact = isinstance(whole, Statistics) and not one_in
    n_validation = round(parts[-1].rows) if tried else 0
    if one_in:
        whole.absorb(parts[1])  # type: ignore[arg-type]  # both are of one kind
    if chosen is not None and not exact:
        decoder = solve(chosen, decoder.W_dec, EXACT)
    if not group.first:
        return None
    fired = whole.diagonal > 0  # a latent without codes has no least-squares row: it keeps its own
    W_dec = torch.where(fired[:, None], decoder.W_dec, sae.W_dec.double())
    n = round(whole.rows)
    return sae.with_decoder(W_dec, decoder.b_dec), LastSolve(
        chosen, tried, decoder.how, n, n_validation, _warning(n, sae.config.d_sae, chosen, decoder), decoder.iterations,
        decoder.residual,
    )  # fmt: skip


def _choose(
    sae: SAE, rows: Statistics | KeptCodes, solve: Callable[[float, Tensor, tuple[float, int]], Decoder], with_present: bool
) -> tuple[float | None, Decoder, dict[str, float]]:
    """The ridge whose decoder has the lowest FVU on `rows` (None: the present one), that decoder, and the FVU of each by its name."""
    total = rows.variance()
    chosen: float | None = None
    last = best = _present(sae)
    tried = {PRESENT: rows.loss(best.W_dec, best.b_dec) / total} if with_present else {}
    for relative in RIDGES:  # the easiest system first: each solution is where the next one begins
        last = solve(relative, last.W_dec, TRIED)
        fvu = rows.loss(last.W_dec, last.b_dec) / total
        if not tried or fvu < min(tried.values()):
            chosen, best = relative, last
        tried[f"{relative:g}"] = fvu
        if min(list(tried.values())[-WORSE_ENOUGH:]) > min(tried.values()):
            break
    return chosen, best, tried


def _present(sae: SAE) -> Decoder:
    return Decoder(sae.W_dec.double(), sae.b_dec.double(), "kept", 0.0)


def _warning(n: int, d: int, ridge: float | None, decoder: Decoder) -> str | None:
    """What is to be said of a solve over n rows for d latents."""
    told = []
    if n < FEW_ROWS * d:
        came = "none validated better than the present decoder, which stays" if ridge is None else f"it is {ridge:g} here"
        told.append(
            f"{n:,} training rows for {d:,} latents: with fewer than {FEW_ROWS} rows a latent the ridge decides the decoder's quality "
            f"({came}); harvest more rows, use fewer latents, or train for many epochs (see --jitter)."
        )
    if decoder.residual is not None and decoder.residual > EXACT[0]:
        told.append(
            f"Conjugate gradients ended after {decoder.iterations} iterations at a relative residual of {decoder.residual:.1e}."
        )
    return " ".join(told) or None


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
