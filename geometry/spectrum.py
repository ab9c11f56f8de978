"""k-means, SAEs and local PCA side by side on one store: `splinterp spectrum`.

k-means and local PCA have the same cells, those of centres found by mini-batch k-means on the training rows; means and covariances are
exact over all training rows. k-means reconstructs a row by the mean of its cell, local PCA by the mean and the axes that the rank rule leaves at a
price λ. FVU and description length are those of held-out rows; λ is chosen on validation rows, so that local PCA has at most as many
coefficients a row as the SAE that it stands beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import SplinterpError
from ..evaluate import Metrics, evaluate_rows
from ..sae import SAE
from ..store import Store
from ..store.batches import Split
from .description import BITS, sae_coefficients, sae_index_bits, sae_parameters
from .kmeans import Cells, kmeans_centres, size_of
from .local_pca import LocalPCA, RegionMoments, left_over, rank_rule
from .own_regions import bound_on_own_regions

COEFFICIENTS = 32  # a row, where neither an SAE nor anything else says
_AT_ONCE = 8192

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SpectrumOptions:
    """Settings of `spectrum`.

    Attributes:
        regions: of k-means and local PCA; 1: the mean, and PCA. epochs: of mini-batch k-means. seed: of its centres and the order of the rows.
        price: λ of the rank rule, in the eigenvalues' units; None: chosen. coefficients: that λ is chosen for; None: each SAE's.
        bits: of a coefficient. memory: bytes that the regions' covariances may take.
    """

    regions: int = 256
    epochs: int = 3
    seed: int = 0
    price: float | None = None
    coefficients: float | None = None
    bits: float = BITS
    memory: int = 2**32

    def __post_init__(self) -> None:
        for name, value, least in (("regions", self.regions, 1), ("epochs", self.epochs, 1)):
            if value < least:
                raise SplinterpError(f"--{name} {value} is too small; give at least {least}.")
        for name, number in (("lambda", self.price), ("coefficients", self.coefficients), ("bits", self.bits)):
            if number is not None and not (number >= 0 and math.isfinite(number)):
                raise SplinterpError(f"--{name} {number} must be a number from 0 on.")
        if self.price is not None and self.coefficients is not None:
            raise SplinterpError("--lambda and --coefficients both say how many coefficients there are; give one of them.")


class _Energies(NamedTuple):
    """Of a split's rows by region: how many [R], and Σ of their squared coefficients by axis [R, d_in]."""

    counts: Tensor
    squared: Tensor


def spectrum(
    options: SpectrumOptions, store: Store, site: str, saes: Mapping[str, SAE], progress: Progress | None = None
) -> dict[str, Any]:
    """What each comes to on a store's held-out rows.

    `entries`: of k-means, local PCA (one for each number of coefficients) and the SAEs `name`, `kind`, the figures of `evaluate.Metrics`,
    `coefficients` a row, `index_bits`, `bits` a row, `parameters`, and of local PCA its `price`. `curve`: of local PCA at all prices
    `price`, `coefficients`, `fvu`, `bits`. `bounds`: see `bound_on_own_regions`.

    Raises:
        SplinterpError: too few rows, or the covariances take more memory than they may.
    """
    o, info = options, store.site(site)
    train, held_out = store.split_rows("train"), store.split_rows("held_out")
    if not held_out:
        raise SplinterpError(f"{store.path} has too few rows ({store.rows:,}) to keep some apart for evaluation; harvest more.")
    tell = progress or (lambda *_: None)
    RegionMoments.check(o.regions, info.d, o.memory)
    centres = kmeans_centres(store, site, o.regions, o.epochs, o.seed, lambda n: tell("k-means", n, o.epochs * train))
    cells = Cells(centres, info.mean, size_of(info))
    moments, done = RegionMoments(centres, o.memory), 0
    for x in _rows(store, site, "train"):
        moments.add(x, cells.of(x))
        done += len(x)
        tell("covariances", done, train)
    pca = moments.solve()
    chosen_by = _energies(pca, cells, store, site, "validation" if store.split_rows("validation") else "train")
    held = _energies(pca, cells, store, site, "held_out")

    tell("figures", 0, 1)
    by_sae = {name: _of_sae(sae, store, site, o) for name, sae in saes.items()}
    none = torch.zeros(o.regions, dtype=torch.int64)
    entries = {"k-means": {"kind": "k-means", **_of_regions(pca, none, cells, store, site, o)}}
    targets = {o.coefficients} if o.coefficients is not None else {e["coefficients"] for e in by_sae.values()} or {COEFFICIENTS}
    prices = {price_for(pca, chosen_by.counts, target) for target in targets} if o.price is None else {o.price}
    for price in sorted(prices, reverse=True):
        figures = _of_regions(pca, rank_rule(pca.eigenvalues, price), cells, store, site, o)
        entries[f"local PCA, λ={price:.4g}"] = {"kind": "local PCA", "price": price, **figures}
    result = {
        "store": str(store.path), "store_fingerprint": store.fingerprint, "site": site, "regions": o.regions,
        "regions_with_rows": int((pca.counts > 0).sum()), "epochs": o.epochs, "seed": o.seed, "bits_per_coefficient": o.bits,
        "entries": [{"name": name, **figures} for name, figures in (entries | by_sae).items()],
        "curve": _curve(pca, chosen_by, held, entries["k-means"]["fvu"], o),
        "bounds": [
            {"name": name, **found}
            for name, sae in saes.items()
            if (found := bound_on_own_regions(sae, lambda: _rows(store, site, "train"), info.mean, o.regions, o.memory))
        ],
    }  # fmt: skip
    tell("figures", 1, 1)
    return result


