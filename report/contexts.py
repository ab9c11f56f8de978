"""The contexts in which latents fire most: one pass over a store with bounded memory, then a look at the contexts' tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch

from ..errors import StoreError
from ..sae import SAE, Codes, RaggedCodes, SparseCodes, entry_rows
from ..store import Store

BATCH = 8192


@dataclass(frozen=True)
class Strongest:
    """Every latent's strongest rows in a store, and how often it fires.

    Attributes:
        values, rows: [d_sae, m], largest first; where a latent fired less than m times the rest have value 0 and row -1.
        fired: on how many rows each latent fired, [d_sae]. total: the sum of its values on them, [d_sae]. n_rows: rows seen.
    """

    values: np.ndarray
    rows: np.ndarray
    fired: np.ndarray
    total: np.ndarray
    n_rows: int


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


@torch.inference_mode()
def strongest_rows(sae: SAE, store: Store, site: str, m: int = 16, progress: Callable[[int], None] | None = None) -> Strongest:
    """One pass over the site's rows, in the store's order; memory is d_sae·m whatever the number of rows."""
    d = sae.config.d_sae
    values, rows = np.zeros((d, m), np.float32), np.full((d, m), -1, np.int64)
    fired, total = np.zeros(d, np.int64), np.zeros(d)
    start = 0
    for x in store.batches(site, BATCH, split="all", shuffle=False):
        codes = sae.encode(x.to(sae.W_enc.device, torch.float32, copy=True))
        latent, value, row = _entries(codes, start)
        fired += np.bincount(latent, minlength=d)
        total += np.bincount(latent, weights=value, minlength=d)
        worth = value > values[latent, -1]  # weaker ones than a latent's m-th cannot enter
        _insert(values, rows, latent[worth], value[worth], row[worth])
        start += len(x)
        if progress:
            progress(start)
    return Strongest(values, rows, fired, total, start)


def _entries(codes: Codes, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All codes above zero as (latent, value, row)."""
    if isinstance(codes, SparseCodes):
        row, column = (codes.values > 0).nonzero(as_tuple=True)
        latent, value = codes.indices[row, column], codes.values[row, column]
    elif isinstance(codes, RaggedCodes):
        above = codes.values > 0
        row, latent, value = entry_rows(codes)[above], codes.indices[above], codes.values[above]
    else:
        row, latent = (codes > 0).nonzero(as_tuple=True)
        value = codes[row, latent]
    return latent.cpu().numpy(), value.cpu().numpy(), row.cpu().numpy() + start


def _insert(values: np.ndarray, rows: np.ndarray, latent: np.ndarray, value: np.ndarray, row: np.ndarray) -> None:
    """Merge new entries into the tables of the m strongest a latent, in place."""
    m = values.shape[1]
    touched = np.unique(latent)
    latent = np.concatenate([np.repeat(touched, m), latent])
    value = np.concatenate([values[touched].ravel(), value])
    row = np.concatenate([rows[touched].ravel(), row])
    order = np.lexsort((row, -value, latent))
    latent, value, row = latent[order], value[order], row[order]
    rank = np.arange(len(latent)) - np.searchsorted(latent, latent)  # place within its latent
    kept = rank < m
    values[latent[kept], rank[kept]], rows[latent[kept], rank[kept]] = value[kept], row[kept]


def interesting_latents(strongest: Strongest, tokens: np.ndarray, documents: np.ndarray, n: int) -> list[int]:
    """n latents worth a look: neither rare nor everywhere, strong where they are strongest, and in many documents.

    They are ranked by (m-th value / mean value) · (share of different documents); then latents whose strongest rows are mostly one token and
    latents of several tokens take turns, because the first are the easiest to recognise and the second the more telling.

    Args:
        tokens, documents: token ids and document numbers of `strongest.rows`, [d_sae, m].
    """
    m = strongest.rows.shape[1]
    density = strongest.fired / max(1, strongest.n_rows)
    eligible = (strongest.rows >= 0).all(1) & (strongest.fired >= 4 * m) & (density <= max(0.02, 2 * float(density.mean())))
    stands_out = strongest.values[:, -1] / np.maximum(strongest.total / np.maximum(strongest.fired, 1), 1e-12)
    spread = np.array([len(np.unique(row)) for row in documents]) / m
    ranked = [int(i) for i in np.argsort(-stands_out * spread, kind="stable") if eligible[i]]
    one_token = np.array([np.unique(row, return_counts=True)[1].max() for row in tokens]) > m / 2
    groups = [[i for i in ranked if one_token[i] == alike] for alike in (False, True)]
    turns = [i for pair in zip_longest(*groups) for i in pair if i is not None]
    return turns[:n]


