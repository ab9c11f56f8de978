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

FLOOR = 1e-2  # the least code that a warm start begins with
WARM = 10  # a warm start is given a tenth of a cold one's steps


def optimise(
    rows: Tensor, dictionary: Tensor, l1: float, steps: int, rate: float, start: Tensor | None = None, bias: Tensor | None = None,
    seen: tuple[list[int], Seen] | None = None,
) -> Tensor:  # fmt: skip
    """Inference-time optimisation (ITO): codes exp(l) by Adam on MSE + `l1` · mean |S|, [G, R, N].

    Args:
        rows: [G, R, M]. dictionary: [G, N, M], frozen. bias: [G, 1, M], of the reconstruction.
        start: codes [G, R, N] to begin with. An exponential's gradient vanishes with it, and where a latent starts at 1e-10, as in the authors'
            warm start, Adam's ε of 1e-8 holds it there: none begins below `FLOOR`. None: exp(−10) all over.
        seen: marks, and what is called at each with the number of steps and the codes.
    """
    shape = (*rows.shape[:2], dictionary.shape[1])
    codes = FreeCodes.cold(shape) if start is None else FreeCodes(start.clamp(min=FLOOR).log())
    loss = Reconstruction(rows if bias is None else rows - bias, dictionary, l1, learn=False)
    train(codes, loss, steps, rate, *(seen or ((), None)))
    return codes.forward()


def solved(method: str, rows: Tensor, dictionary: Tensor, **target: Any) -> Tensor:
    """Non-negative codes [G, R, N] by one of `splinterp.infer`'s methods.

    Args:
        rows: [G, R, M]. dictionary: [G, N, M]. target: what `splinterp.infer.Target` takes.
    """
    bias = dictionary.new_zeros(dictionary.shape[2])
    return torch.stack(
        [
            to_dense(infer(method, x, Dictionary(atoms, bias), Target(**target)), len(atoms))
            for x, atoms in zip(rows, dictionary, strict=True)
        ]
    )
