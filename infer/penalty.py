"""Penalties by what they come to: λ at which the ℓ1 codes of a dictionary have a wanted L0."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..errors import SplinterpError
from ..sae import Codes, l0
from .methods import infer
from .problem import Dictionary, Target

# From one λ to the next, and steps of FISTA at each, from the codes of the one before: L0 comes within some percent.
_FACTOR, _STEPS = 0.5**0.5, 100
_LEAST = 1e-6  # of the largest λ that means anything


def penalties_for(dictionary: Dictionary, x: Tensor, budgets: Sequence[float], signed: bool = False) -> list[float]:
    """λ of `Target.l1` for which rows x [N, d_in] have about so many codes that are not zero, for each budget.

    FISTA goes down a path of λ from where the median row has none; between two points of it log λ is taken as linear in log L0. Of ista, fista, cd
    and lca, whose problem is the same; `ito_penalty` has it for ito.

    Raises:
        SplinterpError: no λ has as many.
    """
    first = (x.to(dictionary.W_dec) - dictionary.b_dec) @ dictionary.atoms.T
    largest = float((first.abs() if signed else first).amax(1).median())
    if not largest > 0:
        raise SplinterpError("No latent points the way of these rows, so that λ cannot be chosen; give one with --l1.")
    path: list[tuple[float, float]] = []  # (log λ, log L0)
    l1, codes, found = largest, None, 0.0
    while found < max(budgets) and l1 > _LEAST * largest:
        l1 *= _FACTOR
        target = Target(l1=l1, signed=signed, steps=_STEPS)
        codes = _further(dictionary, x, target, codes)
        found = l0(codes)
        if found > (math.exp(path[-1][1]) if path else 0.0):  # L0 need not rise at every step of the path
            path.append((math.log(l1), math.log(found)))
    if not path or found < max(budgets):
        raise SplinterpError(
            f"ℓ1 codes of this dictionary come to {found:.1f} latents a row at most, not to {max(budgets):g}; give λ with --l1."
        )
    return [math.exp(_between(path, math.log(budget))) for budget in budgets]


def ito_penalty(l1: float, dictionary: Dictionary) -> float:
    """The λ of ito, whose loss is of means, that stands for `l1` (see `Target`)."""
    return l1 * 2 * dictionary.d_sae / dictionary.d_in


def _further(dictionary: Dictionary, x: Tensor, target: Target, codes: Codes | None) -> Codes:
    return infer("fista", x, dictionary, target, codes)


def _between(path: Sequence[tuple[float, float]], log_l0: float) -> float:
    """log λ at a log L0 up to the path's last; before its first the line goes on."""
    if len(path) == 1:
        return path[0][0]
    i = next((i for i, (_, found) in enumerate(path) if found >= log_l0), len(path) - 1)
    (a, low), (b, high) = path[max(0, i - 1)], path[max(1, i)]
    return a + (b - a) * (log_l0 - low) / (high - low)
