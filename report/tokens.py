"""The tokens that a latent's decoder row raises and lowers in the logits, where there is a model to ask."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import SplinterpError
from ..sae import SAE
from ..store import Store

if TYPE_CHECKING:
    from ..harvest.unembedding import Unembedding

TOKENS = 8
# Sites whose rows are the residual stream, or are added to it.
RESIDUAL = re.compile(r"hook_(resid_(pre|mid|post)|attn_out|mlp_out|embed)$")

Effects = list[tuple[str, float]]


def unembedding_of(model: str | None, sae: SAE, store: Store, site: str) -> tuple[Unembedding | None, str]:
    """The end of the model that the rows come from, or None; and a sentence on what its figures mean, or why there are none.

    Args:
        model: as the user names it; None: the model that the store (or else the SAE) was made with, if it is `tiny` or a local directory.

    Raises:
        ModelError: it cannot be loaded. SplinterpError: its residual stream has another width than the SAE's rows.
    """
    from ..harvest.config import EMBEDDED
    from ..harvest.unembedding import load_unembedding

    if not RESIDUAL.search(site):
        return None, f"Tokens are not shown: {site} is no part of the residual stream, which alone is unembedded."
    recorded = store.attributes.get("model") or sae.config.metadata.get("model_name")
    name = model or recorded
    if not isinstance(name, str):
        return None, "Tokens are not shown: nothing says which model the rows come from; name it with --model."
    if not model and name != EMBEDDED and not (Path(name) / "config.json").is_file():
        return None, f"Tokens are not shown: {name} is no local model; with --model {name} it is looked for on the hub."
    found = load_unembedding(name, store.attributes.get("revision") if name == recorded else None)
    if found.d_model != sae.config.d_in:
        raise SplinterpError(
            f"The residual stream of {name} is {found.d_model} wide and the SAE's rows {sae.config.d_in}; give the model that was harvested."
        )
    norm = "its final norm (γ and, of a LayerNorm, the subtraction of the mean)" if found.norm is not None else "no norm"
    return found, (
        f"Tokens: the decoder row through {norm} and the unembedding of {name}, in standard deviations over the vocabulary. An approximation: "
        "of the direct path alone. Blocks after the site are left out, and so is the norm's division by its row's size, and any cap of the logits."
    )


def token_effects(found: Unembedding, sae: SAE, latents: list[int]) -> list[tuple[Effects, Effects]]:
    """For each latent the tokens that it raises most and lowers most, with their effects, strongest first."""
    told = []
    for some in torch.tensor(latents, dtype=torch.int64).split(64):
        effects = found.effects(sae.W_dec[some.to(sae.W_dec.device)].cpu())
        ends = [effects.topk(min(TOKENS, effects.shape[1]), largest=largest) for largest in (True, False)]
        texts = [[found.texts(row) for row in end.indices.tolist()] for end in ends]
        values = [end.values.tolist() for end in ends]
        told += [tuple(list(zip(texts[side][i], values[side][i], strict=True)) for side in (0, 1)) for i in range(len(some))]
    return told
