"""The sufficient statistics of the decoder: sums over rows, so that they stream, merge by addition, and never hold the
codes of all rows: of one batch at most, and those of TopK never as a dense matrix.

Names as in Theorem C.1 of SplInterp (arXiv 2505.11836), one row of codes z [d_sae] to one row of activations x [d_in]:
gram Σ z zᵀ, cross Σ z xᵀ, sum_z Σ z, sum_x Σ x, sum_xx Σ ‖x‖², rows N.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..sae import ByLatent, Codes, RaggedCodes, SparseCodes, by_latent, kernels_for, sum_rows, to_dense
from .group import Group
from .moments import squared_error, variance
from .state import State, number

# Latents whose sums are brought up to date together on a CPU: what is in between then stays in the cache.
_LATENTS_AT_ONCE = 1024
_ROWS_AT_ONCE = 256  # of the Gram matrix, likewise
# Up to this share of entries the Gram matrix of ragged codes takes less time from them than from a dense product: on two CPU cores at 2,048
# rows 0.1 to 0.3 of it at 1 and 2 %, and 1 to 1.4 at 4 % (both with d_in=192, d_sae=1536 and with d_in=768, d_sae=8192).
_PAIRS_UP_TO = 0.03
# Ragged codes are padded to the most in their group of rows: this many times the group's fewest, and some more.
_WIDER, _SOME_MORE = 1.3, 4
# The stored sums are the true ones divided by a factor that decays; they are brought up to date before it underflows.
_SMALLEST_FACTOR = 1e-9
_SUMS = ("gram", "cross", "sum_z", "sum_x")


class Statistics:
    """Sums over rows that determine the optimal decoder and its exact loss.

    Products within a batch are taken in the dtype of the rows given, sums over batches in float64. Memory: 8·d_sae·(d_sae + d_in) bytes.
    """

    def __init__(self, d_in: int, d_sae: int, device: str | torch.device = "cpu") -> None:
        self.d_in, self.d_sae = d_in, d_sae
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)  # noqa: E731
        self._gram, self._cross = zeros(d_sae, d_sae), zeros(d_sae, d_in)
        self._sum_z, self._sum_x = zeros(d_sae), zeros(d_in)
        self._sum_xx: float | Tensor = 0.0  # on the device once there are rows: to read it is to wait for a GPU
        self._rows = 0.0
        self._factor = 1.0
        self._lopsided = False  # whether only the symmetric part of _gram is Σ z zᵀ

    @property
    def gram(self) -> Tensor:
        """Σ z zᵀ, float64 [d_sae, d_sae]."""
        self._settled()
        if self._lopsided:
            symmetrise(self._gram)
            self._lopsided = False
        return self._gram

    @property
    def diagonal(self) -> Tensor:
        """The Gram matrix's diagonal, float64 [d_sae]."""
        return self._settled()._gram.diagonal()

    def product(self, V: Tensor) -> Tensor:
        """(Σ z zᵀ)·V for a float64 V [d_sae, n]."""
        return self.gram @ V

    @property
    def cross(self) -> Tensor:
        """Σ z xᵀ, float64 [d_sae, d_in]."""
        return self._settled()._cross

    @property
    def sum_z(self) -> Tensor:
        """Σ z, float64 [d_sae]."""
        return self._settled()._sum_z

    @property
    def sum_x(self) -> Tensor:
        """Σ x, float64 [d_in]."""
        return self._settled()._sum_x

    @property
    def sum_xx(self) -> float:
        """Σ ‖x‖²."""
        return float(self._sum_xx) * self._factor

    @property
    def rows(self) -> float:
        """N, the number of rows; fractional once they have decayed."""
        return self._rows * self._factor

    @torch.no_grad()
    def add(self, x: Tensor, codes: Codes, pattern: ByLatent | None = None, cross: Tensor | None = None) -> None:
        """Add rows x [N, d_in] with their codes; `pattern` is that of sparse codes, and `cross` their Zᵀx, if they are there already."""
        weight = 1.0 / self._factor
        if isinstance(codes, SparseCodes) or (
            isinstance(codes, RaggedCodes) and len(codes.values) <= _PAIRS_UP_TO * len(x) * self.d_sae
        ):
            self._add_entries(x, codes, pattern or by_latent(codes, self.d_sae), cross, weight)
        else:
            z = to_dense(codes, self.d_sae).to(x.dtype)
            self._gram.add_(z.T @ z, alpha=weight)
            self._lopsided = True  # by rounding: a product need not be symmetric to the bit, and a resumed run must go on alike
            self._cross.add_(z.T @ x, alpha=weight)
            self._sum_z.add_(z.sum(0, dtype=torch.float64), alpha=weight)
        self._sum_x.add_(x.sum(0, dtype=torch.float64), alpha=weight)
        self._sum_xx = self._sum_xx + weight * torch.linalg.vector_norm(x, dtype=torch.float64) ** 2
        self._rows += weight * len(x)

    def _add_entries(
        self, x: Tensor, codes: SparseCodes | RaggedCodes, pattern: ByLatent, cross: Tensor | None, weight: float
    ) -> None:
        if isinstance(codes, SparseCodes):
            add_gram(self._gram, codes, pattern, weight)
        else:
            for padded in evenly_padded(codes):
                add_gram(self._gram, padded, by_latent(padded, self.d_sae), weight)
        self._lopsided = True
        values = codes.values.to(x.dtype)
        at_once = _LATENTS_AT_ONCE if x.device.type == "cpu" else self.d_sae
        for a in range(0, self.d_sae, at_once):
            some = slice(a, min(a + at_once, self.d_sae))
            of_some = sum_rows(pattern, values, x, some) if cross is None else cross[some]
            self._cross[some].add_(of_some.double(), alpha=weight)
        self._sum_z.scatter_add_(0, codes.indices.reshape(-1), codes.values.double().reshape(-1) * weight)

    def decay(self, factor: float) -> None:
        """Weigh all rows so far by `factor` in (0, 1]: an exponential window of 1/(1 − factor) batches. Costs nothing."""
        self._factor *= factor
        if self._factor < _SMALLEST_FACTOR:
            self._settled()

    def absorb(self, other: Statistics) -> None:
        """Add the sums of other rows to these, in place."""
        self._settled()
        other._settled()
        for name in ("_gram", "_cross", "_sum_z", "_sum_x"):
            getattr(self, name).add_(getattr(other, name))
        self._lopsided = self._lopsided or other._lopsided
        self._sum_xx += other._sum_xx
        self._rows += other._rows

    def sum_to_first(self, group: Group) -> None:
        """Bring the sums of all ranks together at the first, in place: the others are left with those of no rows."""
        if not group.several:
            return
        self._settled()
        numbers = torch.tensor([float(self._sum_xx), self._rows], dtype=torch.float64)
        sums = [getattr(self, "_" + name) for name in _SUMS]
        group.sum_to_first_(*sums, numbers)
        self._lopsided = True  # whichever rank it was that left it so
        if not group.first:
            for tensor in (*sums, numbers):
                tensor.zero_()
        self._sum_xx, self._rows = numbers.tolist()

    def rescale_latents(self, factors: Tensor) -> None:
        """Change of gauge: the statistics as if every code of latent i had been multiplied by factors[i]; factors [d_sae]."""
        s = factors.to(self._gram)
        self._gram.mul_(s[:, None]).mul_(s)
        self._cross.mul_(s[:, None])
        self._sum_z.mul_(s)

    def forget(self, latents: Tensor) -> None:
        """The statistics as if every code of these latents [n] had been zero."""
        self._gram[latents], self._gram[:, latents] = 0, 0
        self._cross[latents], self._sum_z[latents] = 0, 0

    def loss(self, W_dec: Tensor, b_dec: Tensor) -> float:
        """Σ ‖z·W_dec + b_dec − x‖² over the rows, exact for any W_dec [d_sae, d_in], b_dec [d_in], without another pass."""
        return squared_error(self, W_dec, b_dec)

    def variance(self) -> float:
        """Σ ‖x − x̄‖² over the rows: what FVU divides by."""
        return variance(self)

    def state(self) -> dict[str, Tensor]:
        """The sums as they stand, the factor still apart: bringing them up to date here would round where no one else does."""
        numbers = {name: number(float(getattr(self, "_" + name))) for name in ("sum_xx", "rows", "factor")}
        return {name: getattr(self, "_" + name) for name in _SUMS} | numbers

    def load_state(self, state: State) -> None:
        """Take the sums back."""
        for name in _SUMS:
            getattr(self, "_" + name).copy_(state[name])
        self._lopsided = True
        self._sum_xx, self._rows, self._factor = (float(state[name]) for name in ("sum_xx", "rows", "factor"))

    def _settled(self) -> Statistics:
        if self._factor != 1.0:
            for tensor in (self._gram, self._cross, self._sum_z, self._sum_x):
                tensor.mul_(self._factor)
            self._sum_xx *= self._factor
            self._rows *= self._factor
            self._factor = 1.0
        return self


