"""Which latents are worth a look, and which of a latent's firings are shown.

Interest of a latent = contrast × spread. Contrast: its m-th largest strength (m = 16) over its mean strength where it fires, so that it is
large where the strongest rows stand out. Spread: the share of different documents among those m rows. Latents take turns, the most
interesting of each group first: the rare, the middling and the frequent third, and in each those whose strongest rows are mostly one
token (easiest to recognise) and the others (more telling).
"""

from __future__ import annotations

from itertools import chain, zip_longest

import numpy as np

from .statistics import Strongest

FIRINGS = 4  # times m: a latent that fires less often is not looked at before the others
EVERYWHERE = 0.02  # a latent that fires on a larger share of the rows, and on twice the mean share, neither
BANDS = 5


def interest(strongest: Strongest, documents: np.ndarray | None) -> np.ndarray:
    """Every latent's interest, float64 [d_sae]; 0 where it fired on fewer than m rows.

    Args:
        documents: of `strongest.rows`, [d_sae, m]. None: the store does not tell, and contrast is all.
    """
    m = strongest.rows.shape[1]
    contrast = np.abs(strongest.values[:, -1]) / np.maximum(strongest.total / np.maximum(strongest.fired, 1), 1e-12)
    if documents is None:
        return contrast
    ordered = np.sort(documents, axis=1)
    return contrast * (1 + (np.diff(ordered, axis=1) != 0).sum(1)) / m


def interesting_latents(
    strongest: Strongest, tokens: np.ndarray | None, documents: np.ndarray | None, n: int, thirds: bool = False
) -> list[int]:
    """n latents worth a look: neither rare nor everywhere, by interest, the groups in turn; then, if they are too few, the other living ones.

    Args:
        tokens, documents: token ids and document numbers of `strongest.rows`, [d_sae, m]; None: the store does not tell.
        thirds: whether rare, middling and frequent latents take turns, too.
    """
    m = strongest.rows.shape[1]
    density = strongest.fired / max(1, strongest.n_rows)
    eligible = (strongest.rows >= 0).all(1) & (strongest.fired >= FIRINGS * m)
    eligible &= density <= max(EVERYWHERE, 2 * float(density.mean()))
    ranked = np.argsort(-interest(strongest, documents), kind="stable")
    kind = np.zeros(len(density), int) if tokens is None else _mostly_one(tokens).astype(int)
    if thirds and eligible.any():
        kind += 2 * np.searchsorted(np.quantile(density[eligible], [1 / 3, 2 / 3]), density)
    groups = [[int(i) for i in ranked if eligible[i] and kind[i] == group] for group in range(kind.max() + 1)]
    turns = [i for turn in zip_longest(*groups) for i in turn if i is not None]
    others = (int(i) for i in ranked if not eligible[i] and strongest.fired[i]) if thirds else ()
    return list(chain(turns, others))[:n]


def _mostly_one(tokens: np.ndarray) -> np.ndarray:
    """Of which rows [n, m] more than half are one token: then it stands in the middle of the sorted row and more often than m/2."""
    ordered = np.sort(tokens, axis=1)
    m = tokens.shape[1]
    return (ordered == ordered[:, m // 2, None]).sum(1) > m / 2


def first_of_each(documents: np.ndarray, n: int) -> list[int]:
    """The first n places with different documents, filled up with the next best ones, in order."""
    firsts = np.sort(np.unique(documents, return_index=True)[1]).tolist()
    rest = [p for p in range(len(documents)) if p not in firsts]
    return sorted((firsts + rest)[:n])


def bands(rows: np.ndarray, shown: set[int], each: int) -> list[list[int]]:
    """Places in a sample of rows [r], strongest first, up to `each` from each fifth of it, without the rows that are `shown` already."""
    found = []
    for places in np.array_split(np.flatnonzero(rows >= 0), BANDS):
        free = [int(p) for p in places if int(rows[p]) not in shown]
        apart = np.unique(np.linspace(0, len(free) - 1, min(each, len(free))).round().astype(int))
        found.append([free[i] for i in apart])
    return found