def price_for(pca: LocalPCA, counts: Tensor, most: float) -> float:
    """The lowest λ at which local PCA has at most so many coefficients a row, with counts [R] rows in the regions."""
    candidates = torch.cat([torch.zeros(1, dtype=torch.float64), pca.eigenvalues.flatten()]).sort().values
    low, high = 0, len(candidates) - 1  # at the largest eigenvalue no coefficient is left
    while low < high:
        middle = (low + high) // 2
        few = _mean(rank_rule(pca.eigenvalues, float(candidates[middle])), counts) <= most
        low, high = (low, middle) if few else (middle + 1, high)
    return float(candidates[low])


def _curve(pca: LocalPCA, chosen_by: _Energies, held: _Energies, rank_0: float, o: SpectrumOptions) -> list[dict[str, float]]:
    """Local PCA from no coefficient to all, twice as many at each step. rank_0: the FVU of k-means, in whose units the others are."""
    d, points, whole = pca.means.shape[1], [], float(held.squared.sum())
    for target in [0, *(2**i for i in range(int(math.log2(d)) + 1)), d]:
        price = price_for(pca, chosen_by.counts, target) if target else float(pca.eigenvalues.max())  # k-means
        ranks = rank_rule(pca.eigenvalues, price)
        coefficients = _mean(ranks, held.counts)
        points.append({
            "price": price, "coefficients": coefficients, "fvu": rank_0 * float(left_over(held.squared, ranks).sum()) / whole if whole else 0.0,
            "bits": math.log2(o.regions) + o.bits * coefficients,
        })  # fmt: skip
    return points


def _of_regions(pca: LocalPCA, ranks: Tensor, cells: Cells, store: Store, site: str, o: SpectrumOptions) -> dict[str, Any]:
    regions, d = pca.means.shape
    metrics = Metrics(d, regions, store.site(site).mean)
    for x in _rows(store, site, "held_out"):
        of = cells.of(x)
        metrics.add_errors(x, pca.reconstruct(x, of, ranks) - x, float(ranks[of].sum()), torch.bincount(of, minlength=regions))
    figures = metrics.figures()
    coefficients, index = figures["l0"], math.log2(regions)
    return {
        **figures, "coefficients": coefficients, "index_bits": index, "bits": index + o.bits * coefficients,
        "parameters": 2 * regions * d + d * int(ranks.sum()),  # centres, means, axes
    }  # fmt: skip


def _of_sae(sae: SAE, store: Store, site: str, o: SpectrumOptions) -> dict[str, Any]:
    figures = evaluate_rows(sae, _rows(store, site, "held_out"), store.site(site).mean)
    coefficients = sae_coefficients(sae, figures["l0"])
    index = sae_index_bits(sae, _rows(store, site, "held_out"))
    return {
        "kind": sae.config.architecture, **figures, "coefficients": coefficients, "index_bits": index,
        "bits": index + o.bits * coefficients, "parameters": sae_parameters(sae),
    }  # fmt: skip


def _energies(pca: LocalPCA, cells: Cells, store: Store, site: str, split: Split) -> _Energies:
    regions, d = pca.means.shape
    counts, squared = torch.zeros(regions, dtype=torch.int64), torch.zeros(regions, d, dtype=torch.float64)
    for x in _rows(store, site, split):
        of = cells.of(x)
        counts += torch.bincount(of, minlength=regions)
        squared.index_add_(0, of, pca.coefficients(x, of).square_())
    return _Energies(counts, squared)


def _rows(store: Store, site: str, split: Split) -> Iterator[Tensor]:
    """Every row of a split once, float32 on the CPU."""
    for x in store.batches(site, _AT_ONCE, split=split, shuffle=False):
        yield x.to(torch.float32, copy=True)


def _mean(ranks: Tensor, counts: Tensor) -> float:
    return float(ranks.double() @ counts.double()) / max(1, int(counts.sum()))
