"""Algorithm 3.1 of SplInterp (arXiv 2505.11836) as its authors' code runs it, but with our Adam's memories: the decoder in closed form over all rows, an epoch for the
encoder, and so on; for as few rows as memory holds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..sae import SAE, to_double
from ..train import Penalties, Statistics, TrainConfig, last_solve, solve_decoder
from ..train.encoder import Weights
from ..train.gradient import GradientSteps
from ..train.moments import mean_diagonal

AT_ONCE = 4096


def alternate(rows: Tensor, validation: Tensor, config: TrainConfig, epochs: int, ridge: float | None) -> SAE:
    """An SAE of `rows` [N, d_in], which have mean 0 and mean square 1 per dimension.

    Before each epoch the decoder is solved over all rows with the codes of the encoder as it is; then the encoder takes Adam's steps at a
    constant rate, the decoder standing still. At the end it is solved once more. With no epochs the encoder is the random one that training
    begins with.

    Args:
        validation: [M, d_in], for the choice of ridges.
        ridge: of every solve, towards zero, relative to the centred Gram matrix's mean diagonal, as in the paper. None: `--ridge auto`:
            towards the decoder that is there, and chosen on `validation` in every solve. A fixed pull would not do: taken again and again on
            the same rows it comes to the decoder without any.
    """
    weights = Weights(rows.shape[1], config, rows.device)
    steps = GradientSteps(weights, config, decoder=False)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(epochs):
        found = solved(weights.sae(), rows, validation, ridge)
        weights.set_decoder(found.W_dec, found.b_dec)
        for batch in torch.randperm(len(rows), generator=generator).split(config.batch_size):
            steps.step(rows[batch], config.lr)
    return solved(weights.sae(), rows, validation, ridge)


@torch.no_grad()
def solved(sae: SAE, rows: Tensor, validation: Tensor, ridge: float | None) -> SAE:
    """The SAE with the decoder that is optimal for its codes of all rows; see `alternate`."""
    if ridge is None:
        solution = last_solve(sae, rows.split(AT_ONCE), Penalties(), validation=validation.split(AT_ONCE))
        assert solution  # there are no other ranks
        return solution[0]
    statistics = statistics_of(sae, rows)
    decoder = solve_decoder(statistics, Penalties(alpha=ridge * mean_diagonal(statistics)))
    return replace(sae, W_dec=decoder.W_dec.float(), b_dec=decoder.b_dec.float())


@torch.no_grad()
def statistics_of(sae: SAE, rows: Tensor) -> Statistics:
    """The decoder's sufficient statistics of all rows [N, d_in] with the SAE's codes, in float64."""
    statistics = Statistics(rows.shape[1], sae.config.d_sae, rows.device)
    for x in rows.split(AT_ONCE):
        statistics.add(x.double(), to_double(sae.encode(x)))
    return statistics
