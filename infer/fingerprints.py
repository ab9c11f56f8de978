"""What tells one SAE, or one decoder, from another."""

from __future__ import annotations

import hashlib

from torch import Tensor

from ..sae import SAE


def sae_fingerprint(sae: SAE) -> str:
    """16 hex digits that change with any weight."""
    return _digest(*(t for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold) if t is not None))


def decoder_fingerprint(sae: SAE) -> str:
    """16 hex digits that change with any weight of the decoder, which decides what codes mean."""
    return _digest(sae.W_dec, sae.b_dec)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()[:16]
