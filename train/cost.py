"""What a step and a solve cost, in multiplications and additions of a dense product: a count, so that runs are repeatable.

The factors were measured on two CPU cores (N=2048, d_in=768, d_sae=8192, k=32; `splinterp bench train`): what is bound by memory does
fewer of them in a second than a dense product.
"""

from __future__ import annotations

_TOPK = 130  # for each pre-activation
_GATHERED = 15  # for each number that decoding, the gradients or the cross moment gather
_GRAM = 1500  # for each product of two codes
_ADAM = 150  # for each weight
_DOUBLE = 2  # float64 beside float32, where memory is the limit
_SOLVE = 1.5  # the float32 solve, beside its own operations


def step_cost(rows: int, d_in: int, d_sae: int, k: int | None) -> float:
    """Of one gradient step and of the statistics of `rows` rows; with dense codes (k None) of three products more for the gradients."""
    product = 2.0 * rows * d_in * d_sae
    if k is None:
        return 4 * product + _ADAM * 2 * d_in * d_sae
    return product + rows * (_TOPK * d_sae + _GATHERED * 5 * k * d_in + _GRAM * k * k) + _ADAM * 2 * d_in * d_sae


def solve_cost(d_in: int, d_sae: int) -> float:
    """Of one solve within training: a Cholesky factorisation and its back substitutions."""
    return _SOLVE * (d_sae**3 / 3 + 2.0 * d_sae**2 * d_in)


def objective_cost(d_in: int, d_sae: int) -> float:
    """Of two products of the Gram matrix with a decoder, in float64."""
    return 2 * _DOUBLE * 2.0 * d_sae**2 * d_in


def cg_cost(rows: int, d_in: int, k: int, iterations: int) -> float:
    """Of one solve within training by conjugate gradients over `rows` kept rows: each product gathers every code twice."""
    return 2.0 * _DOUBLE * _GATHERED * iterations * rows * k * d_in