def top_contexts(
    sae: SAE,
    store: Store,
    site: str,
    n_latents: int = 8,
    per_latent: int = 4,
    width: int = 12,
    progress: Callable[[int], None] | None = None,
) -> list[LatentContexts]:
    """The strongest contexts of the most interesting latents, each from another document where there are enough, `width` tokens on
    either side, the activating token apart.

    Raises:
        StoreError: the store holds no tokens (it was imported, not harvested).
    """
    tokenizer = load_tokenizer(store)
    strongest = strongest_rows(sae, store, site, progress=progress)
    flat = strongest.rows.clip(0).ravel()
    tokens, documents = (_at(store, name, flat).reshape(strongest.rows.shape) for name in ("token_id", "document"))
    latents = interesting_latents(strongest, tokens, documents, n_latents)
    places = [_first_of_each(documents[latent], per_latent) for latent in latents]
    texts = iter(
        _texts(
            store, tokenizer, np.array([strongest.rows[i, p] for i, ps in zip(latents, places, strict=True) for p in ps]), width
        )
    )
    found = []
    for latent, chosen in zip(latents, places, strict=True):
        contexts = [Context(*next(texts), value=float(strongest.values[latent, p])) for p in chosen]
        found.append(LatentContexts(latent, float(strongest.fired[latent]) / strongest.n_rows, contexts))
    return found


def _first_of_each(documents: np.ndarray, n: int) -> list[int]:
    """The first n places with different documents, filled up with the next best ones, in order."""
    firsts = np.sort(np.unique(documents, return_index=True)[1]).tolist()
    rest = [p for p in range(len(documents)) if p not in firsts]
    return sorted((firsts + rest)[:n])


def load_tokenizer(store: Store):
    """The tokenizer that was saved with a harvested store (a `tokenizers.Tokenizer`)."""
    from tokenizers import Tokenizer

    file = store.local("tokenizer") / "tokenizer.json"
    if "token_id" not in store.columns or not file.is_file():
        raise StoreError(
            f"{store.path} holds no tokens, so that its rows cannot be led back to text; it was imported, not harvested."
        )
    return Tokenizer.from_file(str(file))


def _at(store: Store, column: str, rows: np.ndarray) -> np.ndarray:
    """A column's values at some rows, chunk by chunk."""
    values = np.empty(len(rows), np.int64)
    chunk = rows // store.chunk_rows
    for c in np.unique(chunk):
        a = int(c) * store.chunk_rows
        here = chunk == c
        values[here] = store.column(column, a, min(a + store.chunk_rows, store.rows))[rows[here] - a]
    return values


def _texts(store: Store, tokenizer, rows: np.ndarray, width: int) -> list[tuple[str, str, str]]:
    """(before, token, after) for each row: the tokens of the same packed sequence within `width` of it, as text."""
    sequence, position = _at(store, "sequence", rows), _at(store, "position", rows)
    neighbours: dict[int, dict[int, int]] = {int(s): {} for s in sequence}
    wanted = np.unique(sequence)
    for a in range(0, store.rows, store.chunk_rows):
        b = min(a + store.chunk_rows, store.rows)
        s = store.column("sequence", a, b)
        here = np.flatnonzero(np.isin(s, wanted))
        p, t = store.column("position", a, b)[here], store.column("token_id", a, b)[here]
        for one, place, token in zip(s[here].tolist(), p.tolist(), t.tolist(), strict=True):
            neighbours[one][place] = token
    texts = []
    for s, p in zip(sequence.tolist(), position.tolist(), strict=True):
        around = neighbours[s]
        before = [around[q] for q in range(p - width, p) if q in around]
        after = [around[q] for q in range(p + 1, p + 1 + width) if q in around]
        texts.append((tokenizer.decode(before), tokenizer.decode([around[p]]), tokenizer.decode(after)))
    return texts
