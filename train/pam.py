"""PAM-SGD, Algorithm 3.1 of SplInterp (arXiv 2505.11836): gradient steps on the encoder, the decoder in closed form.

For each batch: (a) M gradient steps on the encoder, drawn towards where it was by μ_enc, ν_enc; (b) the batch's codes enter the streamed
statistics, and every `solve_every` batches the decoder is set to the minimiser of Theorem C.1, drawn towards where it was by μ_dec, ν_dec.
The gradient steps are Adam's, as in the paper's own code.

What differs from the page, and why:
- The statistics forget (an exponential window of `memory_rows`): old codes are those of an encoder that has moved on.
- With `decoder_steps` (the default) the decoder takes the gradient steps too. Solves on the way then re-anchor it, where they are asked for:
  they gained nothing (`TrainConfig.alternates`), and by default the decoder is solved for at the end, over all rows. Without
  `decoder_steps` this is the alternation as published.
- TopK's gradient steps go towards better codes than the encoder's (train/pursuit.py).
- Where the Gram matrix does not fit the memory budget, the statistics are a plain window of the last rows with their sparse codes, and
  solves are by conjugate gradients from the present decoder.
- Solves with the Gram matrix within training are in float32 where the matrix is well conditioned, and no more often than their cost allows; the last solve,
  over all rows, is in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..sae import ByLatent, Codes, SparseCodes
from .budget import solves_by_cg, window_rows
from .config import TrainConfig
from .conjugate import solve_by_cg
from .cost import cg_cost, solve_cost, step_cost
from .decoder import Decoder, Penalties, solve_decoder
from .encoder import Weights
from .gradient import GradientSteps, StepFigures
from .gram import Statistics
from .group import ALONE, Group
from .half_steps import half_steps, measured_every
from .moments import Moments, mean_diagonal
from .state import State, joined, number, part
from .window import Window


class PAM:
    """The state of a PAM-SGD run on normalised rows.

    Of several ranks each adds its share of a batch to statistics of its own; they are brought together at the first, which solves.
    """

    def __init__(self, d_in: int, config: TrainConfig, device: torch.device, group: Group = ALONE) -> None:
        self.config, self.group, self.weights = config, group, Weights(d_in, config, device, group)
        by_cg = solves_by_cg(config, device)
        alternates = config.alternates
        # With one small step a batch, and a decoder that follows by itself, the codes of the step's own forward pass will do.
        self.fresh_enough = config.method == "pam" and config.decoder_steps and config.encoder_steps == 1
        self.gradient = GradientSteps(
            self.weights, config, config.decoder_steps, moment=alternates and self.fresh_enough and not by_cg
        )
        self.statistics: Statistics | Window | None = None
        if alternates:
            self.memory_rows, self.solve_every = cadence(config, d_in, by_cg)
            self.statistics = (
                _window(d_in, config, self.memory_rows, device, group) if by_cg else Statistics(d_in, config.d_sae, device)
            )
            kept = self.statistics.capacity * group.world if isinstance(self.statistics, Window) else None
            self.measured_every = measured_every(config, d_in, self.solve_every, kept)
        self.batches = 0

    def step(self, x: Tensor, lr: float, rows: int | None = None) -> StepFigures:
        """One batch of normalised rows, of which x [N, d_in] is this rank's share; it has `rows` in all (None: N)."""
        rows = len(x) if rows is None else rows
        figures = self.gradient.step(x, lr, rows)  # (a)
        self.batches += 1
        # From a loss that is no number there is nothing to solve; the loop will tell.
        if self.statistics is None or not math.isfinite(figures.loss) or not self.remembers:
            return figures
        with torch.no_grad():  # (b)
            if figures.revived is not None:
                self.statistics.forget(figures.revived)
            codes, pattern, cross = self.codes_for_statistics(x, rows, figures)
            if isinstance(self.statistics, Window):
                assert isinstance(codes, SparseCodes)
                self.statistics.add(x, codes)
            else:
                self.statistics.decay(max(0.0, 1 - rows / self.memory_rows))
                self.statistics.add(x, codes, pattern, cross)
            if self.solves:
                figures = figures._replace(half_steps=self.renew_decoder())
        return figures

    @property
    def remembers(self) -> bool:
        """Whether the batch in hand, the `batches`-th, enters the statistics."""
        return True

    @property
    def solves(self) -> bool:
        """Whether the decoder is solved for after it."""
        return self.batches % self.solve_every == 0

    def codes_for_statistics(self, x: Tensor, rows: int, figures: StepFigures) -> tuple[Codes, ByLatent | None, Tensor | None]:
        """The batch's codes, and their pattern by latent and Zᵀx where these are there already."""
        if self.fresh_enough:
            return figures.codes, figures.pattern, figures.cross
        return self.weights.encode(x, rows), None, None

    @property
    def measures(self) -> bool:
        """Whether the objective is told before and after that solve."""
        return self.batches // self.solve_every % self.measured_every == 0

    def renew_decoder(self) -> dict[str, float] | None:
        """Solve, and go on with that decoder on every rank; tells, now and then, the objective at both half-steps (`half_steps`)."""
        if isinstance(self.statistics, Statistics):
            self.statistics.sum_to_first(self.group)
        told = None
        # Conjugate gradients need the products of all ranks, which iterate in step.
        if (self.group.first or isinstance(self.statistics, Window)) and (posed := self._posed()):
            solved = self._solved(*posed)
            if self.measures:
                told = half_steps(*posed, self.weights.W_dec, self.weights.b_dec, solved, self.config.l1)
            self.take(solved)
        self.weights.broadcast()
        return self.group.tell(told) if self.measures else None

    def whole_state(self) -> dict[str, Tensor]:
        """On the first rank the state of all of them, as of a single process; all ranks ask together."""
        if isinstance(self.statistics, Window):
            return self.state() | joined(statistics=self.statistics.whole_state())
        if self.statistics:
            self.statistics.sum_to_first(self.group)
        return self.state()

    def dealt(self, state: State) -> dict[str, Tensor]:
        """Of the statistics in a state that the first rank has, what is this rank's to load; all ranks ask together."""
        if isinstance(self.statistics, Window):
            return joined(statistics=self.statistics.dealt(part(state, "statistics")))
        if self.statistics is None:
            return {}
        return joined(statistics=part(state, "statistics") if self.group.first else self.statistics.state())

    def state(self) -> dict[str, Tensor]:
        """See `train.state`."""
        kept = self.statistics.state() if self.statistics else {}
        parts = joined(weights=self.weights.state(), gradient=self.gradient.state(), statistics=kept)
        return parts | {"batches": number(self.batches)}

    def load_state(self, state: State) -> None:
        """Go on where `state` was taken."""
        self.weights.load_state(part(state, "weights"))
        self.gradient.load_state(part(state, "gradient"))
        if self.statistics:
            self.statistics.load_state(part(state, "statistics"))
        self.batches = int(state["batches"])

    def solve(self) -> Decoder | None:
        """Theorem C.1 for the statistics as they are, from the present decoder; None where their codes do not vary, as those of one row."""
        posed = self._posed()
        return self._solved(*posed) if posed else None

    def _posed(self) -> tuple[Moments, Penalties] | None:
        """What is solved; None: nothing."""
        c = self.config
        assert self.statistics
        moments = self.statistics.moments() if isinstance(self.statistics, Window) else self.statistics
        if not (spread := mean_diagonal(moments)):
            return None
        ridge = (ANCHOR if c.ridge is None else c.ridge) * spread
        return moments, Penalties(alpha=c.alpha, beta=c.beta, mu=c.mu_dec + ridge, nu=c.nu_dec)

    def _solved(self, moments: Moments, penalties: Penalties) -> Decoder:
        w = self.weights
        if not isinstance(moments, Statistics):
            return solve_by_cg(moments, penalties, W0=w.W_dec, b0=w.b_dec, tolerance=CG_TOLERANCE, most=CG_ITERATIONS)
        return solve_decoder(moments, penalties, W0=w.W_dec, b0=w.b_dec, quick=True)

    def take(self, decoder: Decoder) -> None:
        """Go on with a solved decoder."""
        factors = self.weights.set_decoder(decoder.W_dec, decoder.b_dec)
        if factors is not None and self.statistics:
            self.statistics.rescale_latents(factors)


