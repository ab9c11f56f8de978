"""The figures of a language model that a harvest depends on, by its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ModelError

LARGEST_FIGURE = 2**31


@dataclass(frozen=True)
class ModelFacts:
    """What the configuration says: blocks, widths, longest context (None: no limit), vocabulary, dtype of the weights.

    d_attn: heads times their width, which need not be d_model. d_mlp: inside the MLP. Either is None where it does not say, or
    names one for every layer.
    """

    architecture: str
    n_layers: int
    d_model: int
    n_heads: int
    d_attn: int | None
    d_mlp: int | None
    max_context: int | None
    vocabulary: int
    dtype: torch.dtype


def model_facts(config: Any) -> ModelFacts:
    """The figures that a harvest depends on, from a transformers configuration.

    Raises:
        ModelError: one of them is missing, or no such figure.
    """
    try:
        d_model, n_heads = int(config.hidden_size), int(getattr(config, "num_attention_heads", 0) or 1)
        d_head = _width(config, ("head_dim",), d_model // n_heads)
        longest = getattr(config, "max_position_embeddings", None)
        facts = ModelFacts(
            architecture=str((config.architectures or [config.model_type])[0]),
            n_layers=int(config.num_hidden_layers),
            d_model=d_model,
            n_heads=n_heads,
            d_attn=None if d_head is None else n_heads * d_head,
            d_mlp=_width(config, ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 4 * d_model),
            max_context=None if longest is None else int(longest),
            vocabulary=int(config.vocab_size),
            dtype=config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32,
        )
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise ModelError(f"The model's config.json lacks a figure, or has one that cannot be: {error}.") from error
    counts = (facts.n_layers, facts.d_model, facts.n_heads, facts.d_attn, facts.d_mlp, facts.max_context, facts.vocabulary)
    if not all(count is None or 1 <= count < LARGEST_FIGURE for count in counts):
        raise ModelError(f"The model's config.json has a figure that cannot be: {facts}.")
    return facts


def _width(config: Any, names: tuple[str, ...], usual: int) -> int | None:
    """The first of `names` that the configuration has; `usual` where it has none, or leaves it open, as GPT-2 its n_inner."""
    try:
        found = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    except RuntimeError:  # transformers' answer where layers differ
        return None
    if found is None:
        return usual
    return found if isinstance(found, int) else None
