"""What the methods of sparse inference cost: multiplications and additions, two to a multiply-add, for one row.

Counted are products and, of element-wise work, arithmetic; comparisons in a search for the largest count as one each. What a dictionary costs
once, its Gram matrix, is not among them.
"""

from __future__ import annotations

from ..errors import SplinterpError
from .methods import METHODS
from .problem import Target


def flops_per_row(
    name: str, d_sae: int, d_in: int, target: Target, *, support: int | None = None, steps: int | None = None
) -> int:
    """Floating-point operations of one row of d_in values in a dictionary of d_sae atoms.

    Args:
        support: atoms that the row ends with; ls needs it, greedy methods take k if it is left out (without k, d_in).
        steps: iterations taken where a method iterates; its target's or its own largest number if left out, so that this is an upper bound.

    Raises:
        SplinterpError: no such method, or ls without a support.
    """
    if name not in METHODS:
        raise SplinterpError(f"There is no method '{name}' of sparse inference; there are {', '.join(METHODS)}.")
    product, k = 2 * d_sae * d_in, support or target.k or min(d_in, d_sae)
    iterations = steps or target.steps or METHODS[name].steps
    gathered = sum(2 * w * d_sae for w in range(1, k))  # Σ u_j·G_j over the chosen atoms, step after step
    # K·g, sᵀ, the update of K, and that of u: for each size w of the support.
    fitting = sum(4 * w * w + 6 * w for w in range(1, k + 1))
    match name:
        case "ista":
            return product + iterations * (2 * product + 5 * d_sae + d_in)
        case "fista":
            return product + iterations * (2 * product + 12 * d_sae + d_in)
        case "lca":
            return product + iterations * (2 * product + 6 * d_sae + d_in)
        case "cd":
            return 2 * product + iterations * (8 * d_sae)
        case "mp":
            return product + k * (4 * d_sae)
        case "omp":
            return product + gathered + k * 2 * d_sae + fitting + 4 * k * k
        case "gradient-pursuit":
            return product + gathered + 2 * k * d_sae + k * 4 * d_sae
        case "ito":
            return iterations * (2 * product + 15 * d_sae + 3 * d_in)
        case _:
            if support is None:
                raise SplinterpError("The cost of least squares depends on the support; give its size.")
            return product + sum(2 * k * k + 2 * k for _ in range(k)) + fitting + 4 * k * k
