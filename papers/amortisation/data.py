"""Sparse sources seen through fewer measurements: the synthetic data of arXiv 2411.13117."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import SplinterpError


@dataclass(frozen=True)
class Size:
    """N sources of which exactly K are active, M measurements, and how many rows there are to train on and as many to test on."""

    n: int = 16
    m: int = 8
    k: int = 3
    rows: int = 1024

    def __post_init__(self) -> None:
        if not (1 <= self.k <= self.n and self.m >= 2 and self.rows >= 2):
            raise SplinterpError(
                f"{self.k} active of {self.n} sources in {self.m} dimensions, {self.rows} rows, is no data set; give 1 ≤ K ≤ N, M ≥ 2 and 2 "
                "rows or more."
            )


@dataclass(frozen=True)
class Data:
    """X = S·D of several data sets side by side, float32: `codes` and `test_codes` [G, R, N], `rows` and `test_rows` [G, R, M],
    `dictionary` [G, N, M] with rows of norm 1."""

    codes: Tensor
    rows: Tensor
    test_codes: Tensor
    test_rows: Tensor
    dictionary: Tensor


def generate(size: Size, seeds: Sequence[int]) -> Data:
    """A data set for each of `seeds`, with |N(0, 1)| values and a Gaussian dictionary, without noise.

    The random numbers are drawn as in the authors' published code, so that its seeds give its data sets: NumPy's old generator, per row N
    normals and then a choice of K; torch's for the dictionary.
    """
    sets = {seed: _one(size, seed) for seed in seeds}
    codes, dictionary = (torch.stack([sets[seed][i] for seed in seeds]) for i in (0, 1))
    rows, half = codes @ dictionary, size.rows
    return Data(codes[:, :half], rows[:, :half], codes[:, half:], rows[:, half:], dictionary)


def _one(size: Size, seed: int) -> tuple[Tensor, Tensor]:
    random = np.random.RandomState(seed)
    codes = np.zeros((2 * size.rows, size.n))
    for row in codes:
        values = np.abs(random.normal(0, 1, size.n))
        active = random.choice(size.n, size.k, replace=False)
        row[active] = values[active]
    dictionary = torch.randn(size.n, size.m, generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(codes).float(), dictionary / dictionary.norm(dim=1, keepdim=True)