# The ridge of solves within training, in units of the Gram matrix's mean diagonal and towards the current decoder, so that a latent that
# has not fired in the window keeps its row. From 0.01 to 1 the finished SAEs were alike when tried on real activations.
ANCHOR = 0.1


# Where conjugate gradients end within training: the window's rows are a sample, and the encoder moves on.
CG_TOLERANCE, CG_ITERATIONS = 1e-3, 20


# Solves within training may take this share of the time; in between the decoder follows its gradient.
SOLVES_SHARE = 0.15


def cadence(config: TrainConfig, d_in: int, by_cg: bool = False) -> tuple[int, int]:
    """(rows that the statistics remember, batches between two solves): six rows a latent, or the solve fits noise; one solve in a
    memory's length (twice as many were no better when tried, half as many a little worse), fewer where they would cost too much."""
    memory = config.memory_rows or max(6 * config.d_sae, config.batch_size)
    solve = solve_cost(d_in, config.d_sae)
    if by_cg:
        assert config.k is not None
        solve = cg_cost(min(memory, config.rows), d_in, config.k, CG_ITERATIONS)
    steps = solve / step_cost(config.batch_size, d_in, config.d_sae, config.k)  # that a solve is worth
    affordable = math.ceil(steps * (1 - SOLVES_SHARE) / SOLVES_SHARE) if config.decoder_steps else 1
    return memory, config.solve_every or max(1, memory // config.batch_size, affordable)


def _window(d_in: int, config: TrainConfig, memory_rows: int, device: torch.device, group: Group) -> Window:
    k = config.k_start or config.k
    assert k is not None
    rows = window_rows(config, d_in, memory_rows, device, group.world)
    return Window(d_in, config.d_sae, k, -(-rows // group.world), device, group)
