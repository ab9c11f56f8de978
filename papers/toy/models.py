"""The SAEs of E1's four variants: as the authors' scripts have them (`paper_code`), and as the paper's mathematics has them (`paper`).

In the scripts x̂ = Σ_i s_i(x)·v_i, v_i = W2_i/‖W2_i‖, with shares s that are positive and add up to one: a softmax of (x·W1_i/‖W1_i‖ + b_i)/0.3, over all latents
(k = 1) or over the three largest (soft), or 1/3 for each of these (hard). It follows that x̂ never leaves the unit disc, where points that lie beyond
have an error that no training removes (`disc_error`); and that the hard variants never train their encoder: equal shares have no gradient.

By the mathematics codes are pre-activations, max(0, x·w_i + b_i) of the k largest (k = 1, soft), or 1/k of each of these (hard), and the decoder is the
closed-form optimum (Theorem C.1), with a bias and free norms. The encoder of the soft ones is trained by Algorithm 3.1; the hard ones keep theirs, which
begins as the script's, or ("better inits") has the script's better centres as what they are meant to be: generators of Voronoi cells, w = μ, b = −‖μ‖²/2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...sae import SparseCodes, select_topk
from ...train import Penalties, Statistics, TrainConfig, solve_decoder
from ..alternation import alternate
from .data import kmeans_regions, points

TEMPERATURE = 0.3
RIDGE = 1e-9  # of closed-form decoders, in the Gram matrix's mean diagonal
ALTERNATIONS, RATE = 300, 3e-2  # of Algorithm 3.1, each one step on all points

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Variant:
    """Of E1: latents, how many are active, whether equally (`hard`); the scripts' rate and steps; and whether with better beginnings."""

    name: str
    latents: int
    k: int
    hard: bool
    rate: float
    steps: int
    better: bool = False


VARIANTS = (
    Variant("k=1", 40, 1, False, 3e-3, 5000),
    Variant("k=3 soft", 80, 3, False, 8e-3, 7500),
    Variant("k=3 hard", 80, 3, True, 8e-3, 7500),
    Variant("k=3 hard, better inits", 80, 3, True, 8e-3, 7500, better=True),
)


@dataclass(frozen=True)
class Model:
    """An SAE of the plane: affine functions, directions [d_sae, 2] and offsets [d_sae], the k largest of which decide on the region.

    Attributes:
        relu: whether only positive ones count. reconstruct: points [N, 2] -> [N, 2]. trained: whether the encoder has moved since it began.
    """

    directions: Tensor
    offsets: Tensor
    k: int
    relu: bool
    reconstruct: Callable[[Tensor], Tensor]
    trained: bool

    def active(self, x: Tensor) -> Tensor:
        """Which latents decide on points [N, 2]: bool [N, d_sae]."""
        pre = torch.addmm(self.offsets.double(), x.double(), self.directions.double().T)
        largest = pre.topk(self.k, dim=1)
        return torch.zeros_like(pre, dtype=torch.bool).scatter(1, largest.indices, (largest.values > 0) | (not self.relu))


@dataclass
class _Begun:
    """Parameters that the scripts begin with, of several seeds at once: W1 [S, K, 2], W2 [S, K, 2], b [S, K]."""

    W1: Tensor
    W2: Tensor
    b: Tensor

    @classmethod
    def of(cls, variant: Variant, x: Tensor, seeds: tuple[int, ...]) -> _Begun:
        drawn = [beginning(variant, x[s], seed) for s, seed in enumerate(seeds)]
        return cls(*(torch.stack(part) for part in zip(*drawn, strict=True)))


