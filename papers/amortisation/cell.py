"""One arm trained with several seeds at once, and the figures of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import inference
from .arms import TEST_RATE, TEST_STEPS, UNTRAINED, Arm
from .data import Data, generate
from .encoders import Encoder, FreeCodes, parameter, top_k
from .first import authors_weights, our_dictionary, our_layers
from .losses import Cosine, Loss, Reconstruction
from .mcc import mcc, paired
from .training import marks, train

FIRED = 1e-4  # a code above this counts in L0, as in the authors' code: an exponential is never 0
PAPERS_K = 3  # of top-k codes on a dictionary from sparse coding


def trained(
    arm: Arm, seeds: Sequence[int], data_seeds: Sequence[int], test_steps: int = TEST_STEPS, authors: bool = False
) -> list[dict[str, Any]]:
    """The figures of each seed: `codes` (MCC on test rows) and, where it was learnt, `dictionary`; `mse` and `l0` on test rows; those
    that the arm has `also`; `curve`, pairs of step and MCC; `seconds`, this seed's share.

    Args:
        seeds: of weights and dictionary. data_seeds: of the data, one for each seed. test_steps: of codes optimised on test rows.
    """
    begun, data = time.process_time(), generate(arm.size, data_seeds)
    found = _inferred(arm, data) if arm.kind in UNTRAINED else _learnt(arm, data, seeds, test_steps, authors)
    for figures in found:
        figures["seconds"] = (time.process_time() - begun) / len(seeds)
    return found


def _inferred(arm: Arm, data: Data) -> list[dict[str, Any]]:
    curve = _Curve(arm, data, lambda codes: codes)
    given = (data.test_rows, data.dictionary)
    if arm.kind == "ito":
        codes = inference.optimise(*given, arm.l1, arm.steps, arm.rate, seen=(marks(arm.steps, arm.marks), curve.add))
    else:
        target: dict[str, Any] = {"l1": arm.l1, "steps": arm.steps} if arm.kind == "lca" else {"k": arm.k}
        codes = inference.solved(arm.kind, *given, **target)
        curve.add(arm.steps, codes)
    return _figures(arm, data, codes, Reconstruction(*given, arm.l1, learn=False), curve)


def _learnt(arm: Arm, data: Data, seeds: Sequence[int], test_steps: int, authors: bool) -> list[dict[str, Any]]:
    sizes = [arm.size.m, *([arm.hidden] if arm.hidden else []), arm.size.n]
    if authors:
        layers, dictionary = authors_weights(
            [] if arm.kind == "sparse coding" else sizes, arm.size, arm.bias, arm.decoder_bias, seeds
        )
    else:
        layers, dictionary = our_layers(sizes, arm.bias, seeds), our_dictionary(arm.size, seeds)
    loss = _loss(arm, data, dictionary)
    if arm.kind == "sparse coding":
        source: Encoder | FreeCodes = FreeCodes.cold(data.codes.shape)
    else:
        source = Encoder(data.rows, layers, arm.k)
    learnt, bias = (loss.dictionary, loss.bias) if isinstance(loss, Reconstruction) else (None, None)

    def optimised() -> Tensor:
        assert learnt is not None
        return inference.optimise(data.test_rows, learnt, arm.l1, test_steps, TEST_RATE, bias)

    def codes_of_test(_: Tensor) -> Tensor:
        if isinstance(loss, Reconstruction) and loss.learn:
            loss.normalise()  # as the next step would
        return source.encode(data.test_rows) if isinstance(source, Encoder) else optimised()

    curve = _Curve(arm, data, codes_of_test)
    train(source, loss, arm.steps, arm.rate, marks(arm.steps, arm.marks), curve.add)
    codes = curve.last
    reconstruction = None if learnt is None else Reconstruction(data.test_rows, learnt, arm.l1, learn=False, bias=bias)
    found = _figures(arm, data, codes, reconstruction, curve)
    if learnt is None:
        return found
    if arm.goal == "neither":
        for g, figures in enumerate(found):
            figures["dictionary"] = mcc(data.dictionary[g].T, learnt[g].T)
    solvers: dict[str, Callable[[], Tensor]] = {
        "ito": optimised,
        "warm-ito": lambda: inference.solved(
            "ito", data.test_rows, learnt, codes, l1=arm.l1, steps=max(1, test_steps // inference.WARM)
        ),
        "top-k": lambda: top_k(codes, PAPERS_K),
        "omp": lambda: inference.solved("omp", data.test_rows, learnt, k=PAPERS_K),
    }
    for name in arm.also:
        other = solvers[name]()
        for g, figures in enumerate(found):
            figures[name] = mcc(data.test_codes[g], other[g])
    return found


def _loss(arm: Arm, data: Data, first: Tensor) -> Loss:
    if arm.goal == "codes":
        return Cosine(data.codes)
    learn = arm.goal == "neither"
    bias = parameter(torch.zeros(len(first), 1, arm.size.m)) if arm.decoder_bias else None
    return Reconstruction(data.rows, first if learn else data.dictionary, arm.l1, learn, bias)


def _figures(arm: Arm, data: Data, codes: Tensor, loss: Reconstruction | None, curve: _Curve) -> list[dict[str, Any]]:
    l0 = (codes > FIRED).float().sum(2).mean(1)
    mse = None if loss is None else loss.mse(codes)
    return [
        {
            "codes": curve.points[-1][1][g],
            "l0": float(l0[g]),
            "mse": None if mse is None else float(mse[g]),
            "curve": [(step, values[g]) for step, values in curve.points],
        }
        for g in range(len(codes))
    ]


class _Curve:
    """MCC on the test rows while training goes on; `last` are the last test codes."""

    def __init__(self, arm: Arm, data: Data, test_codes: Callable[[Tensor], Tensor]) -> None:
        self.points: list[tuple[int, list[float]]] = []
        self.last = torch.empty(0)
        self._true, self._test_codes = data.test_codes, test_codes
        self._compare = paired if arm.goal == "codes" else mcc

    def add(self, step: int, codes: Tensor) -> None:
        self.last = self._test_codes(codes)
        self.points.append((step, [self._compare(true, found) for true, found in zip(self._true, self.last, strict=True)]))
