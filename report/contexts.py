"""The contexts in which latents fire most, for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..sae import SAE
from ..store import Store
from .choose import first_of_each, interesting_latents
from .pieces import pieces
from .statistics import LatentStatistics, accumulate
from .windows import column_at, load_tokenizer, windows_at


@dataclass(frozen=True)
class Context:
    """One firing: the token before which and on which a latent fired, and the tokens around, as text."""

    before: str
    token: str
    after: str
    value: float


@dataclass(frozen=True)
class LatentContexts:
    """A latent, the share of rows it fires on, and its strongest contexts."""

    latent: int
    density: float
    contexts: list[Context]


def top_contexts(
    sae: SAE,
    store: Store,
    site: str,
    n_latents: int = 8,
    per_latent: int = 4,
    width: int = 12,
    progress: Callable[[int], None] | None = None,
    statistics: LatentStatistics | None = None,
) -> list[LatentContexts]:
    """The strongest contexts of the most interesting latents, each from another document where there are enough, `width` tokens on
    either side, the activating token apart.

    Args:
        statistics: of this SAE on this site, where they are known; otherwise they are taken here, in one pass over the store.

    Raises:
        StoreError: the store holds no tokens (it was imported, not harvested).
    """
    tokenizer = load_tokenizer(store)
    strongest = (statistics or accumulate(sae, store, site, progress=progress)).strongest
    flat = strongest.rows.clip(0).ravel()
    tokens, documents = (column_at(store, name, flat).reshape(strongest.rows.shape) for name in ("token_id", "document"))
    latents = interesting_latents(strongest, tokens, documents, n_latents)
    chosen = [(latent, place) for latent in latents for place in first_of_each(documents[latent], per_latent)]
    around = windows_at(store, np.array([strongest.rows[one] for one in chosen], np.int64), width).tokens
    contexts: dict[int, list[Context]] = {latent: [] for latent in latents}
    for (latent, place), tokens_here in zip(chosen, around, strict=True):
        texts = [text or "" for text in pieces(tokenizer, tokens_here)]
        value = float(strongest.values[latent, place])
        contexts[latent].append(Context("".join(texts[:width]), texts[width], "".join(texts[width + 1 :]), value))
    return [LatentContexts(i, float(strongest.fired[i]) / strongest.n_rows, contexts[i]) for i in latents]