def beginning(variant: Variant, x: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """W1 [K, 2], W2 [K, 2] and b [K] that the scripts begin with, for points x [N, 2]; but seeded."""
    draw, K = torch.Generator().manual_seed(10_000 + seed), variant.latents
    normal = lambda *size: torch.randn(*size, generator=draw)  # noqa: E731
    if variant.k == 1:
        return normal(K, 2), normal(K, 2), normal(K)
    near = x[torch.randint(0, len(x), (K,), generator=draw)] + 0.1 * normal(K, 2)
    if not variant.better:
        return near, normal(K, 2), normal(K)
    centres = kmeans_regions(x, 3).centres.float()
    near[: len(centres)] = centres
    return near, 0.1 * normal(K, 2), torch.zeros(K)


def paper_code(variant: Variant, seeds: tuple[int, ...], quick: bool, progress: Progress) -> list[Model]:
    """A model for the points of each seed, with the scripts' settings; all are trained side by side, full batch, by Adam.

    Args:
        quick: a tenth of the steps.
    """
    x = torch.stack([points(seed) for seed in seeds])
    begun = _Begun.of(variant, x, seeds)
    trained = [begun.W2] if variant.hard else [begun.W1, begun.W2, begun.b]  # the others have no gradient
    parameters = [p.requires_grad_() for p in trained]
    optimizer = torch.optim.Adam(parameters, lr=variant.rate, fused=True)
    steps = variant.steps // 10 if quick else variant.steps
    # Equal shares do not change, with an encoder that does not.
    fixed = _shares(variant, begun.W1, begun.b, x) if variant.hard else None
    for step in range(steps):
        shares = _shares(variant, begun.W1, begun.b, x) if fixed is None else fixed
        optimizer.zero_grad()
        error = (shares @ _unit(begun.W2) - x).square().mean((1, 2)).sum()
        error.backward()
        optimizer.step()
        if step % 100 == 0:
            progress(step, steps)
    W1, W2, b = begun.W1.detach(), begun.W2.detach(), begun.b.detach()
    return [_as_model(variant, W1[s], W2[s], b[s]) for s in range(len(seeds))]


def _as_model(variant: Variant, W1: Tensor, W2: Tensor, b: Tensor) -> Model:
    def reconstruct(x: Tensor) -> Tensor:
        return _shares(variant, W1, b, x) @ _unit(W2)

    return Model(_unit(W1), b, variant.k, False, reconstruct, not variant.hard)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def _shares(variant: Variant, W1: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """s [..., N, K] of points x [..., N, 2]."""
    pre = x @ _unit(W1).mT + b[..., None, :]
    if variant.k == 1:  # the script's Top-1 SAE mixes all
        return (pre / TEMPERATURE).softmax(-1)
    largest = pre.topk(variant.k, dim=-1)
    shares = torch.full_like(largest.values, 1 / variant.k) if variant.hard else (largest.values / TEMPERATURE).softmax(-1)
    return torch.zeros_like(pre).scatter(-1, largest.indices, shares)


def disc_error(x: Tensor) -> float:
    """The MSE that points [N, 2] have at least where x̂ cannot leave the unit disc."""
    return float((x.norm(dim=1) - 1).clamp(min=0).square().mean()) / 2


def paper(variant: Variant, seeds: tuple[int, ...], quick: bool, progress: Progress) -> list[Model]:
    """A model for the points of each seed, with codes and a decoder as the paper has them.

    Args:
        quick: a tenth of the alternations.
    """
    models = []
    for n, seed in enumerate(seeds):
        progress(n, len(seeds))
        models.append(
            _hard(variant, seed) if variant.hard else _soft(variant, seed, ALTERNATIONS // 10 if quick else ALTERNATIONS)
        )
    return models


def _soft(variant: Variant, seed: int, alternations: int) -> Model:
    x = points(seed)
    mean, scale = x.mean(0), float((x - x.mean(0)).square().mean().sqrt())
    rows = (x - mean) / scale
    config = TrainConfig(
        method="pam", activation="topk", d_sae=variant.latents, k=variant.k, rows=alternations * len(x), batch_size=len(x), lr=RATE,
        decoder_steps=False, revive="none", jitter=0.0, seed=seed,
    )  # fmt: skip
    sae = alternate(rows, rows, config, alternations, RIDGE).fold_normalisation(mean, scale)
    plain = sae.plain()
    return Model(plain.W_enc.T, plain.b_enc, variant.k, True, sae, True)


def _hard(variant: Variant, seed: int) -> Model:
    x = points(seed)
    W1, _, b = beginning(variant, x, seed)
    directions, offsets = (W1, -W1.square().sum(1) / 2) if variant.better else (_unit(W1), b)

    def codes(x: Tensor) -> SparseCodes:
        # TopK of the project takes the positive ones of the largest; a constant makes all of them so.
        pre = torch.addmm(offsets, x, directions.T)
        kept = select_topk(pre - pre.amin() + 1, variant.k)
        return SparseCodes(kept.indices, torch.full_like(kept.values, 1 / variant.k))

    statistics = Statistics(2, variant.latents)
    statistics.add(x.double(), SparseCodes(codes(x).indices, codes(x).values.double()))
    decoder = solve_decoder(statistics, Penalties(alpha=RIDGE * float(statistics.diagonal.mean())))

    def reconstruct(x: Tensor) -> Tensor:
        kept = codes(x.float())
        return decoder.W_dec[kept.indices].sum(1) / variant.k + decoder.b_dec

    return Model(directions, offsets, variant.k, False, reconstruct, False)
