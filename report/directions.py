"""A dictionary's directions: the norms of the decoder's rows, how alike they are, and how the encoder's columns lie to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..sae import SAE

MOST_ELEMENTS = 2**23  # of a block of cosines
NEIGHBOURS = 5


@dataclass(frozen=True)
class Directions:
    """What `directions` finds.

    Attributes:
        norms: of the decoder's rows, float32 [d_sae].
        nearest, cosines: [d_sae, n], for each latent those others whose decoder rows have the largest cosines to its own, largest first; cosine
            0 to and of a row that is all zeros.
        encoder: cosine between each latent's encoder column and decoder row, [d_sae].
    """

    norms: np.ndarray
    nearest: np.ndarray
    cosines: np.ndarray
    encoder: np.ndarray


@torch.inference_mode()
def directions(sae: SAE, n: int = NEIGHBOURS, progress: Callable[[int], None] | None = None) -> Directions:
    """Norms, and the n nearest latents by cosine, in blocks of rows: d_sae²·d_in multiplications, and 32 MiB of cosines at a time.

    Norms are those of what codes are multiplied by, where the SAE divides its decoder by their norms (`SAE.plain`).
    """
    sae = sae.plain()
    (unit, norms), d = _unit(sae.W_dec), sae.config.d_sae
    n, step = min(n, d - 1), max(1, MOST_ELEMENTS // d)
    nearest, cosines = np.zeros((d, n), np.int64), np.zeros((d, n), np.float32)
    for a in range(0, d, step):
        block = unit[a : a + step] @ unit.T
        block.diagonal(a).fill_(-2.0)  # a latent is not its own neighbour
        values, indices = block.topk(n, dim=1)
        nearest[a : a + step], cosines[a : a + step] = indices.cpu().numpy(), values.clamp(-1, 1).cpu().numpy()
        if progress:
            progress(min(a + step, d))
    encoder = (_unit(sae.W_enc.T)[0] * unit).sum(1).clamp(-1, 1)
    return Directions(norms.cpu().numpy(), nearest, cosines, encoder.cpu().numpy())


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, d] at unit norm, those of zeros as they are, and their norms [N]; of numbers of any size, whose squares may be none in float32."""
    largest = rows.abs().amax(1)
    scaled = rows / torch.where(largest > 0, largest, 1)[:, None]
    norms = scaled.norm(dim=1)
    return scaled / torch.where(norms > 0, norms, 1)[:, None], norms * largest
