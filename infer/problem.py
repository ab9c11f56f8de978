"""What sparse inference is given: a dictionary, and where to stop.

Solvers work on unit-norm atoms a_i = W_i/‖W_i‖ and rows y = x − b_dec, so that a value u_i = z_i·‖W_i‖ is the size of the latent's
contribution, whatever the gauge of the dictionary; codes are handed back as z, with x̂ = z·W_dec + b_dec. An atom of no length is never
chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import SAEError, SplinterpError
from ..sae import SAE, Codes, RaggedCodes, SparseCodes

# Bytes up to which the Gram matrix of the atoms is held: 16,384 latents in float32, 11,585 in float64. Beyond, what it would give is taken from the
# atoms.
GRAM_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Atoms and bias: x ≈ z·W_dec + b_dec. What solvers need of them is computed once.

    Attributes:
        W_dec: [d_sae, d_in], rows of any norm that the dtype has. b_dec: [d_in]. Both float32, or both float64, on one device.
        gram_bytes: up to which the Gram matrix is held; 0: never.

    Raises:
        SAEError: shapes, dtypes or devices that do not go together, or values or norms that are not finite.
    """

    W_dec: Tensor
    b_dec: Tensor
    gram_bytes: int = GRAM_BYTES

    def __post_init__(self) -> None:
        W_dec, b_dec = self.W_dec, self.b_dec
        if W_dec.ndim != 2 or not W_dec.numel() or b_dec.shape != W_dec.shape[1:]:
            raise SAEError(
                f"A dictionary is W_dec [d_sae, d_in] and b_dec [d_in]; got {tuple(W_dec.shape)} and {tuple(b_dec.shape)}."
            )
        if W_dec.dtype not in (torch.float32, torch.float64) or (W_dec.dtype, W_dec.device) != (b_dec.dtype, b_dec.device):
            raise SAEError(
                f"A dictionary is float32 or float64, on one device; got {W_dec.dtype} on {W_dec.device} and {b_dec.dtype} on {b_dec.device}."
            )
        if not (self.norms.isfinite().all() and b_dec.isfinite().all()):
            raise SAEError(
                "The dictionary has values or norms that are not finite; the SAE's file is damaged, or its training diverged."
            )

    @staticmethod
    def of(sae: SAE) -> Dictionary:
        """The decoder of an SAE, with the norms that its codes are for; half precision becomes float32."""
        sae = sae.plain()
        dtype = torch.float64 if sae.W_dec.dtype is torch.float64 else torch.float32
        return Dictionary(sae.W_dec.detach().to(dtype).contiguous(), sae.b_dec.detach().to(dtype))

    def to(self, dtype: torch.dtype) -> Dictionary:
        """The same dictionary in float32 or float64; itself where it is that already."""
        return self if dtype is self.W_dec.dtype else replace(self, W_dec=self.W_dec.to(dtype), b_dec=self.b_dec.to(dtype))

    @property
    def d_sae(self) -> int:
        """Number of atoms."""
        return len(self.W_dec)

    @property
    def d_in(self) -> int:
        """Width of the rows."""
        return self.W_dec.shape[1]

    @cached_property
    def norms(self) -> Tensor:
        """‖W_i‖, [d_sae]."""
        largest, scaled = self._scaled()
        return largest * scaled.norm(dim=1)

    @cached_property
    def atoms(self) -> Tensor:
        """W_i/‖W_i‖, [d_sae, d_in]; zeros where that has no length."""
        _, scaled = self._scaled()
        return scaled / _or_infinite(scaled.norm(dim=1))[:, None]

    @cached_property
    def gram(self) -> Tensor | None:
        """⟨a_i, a_j⟩, [d_sae, d_sae]; None where it would take more than `gram_bytes`."""
        if self.d_sae**2 * self.W_dec.element_size() > self.gram_bytes:
            return None
        return self.atoms @ self.atoms.T

    @cached_property
    def lipschitz(self) -> float:
        """An upper bound of the largest eigenvalue of the Gram matrix, within 1e-6 of it; 1 of a dictionary of zeros."""
        small = self.atoms.T @ self.atoms if self.d_in <= self.d_sae else self.atoms @ self.atoms.T
        return float(torch.linalg.eigvalsh(small.double())[-1]) * (1 + 1e-6) or 1.0

    def _scaled(self) -> tuple[Tensor, Tensor]:
        """The largest magnitude of each row [d_sae], and the rows in units of it, whose squares neither overflow nor vanish."""
        largest = torch.linalg.vector_norm(self.W_dec, torch.inf, dim=1)
        return largest, self.W_dec / torch.where(largest > 0, largest, 1.0)[:, None]

    def sizes(self, codes: Codes) -> Codes:
        """Values z as sizes of contributions, u = z·‖W‖."""
        if isinstance(codes, SparseCodes | RaggedCodes):
            return codes._replace(values=codes.values * self.norms[codes.indices])
        return codes * self.norms

    def values(self, codes: Codes) -> Codes:
        """Sizes u as values z = u/‖W‖; zero at an atom of no length."""
        norms = _or_infinite(self.norms)  # not by their inverses, which overflow before they do
        if isinstance(codes, SparseCodes | RaggedCodes):
            return codes._replace(values=codes.values / norms[codes.indices])
        return codes / norms


def _or_infinite(norms: Tensor) -> Tensor:
    """To divide by: nothing over no length is nothing."""
    return torch.where(norms > 0, norms, torch.inf)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What codes to look for. Which fields a method takes is in `METHODS`; a field that it does not take is refused.

    Attributes:
        k: greedy methods choose at most so many atoms a row.
        residual: they stop earlier where ‖x − x̂‖ ≤ residual·‖x − b_dec‖.
        l1: λ. ista, fista, cd and lca minimise ½‖x − x̂‖² + λ·Σ|z_i|·‖W_i‖ for each row, the same problem in every gauge; scikit-learn's Lasso
            on unit-norm atoms without intercept does for alpha = λ/d_in. ito minimises MSE + λ·mean(|z_i|·‖W_i‖) as arXiv 2411.13117 writes
            it (means over d_in and over d_sae), which is 2/d_in of the former with λ·d_in/(2·d_sae) in λ's place.
        signed: whether values may be negative.
        steps: iterations at most, of methods that iterate.
        rate: of ito Adam's learning rate, of lca the step dt/τ.

    Raises:
        SplinterpError: a value that cannot be.
    """

    k: int | None = None
    l1: float | None = None
    residual: float | None = None
    signed: bool = False
    steps: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("number of steps", self.steps)):
            if value is not None and value < 1:
                raise SplinterpError(f"The {name} of sparse inference must be at least 1, not {value}.")
        if self.l1 is not None and not 0 <= self.l1 < float("inf"):
            raise SplinterpError(f"The penalty λ of sparse inference must be finite and not negative, not {self.l1}.")
        if self.residual is not None and not 0 <= self.residual < 1:
            raise SplinterpError(f"Sparse inference can stop at a relative residual from 0 to below 1, not at {self.residual}.")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise SplinterpError(f"The rate of sparse inference must be above 0, not {self.rate}.")