def add_gram(gram: Tensor, codes: SparseCodes, pattern: ByLatent, weight: float = 1.0) -> None:
    """Add to `gram`, float64 [d_sae, d_sae], a matrix with the symmetric part weight·Σ z zᵀ, from the entries of the codes alone.

    Each pair of a row's entries is added once, doubled, at (i, j) or at (j, i): half the work of adding it at both.
    """
    if kernels := kernels_for(codes.values):
        values = codes.values.double()
        kernels.add_gram(gram, codes.indices, values * weight, values)
    else:
        _scatter_gram(gram, codes, pattern, weight)


def _scatter_gram(gram: Tensor, codes: SparseCodes, pattern: ByLatent, weight: float) -> None:
    """`add_gram` by torch."""
    d_sae, (n, k) = len(gram), codes.values.shape
    half = k // 2
    # Entry p of a row meets those at p, p + 1, …, p + half, in a circle: all pairs once, but (k even) those half a circle apart twice.
    doubled = torch.full((half + 1,), 2.0, dtype=torch.float64, device=gram.device)
    doubled[0] = 1
    if k % 2 == 0:
        doubled[half] = 1
    windows = [torch.cat([t, t[:, :half]], 1).unfold(1, half + 1, 1) for t in (codes.indices, codes.values.double())]
    partners, values = (w.reshape(n * k, half + 1) for w in (windows[0], windows[1] * doubled))
    starts = (codes.indices.reshape(-1) * d_sae).index_select(0, pattern.order)
    weighted = codes.values.double().reshape(-1).index_select(0, pattern.order) * weight
    # In the order of i, the matrix is gone through row by row.
    cuts = pattern.starts[:d_sae:_LATENTS_AT_ONCE].tolist() if gram.device.type == "cpu" else [0]  # else there is no such cache
    for first, last in pairwise([*cuts, n * k]):
        entries = pattern.order[first:last]
        places = partners.index_select(0, entries).add_(starts[first:last, None])
        products = values.index_select(0, entries).mul_(weighted[first:last, None])
        gram.view(-1).scatter_add_(0, places.view(-1), products.view(-1))


