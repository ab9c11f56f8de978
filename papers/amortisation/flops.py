"""Floating-point operations of training and inference: counted, or as the authors' code has them.

Counted: a multiplication, an addition, a comparison, a root and an exponential are one operation each, so a product of [R, M] and [M, N]
is 2·R·M·N. What belongs to the weights (Adam, the norms of the atoms) is paid once a step. The authors pay it once a row, and for sparse
coding the loss and the codes' update, too, which hold all rows already: at their size of 1,024 rows that comes to far too much.
"""

from __future__ import annotations

from dataclasses import dataclass

ADAM = 12  # per parameter: two moving means (3 and 4), their corrections, root, sum, quotient and step (5)


@dataclass(frozen=True)
class Shape:
    """What is counted: M dimensions, N latents, hidden units of an MLP (0: a linear encoder), rows, and whether the dictionary learns."""

    m: int
    n: int
    hidden: int
    rows: int
    learn: bool


def _weights(s: Shape) -> int:
    return s.m * s.hidden + s.hidden * s.n if s.hidden else s.m * s.n


def _reconstruction(s: Shape) -> int:
    """From codes to the loss and back to the codes' and the dictionary's gradients: one step."""
    products = (3 if s.learn else 2) * 2 * s.m * s.n
    elementwise = 2 * s.m + s.n  # residual, its scale; the penalty's gradient
    return s.rows * (products + elementwise) + s.learn * (ADAM + 3) * s.m * s.n


def encoder_training(s: Shape, steps: int) -> int:
    """SAE or MLP, `steps` full-batch steps of Adam."""
    forward = 2 * _weights(s) + s.hidden + s.n
    backward = 2 * _weights(s) + (2 * s.hidden * s.n + s.hidden if s.hidden else 0) + s.n
    return steps * (s.rows * (forward + backward) + _reconstruction(s) + ADAM * _weights(s))


def encoder_inference(s: Shape) -> int:
    """Codes and reconstructions of all rows."""
    return s.rows * (2 * _weights(s) + s.hidden + s.n + 2 * s.n * s.m)


def sparse_coding(s: Shape, steps: int) -> int:
    """Free codes exp(l), with the dictionary if it learns; of a dictionary that does not this is inference-time optimisation."""
    return steps * (_reconstruction(s) + s.rows * s.n * (2 + ADAM))


def lca(s: Shape, iterations: int) -> int:
    """The locally competitive algorithm in the dictionary's Gram matrix: its products, and six operations a latent and iteration."""
    gram = 2 * s.n * s.n * s.m
    return gram + s.rows * (2 * s.m * s.n + iterations * (2 * s.n * s.n + 6 * s.n))


def omp(s: Shape, k: int) -> int:
    """Orthogonal matching pursuit in the Gram matrix, k atoms a row: correlations and the choice of an atom, and the update of w chosen ones'
    inverse Gram matrix (about 6w² + 10w) and of all correlations (2wN)."""
    chosen = sum(2 * w * s.n + 6 * w * w + 10 * w for w in range(1, k + 1))
    return 2 * s.n * s.n * s.m + s.rows * (2 * s.m * s.n + k * s.n + chosen)


def papers_encoder_training(s: Shape, steps: int) -> int:
    """As published: weight updates and norms once a row."""
    product = s.m * s.n
    if s.hidden:
        layers, parameters = (s.m * s.hidden, s.hidden * s.n), s.m * s.hidden + s.hidden + s.hidden * s.n + s.n
    else:
        layers, parameters = (product,), product + s.n
    forward = 2 * sum(layers) + s.hidden + s.n + 2 * product + s.learn * product
    backward = 2 * sum(layers) + 2 * (s.hidden + s.n) + 2 * product
    return (forward + backward + 2 * parameters + 2 * s.learn * product) * s.rows * steps


def papers_sparse_coding(s: Shape, steps: int) -> int:
    """As published: of the training's loss and update, which hold all rows, once a row."""
    forward = s.n + 2 * s.m * s.n + 3 * s.learn * s.m * s.n
    step = 3 * forward + 2 * s.m * s.rows + 2 * s.n * s.rows + s.learn * s.m * s.n
    return step * s.rows * steps


def papers_optimisation(s: Shape, steps: int) -> int:
    """As published: (MN + N) + steps·(4MN + 2M + 11N) a row."""
    return s.rows * (s.m * s.n + s.n + steps * (4 * s.m * s.n + 2 * s.m + 11 * s.n))
