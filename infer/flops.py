"""What the methods of sparse inference cost: multiplications and additions, two to a multiply-add, for one row.

Counted are products and, of element-wise work, arithmetic; comparisons in a search for the largest count as one each. What a dictionary costs
once, its Gram matrix, is not among them; of a dictionary in float32 it is there up to GRAM_BYTES, and where its rows are not summed the dense product counts.
Products with few sizes that are not zero count as dense, though on a CPU they take less.
"""

from __future__ import annotations

from ..errors import SplinterpError
from .correlate import by_gram
from .lasso import EVERY, EVERY_COORDINATE
from .methods import METHODS
from .problem import GRAM_BYTES, Target


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
    has_gram = 4 * d_sae**2 <= GRAM_BYTES

    def of(w: int) -> int:
        """Correlations of Σ u_j·a_j over w atoms."""
        return 2 * w * d_sae if has_gram and by_gram(w, d_sae, d_in) else 2 * w * d_in + product

    # ⟨a_i, a_j⟩ with a new atom, without the Gram matrix; and what an error costs, which OMP looks at in the end.
    between = 0 if has_gram else sum(2 * w * d_in for w in range(1, k))
    error = 2 * k * d_in + 3 * d_in
    gap = 9 * d_sae
    looks = -(-iterations // EVERY)
    # K·g, sᵀ, the update of K, and that of u: for each size w of the support.
    fitting = sum(4 * w * w + 6 * w for w in range(1, k + 1))
    match name:
        case "ista":
            return product + iterations * (2 * product + 5 * d_sae + d_in) + looks * (2 * product + d_in + gap)
        case "fista":
            return product + iterations * (2 * product + 12 * d_sae + d_in) + looks * (2 * product + d_in + gap)
        case "lca":
            return product + iterations * (2 * product + 6 * d_sae + d_in) + looks * (2 * product + d_in + gap)
        case "cd":
            return 3 * product + d_in + iterations * (6 * d_sae + of(1)) + -(-iterations // EVERY_COORDINATE) * gap
        case "mp":
            return product + k * (2 * d_sae + of(1))
        case "omp":
            after = sum(of(w) + d_sae for w in range(1, k + 1))
            return product + after + k * d_sae + between + fitting + 2 * k * k + error
        case "gradient-pursuit":
            return product + sum(map(of, range(1, k + 1))) + k * 4 * d_sae
        case "ito":
            return iterations * (2 * product + 15 * d_sae + 3 * d_in)
        case _:
            if support is None:
                raise SplinterpError("The cost of least squares depends on the support; give its size.")
            grams = 0 if has_gram else 2 * k * k * d_in
            return product + grams + (k + 2) * (2 * k * k + k) + k * k + fitting + 2 * k * k
