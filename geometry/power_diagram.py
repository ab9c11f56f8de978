"""A TopK SAE's regions as a K-th-order power diagram (SplInterp, arXiv 2505.11836, Theorem 2.3).

Every latent is a generator with centre μ_i = w_i, its column of W_enc, and weight α_i = 2·b_i + ‖w_i‖². The power distance is

    D_i(x) = ‖x − μ_i‖² − α_i = ‖x‖² − 2·(w_i·x + b_i),

so that the K nearest generators are the K largest pre-activations. |z|-TopK has 2·d_sae generators: ±w_i with 2·(±b_i) + ‖w_i‖². The ReLU behind
TopK is in the diagram too: a pre-activation is positive just where D_i(x) < ‖x‖², the power distance of a generator at 0 with weight 0. With
K of these beside the latents', the latents among the K nearest generators are the active set, also where fewer than K are active.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SAEError
from ..sae import SAE, Codes, SparseCodes, to_dense
from ..sae.model import WITH_K

EPSILON_32, EPSILON_64 = 2.0**-24, 2.0**-53
# A sum of d rounded products is off by about √d·ε of ‖x‖·‖w‖ (worst case: d·ε): taken four times.
ROUNDINGS = 4.0


class Generators(NamedTuple):
    """An SAE's pre-activations as affine functions x·directionsᵀ + offsets, in float64; of |z|-TopK those of w_i and then those of −w_i.

    Active are the positive ones; with a `k` at most the k largest. Of JumpReLU the thresholds are taken from the offsets (below 0 they have
    no effect beside its ReLU).

    Attributes:
        directions: [G, d_in]. offsets: [G]. k: of topk and abstopk.
        rounding: [G, 2]; the float32 encoder's pre-activations of a row are within rounding·(‖x‖, 1) of the exact ones.
    """

    directions: Tensor
    offsets: Tensor
    k: int | None
    rounding: Tensor

    def pre_activations(self, x: Tensor) -> Tensor:
        """Rows [N, d_in] -> [N, G], float64."""
        return torch.addmm(self.offsets, x.double(), self.directions.T)

    def tolerance(self, x: Tensor) -> Tensor:
        """How far float32 may be off in the pre-activations of rows [N, d_in]: [N, G]."""
        return x.double().norm(dim=1, keepdim=True) * self.rounding[:, 0] + self.rounding[:, 1]

    def active(self, x: Tensor) -> Tensor:
        """Which are active on rows [N, d_in], in float64: bool [N, G]."""
        return _largest_positive(self.pre_activations(x), self.k)


def generators(sae: SAE) -> Generators:
    """The generators of an SAE of any architecture; what the decoder does in encoding is folded in, in float64."""
    plain = sae.to(dtype=torch.float64).plain()
    w, b = plain.W_enc.T.contiguous(), plain.b_enc
    size, shift = w.norm(dim=1), sae.b_dec.double().norm() if sae.config.apply_b_dec_to_input else 0.0
    unit = ROUNDINGS * sae.config.d_in**0.5 * EPSILON_32
    rounding = unit * torch.stack([size, size * shift + b.abs()], 1)
    if sae.config.architecture == "abstopk":
        w, b, rounding = torch.cat([w, -w]), torch.cat([b, -b]), torch.cat([rounding, rounding])
    if plain.threshold is not None:
        b = b - plain.threshold.clamp(min=0)
    return Generators(w, b, sae.config.k if sae.config.architecture in WITH_K else None, rounding)


def active_generators(sae: SAE, codes: Codes) -> Tensor:
    """Which of `generators` are active by an SAE's codes of N rows: bool [N, G]. Top-k entries that the ReLU made zero are not."""
    if sae.config.architecture != "abstopk":
        return to_dense(codes, sae.config.d_sae) != 0
    assert isinstance(codes, SparseCodes)
    dense = to_dense(codes, sae.config.d_sae)
    return torch.cat([dense > 0, dense < 0], 1)


@dataclass(frozen=True)
class PowerDiagram:
    """A power diagram of order k: float64 centres [G, d_in], weights [G]."""

    centres: Tensor
    weights: Tensor
    k: int

    @classmethod
    def of(cls, sae: SAE) -> PowerDiagram:
        """The diagram of a topk or abstopk SAE.

        Raises:
            SAEError: another architecture; ReLU and JumpReLU see `polyhedral`.
        """
        w, b, k, _ = generators(sae)
        if k is None:
            raise SAEError(f"The regions of architecture '{sae.config.architecture}' are no diagram of a fixed order.")
        return cls(w, 2 * b + w.square().sum(1), k)

    def distances(self, x: Tensor) -> Tensor:
        """Power distances ‖x − μ_i‖² − α_i of rows [N, d_in]: float64 [N, G].

        From the differences x − μ_i, not from products x·w_i: nothing here could be right only because an encoder was computed.
        """
        return power_distances(x, self.centres, self.weights)

    def active(self, distances: Tensor, x: Tensor) -> Tensor:
        """The latents' generators among the k nearest, k generators at 0 with weight 0 beside them: bool [N, G]."""
        return _largest_positive(x.double().square().sum(1, keepdim=True) - distances, self.k)


def power_distances(x: Tensor, centres: Tensor, weights: Tensor) -> Tensor:
    """‖x − μ_i‖² − α_i from the differences, rows [N, d_in] and centres [G, d_in]: float64 [N, G]."""
    return torch.cdist(x.double(), centres, compute_mode="donot_use_mm_for_euclid_dist").square_().sub_(weights)


def _largest_positive(values: Tensor, k: int | None) -> Tensor:
    """Where the k largest of each row [N, G] are (None: all), if positive."""
    if k is None:
        return values > 0
    largest = values.topk(k, dim=1, sorted=False)
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, largest.indices, largest.values > 0)


class Conditions(NamedTuple):
    """What Theorem 2.3 asks of the generators: how many break it.

    Attributes:
        zero_centres: latents with w_i = 0, whose pre-activation is the same everywhere.
        duplicate_centres: generators with a centre that an earlier one has; between the two there is no border.
        duplicate_generators: of these, with the same weight too: always tied with it.
    """

    zero_centres: int
    duplicate_centres: int
    duplicate_generators: int


def conditions(sae: SAE) -> Conditions:
    """Count zero and duplicate generators, by their exact float32 weights; of abstopk ±w_i both."""
    w, b = (sae.plain().W_enc.T + 0.0).cpu(), (sae.plain().b_enc + 0.0).cpu()  # + 0.0: there is but one zero
    if sae.config.architecture == "abstopk":
        w, b = torch.cat([w, 0.0 - w]), torch.cat([b, 0.0 - b])
    zero = int((w[: sae.config.d_sae] == 0).all(1).sum())
    rows, offsets = w.contiguous().numpy(), b.numpy()
    centres = {row.tobytes() for row in rows}
    whole = {row.tobytes() + offset.tobytes() for row, offset in zip(rows, offsets, strict=True)}
    return Conditions(zero, len(rows) - len(centres), len(rows) - len(whole))
