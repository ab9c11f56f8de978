"""The regions of ReLU and JumpReLU SAEs: polyhedra, and a power diagram with one generator a cell (SplInterp's open question 1).

A region is a cell of the arrangement of hyperplanes w_i·x + b_i = θ_i (ReLU: θ = 0; JumpReLU: its threshold, or 0 if that is negative), the
intersection of one half-space a latent. What holds:

- The cells of every such arrangement with w_i ≠ 0 are the cells of an ordinary (first-order) power diagram. f(x) = Σ_i relu(w_i·x + b_i − θ_i) is
  convex and piecewise linear, f(x) = max_S Σ_{i∈S} (w_i·x + b_i − θ_i) over all sets S, and the maximum is at S = the active set. So with

      μ_S = Σ_{i∈S} w_i ,   α_S = ‖μ_S‖² + 2·Σ_{i∈S} (b_i − θ_i) ,   ‖x − μ_S‖² − α_S = ‖x‖² − 2·Σ_{i∈S} (w_i·x + b_i − θ_i)

  the nearest generator is that of the row's own cell. Two cells never share a generator: f has a kink on every hyperplane between them. General
  position is not needed.

What does not hold:

- The latents' own d_sae generators (Theorem 2.3's) give no such diagram, of whatever order: a diagram of order K has K active everywhere, ReLU any number.
  It takes as many generators as there are cells, up to Σ_{j≤d_in} C(d_sae, j).
- The diagram is one of the regions, not of the map. x̂ is not the gradient of f, nor in general of any convex function: its slopes
  W_enc[S]·W_dec[S] need be neither symmetric nor positive (with W_dec = W_encᵀ they are both). With JumpReLU x̂ is not even continuous: at latent i's
  border it jumps by θ_i·W_dec[i].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SAEError
from ..sae import SAE
from .power_diagram import Generators, generators


class HalfSpaces(NamedTuple):
    """The polyhedron {x : normals·x + offsets > 0}; float64 [G, d_in], [G]. Its border belongs to it where a latent is inactive."""

    normals: Tensor
    offsets: Tensor

    def contain(self, x: Tensor) -> Tensor:
        """Which of rows [N, d_in] lie inside: bool [N]."""
        return (torch.addmm(self.offsets, x.double(), self.normals.T) > 0).all(1)


def half_spaces(sae: SAE, x: Tensor) -> HalfSpaces:
    """The region of a row x [d_in] of a standard or jumprelu SAE.

    Raises:
        SAEError: another architecture, whose regions have a half-space for each pair of latents.
    """
    own = generators(sae)
    if own.k is not None:
        raise SAEError(f"The regions of architecture '{sae.config.architecture}' are a power diagram's; see `PowerDiagram`.")
    signs = own.active(x[None])[0].double() * 2 - 1
    return HalfSpaces(signs[:, None] * own.directions, signs * own.offsets)


def arrangement_generators(own: Generators, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Centres μ_S [M, d_in] and weights α_S [M] of cells, given by their active sets, bool [M, G]; float64."""
    members = cells.to(torch.float64)
    centres = members @ own.directions
    return centres, centres.square().sum(1) + 2 * (members @ own.offsets)
