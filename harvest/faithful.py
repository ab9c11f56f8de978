"""Whether a TransformerLens bridge computes what Hugging Face's own model does."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from ..errors import ModelError

TOKENS = 16
# Relative differences of logits. The same sums in another order stay far below; an attention put together wrongly does not.
LARGEST = {torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.03}


@torch.inference_mode()
def sample_logits(model: Any, vocabulary: int, **options: Any) -> torch.Tensor:
    """Logits [1, 16, vocabulary] of a model, or of a bridge, for a few tokens; options: of its `forward`."""
    where = next(model.parameters()).device
    ids = (torch.arange(TOKENS, device=where) * 7919 + 11) % vocabulary
    given = model(ids[None], use_cache=False, **options)
    return (given if isinstance(given, torch.Tensor) else given.logits).float()


def check_faithful(name: str, expected: torch.Tensor, found: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises ModelError unless the bridge of the model `name` gives the logits `found` that its own code `expected`.

    TransformerLens rebuilds attention and norms from a description of each architecture; for Cohere, 3.9 gets the rotation of
    positions wrong and says nothing. Logits that are not finite (a float16 model that overflows) settle nothing here.
    """
    if not bool(expected.isfinite().all()):
        return
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= LARGEST[dtype]:
        raise ModelError(
            f"TransformerLens {version('transformer-lens')} does not compute what the model {name} does (its logits differ by "
            f"{difference:.1%}), so its rows would be wrong; try another version of TransformerLens, or harvest another model."
        )
