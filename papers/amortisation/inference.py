"""Codes of new rows on a frozen dictionary, whatever gave the dictionary: inference-time optimisation, and our own solvers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...infer import Dictionary, Target, infer
from ...sae import to_dense
from .encoders import FreeCodes
from .losses import Reconstruction
from .training import Seen, train

WARM = 10  # our ITO, from the encoder's codes, is given a tenth of the steps of the authors', which starts from nothing


def optimise(
    rows: Tensor,
    dictionary: Tensor,
    l1: float,
    steps: int,
    rate: float,
    bias: Tensor | None = None,
    seen: tuple[list[int], Seen] | None = None,
) -> Tensor:
    """The authors' inference-time optimisation (ITO): codes exp(l), from exp(−10), by Adam on MSE + `l1` · mean |S|, [G, R, N].

    Args:
        rows: [G, R, M]. dictionary: [G, N, M], frozen. bias: [G, 1, M], of the reconstruction.
        seen: marks, and what is called at each with the number of steps and the codes.
    """
    codes = FreeCodes.cold((*rows.shape[:2], dictionary.shape[1]))
    loss = Reconstruction(rows if bias is None else rows - bias, dictionary, l1, learn=False)
    train(codes, loss, steps, rate, *(seen or ((), None)))
    return codes.forward()


def solved(method: str, rows: Tensor, dictionary: Tensor, start: Tensor | None = None, **target: Any) -> Tensor:
    """Non-negative codes [G, R, N] by one of `splinterp.infer`'s methods.

    Args:
        rows: [G, R, M]. dictionary: [G, N, M]. start: codes [G, R, N] to begin with. target: what `splinterp.infer.Target` takes.
    """
    bias = dictionary.new_zeros(dictionary.shape[2])
    return torch.stack(
        [
            to_dense(
                infer(method, x, Dictionary(atoms, bias), Target(**target), None if start is None else start[g]), len(atoms)
            )
            for g, (x, atoms) in enumerate(zip(rows, dictionary, strict=True))
        ]
    )