def evenly_padded(codes: RaggedCodes) -> Iterator[SparseCodes]:
    """The same rows in groups of about equally many entries each, padded with zeros; those without entries are left out.

    Products of pairs are quadratic in a row's entries: padding all rows to the one that has the most could cost many times more.
    """
    numbers, order = codes.starts.diff().sort(stable=True)
    first = int((numbers == 0).sum())
    ascending = numbers.tolist()
    while first < len(order):
        last = bisect_right(ascending, _WIDER * ascending[first] + _SOME_MORE)
        rows, width = order[first:last], ascending[last - 1]
        places = torch.arange(width, device=order.device)
        there = places < numbers[first:last, None]
        places = codes.starts[rows, None] + places.where(there, 0)
        # A padding entry names its row's first latent once more, with the value zero.
        yield SparseCodes(codes.indices[places], codes.values[places].where(there, 0))
        first = last


def symmetrise(matrix: Tensor) -> None:
    """Put the symmetric part of a matrix [d, d] in its place."""
    d = len(matrix)
    for a in range(0, d, _ROWS_AT_ONCE):
        b = min(a + _ROWS_AT_ONCE, d)
        rows, columns = matrix[a:b, a:], matrix[a:, a:b]
        rows.add_(columns.T.clone()).mul_(0.5)
        columns.copy_(rows.T.clone())
