"""The weights that training begins with: of our seeds, or those that the authors' published code begins with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .data import Size

Layers = list[tuple[Tensor, Tensor | None]]

AUTHORS_OFFSET = 42  # their models add it to the seed that they are given


def our_layers(sizes: Sequence[int], biases: bool, seeds: Sequence[int]) -> Layers:
    """Of an encoder for each of G seeds: weights [G, inputs, outputs] and biases [G, 1, outputs], uniform within ±1/√inputs, as torch's own
    linear layers begin.

    Args:
        sizes: M, the widths of hidden layers, N.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    layers: Layers = []
    for inputs, outputs in pairwise(sizes):
        drawn = torch.stack([(torch.rand(inputs + 1, outputs, generator=g) * 2 - 1) * inputs**-0.5 for g in generators])
        layers.append((drawn[:, :-1], drawn[:, -1:] if biases else None))
    return layers


def our_dictionary(size: Size, seeds: Sequence[int]) -> Tensor:
    """[G, N, M]: Gaussian atoms of norm 1, one dictionary for each of G seeds."""
    drawn = [torch.randn(size.n, size.m, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return nn.functional.normalize(torch.stack(drawn), dim=2)


def authors_weights(
    sizes: Sequence[int], size: Size, biases: bool, decoder_bias: bool, seeds: Sequence[int]
) -> tuple[Layers, Tensor]:
    """What the authors' models begin with: the encoder's layers; the decoder's, whose weight they replace; and that, the dictionary [G, N, M];
    drawn in this order.

    Args:
        sizes: M, the widths of hidden layers, N. None of sparse coding, which has only the dictionary. seeds: that the models are given.
    """
    drawn = [_authors(sizes, size, biases, decoder_bias, seed) for seed in seeds]
    layers: Layers = []
    for each in zip(*(linears for linears, _ in drawn), strict=True):
        bias = torch.stack([linear.bias.detach()[None] for linear in each]) if biases else None
        layers.append((torch.stack([linear.weight.detach().T for linear in each]), bias))
    return layers, nn.functional.normalize(torch.stack([dictionary for _, dictionary in drawn]), dim=2)


def _authors(sizes: Sequence[int], size: Size, biases: bool, decoder_bias: bool, seed: int) -> tuple[list[nn.Linear], Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + AUTHORS_OFFSET)
        layers = [nn.Linear(inputs, outputs, bias=biases) for inputs, outputs in pairwise(sizes)]
        if layers:
            nn.Linear(size.n, size.m, bias=decoder_bias)
        return layers, torch.randn(size.m, size.n).T
