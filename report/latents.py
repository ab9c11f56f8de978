"""What the report shows of single latents: figures, neighbours, and contexts with the latent's code at every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import SplinterpError
from ..sae import SAE
from ..store import Store
from .choose import bands, first_of_each, interest, interesting_latents
from .directions import Directions
from .pieces import pieces
from .statistics import LatentStatistics
from .tokens import Effects
from .windows import ABSENT, codes_at, column_at, windows_at

TOP, EACH, WIDTH = 12, 2, 14  # strongest contexts; contexts of each fifth; tokens on either side


@dataclass(frozen=True)
class ContextSeen:
    """One firing in its context.

    Attributes:
        value: the code there. pieces: the tokens' texts, None where the store has no such row. values: the latent's code at each. centre: which
            of them is the firing. row, position, document: where that is; document is None where the store does not tell.
    """

    value: float
    pieces: list[str | None]
    values: list[float]
    centre: int
    row: int
    position: int
    document: int | None


@dataclass(frozen=True)
class Group:
    """Contexts of one kind: the strongest, or a fifth of the firings."""

    name: str
    contexts: list[ContextSeen]


@dataclass(frozen=True)
class LatentSeen:
    """A latent as the report shows it.

    Attributes:
        density: share of rows it fires on. mean: of its strengths there. largest: of all. interest: see choose.py. histogram, end: how many
            strengths lie in equal bins from 0 to `end`. norm: of its decoder row. nearest: other latents and cosines. groups: contexts; none
            where the store holds no text. raised, lowered: tokens and effects; None without a model.
    """

    latent: int
    density: float
    fired: int
    mean: float
    largest: float
    interest: float
    histogram: np.ndarray
    end: float
    norm: float
    nearest: list[tuple[int, float]]
    groups: list[Group] = field(default_factory=list)
    raised: Effects | None = None
    lowered: Effects | None = None


def chosen_latents(
    statistics: LatentStatistics, store: Store, n: int, ids: Sequence[int], has_text: bool
) -> tuple[list[int], np.ndarray]:
    """The latents to show, those with `ids` first and then the most interesting ones up to n in all; and every latent's interest [d_sae].

    Raises:
        SplinterpError: there is no such latent.
    """
    strongest = statistics.strongest
    d_sae = len(strongest.fired)
    for latent in ids:
        if not 0 <= latent < d_sae:
            raise SplinterpError(f"There is no latent {latent}: the SAE has latents 0 to {d_sae - 1}.")
    tokens = documents = None
    if has_text:
        flat, shape = strongest.rows.clip(0).ravel(), strongest.rows.shape
        tokens = column_at(store, "token_id", flat).reshape(shape)
        documents = column_at(store, _text_column(store), flat).reshape(shape)
    ranked = interesting_latents(strongest, tokens, documents, d_sae, thirds=True)
    asked = list(dict.fromkeys(ids))
    return [*asked, *[i for i in ranked if i not in set(asked)][: max(0, n - len(asked))]], interest(strongest, documents)


def look_at(
    latents: Sequence[int],
    statistics: LatentStatistics,
    directions: Directions,
    interests: np.ndarray,
    contexts: dict[int, list[Group]],
    tokens: dict[int, tuple[Effects, Effects]],
) -> list[LatentSeen]:
    """Everything that is known of some latents, put together."""
    s = statistics.strongest
    return [
        LatentSeen(
            latent=i, density=float(s.fired[i]) / max(1, s.n_rows), fired=int(s.fired[i]), mean=float(s.total[i]) / max(1, int(s.fired[i])),
            largest=float(np.abs(s.values[i, 0])), interest=float(interests[i]), histogram=statistics.histograms[i], end=float(statistics.ends[i]),
            norm=float(directions.norms[i]),
            nearest=[(int(j), float(c)) for j, c in zip(directions.nearest[i], directions.cosines[i], strict=True)],
            groups=contexts.get(i, []), raised=tokens[i][0] if i in tokens else None, lowered=tokens[i][1] if i in tokens else None,
        )
        for i in latents
    ]  # fmt: skip


def contexts_of(
    latents: Sequence[int],
    statistics: LatentStatistics,
    sae: SAE,
    store: Store,
    site: str,
    tokenizer: Any,
    progress: Callable[[str, int, int], None],
    *,
    width: int = WIDTH,
) -> dict[int, list[Group]]:
    """For each latent its strongest contexts, from different documents where there are enough, and some of each fifth of its firings (of a
    random sample of them, strongest first), each with `width` tokens on either side."""
    column = _text_column(store)
    picked = [one for latent in latents for one in _picks(latent, statistics, store, column)]
    rows = np.array([row for *_, row in picked], np.int64)
    around = windows_at(store, rows, width, lambda done: progress("neighbours", done, store.rows))
    owners = np.array([latent for latent, *_ in picked], np.int64)
    values = codes_at(sae, store, site, around.rows, owners, lambda done, total: progress("contexts", done, total))
    positions = column_at(store, "position", rows)
    documents = column_at(store, "document", rows).tolist() if "document" in store.columns else [None] * len(rows)
    found: dict[int, dict[str, list[ContextSeen]]] = {}
    for i, (latent, name, row) in enumerate(picked):
        there = np.flatnonzero(around.rows[i] != ABSENT)
        part = slice(there[0], there[-1] + 1)  # without what lies beyond the sequence's ends
        seen = ContextSeen(
            float(values[i, width]), pieces(tokenizer, around.tokens[i, part]), values[i, part].tolist(), width - int(there[0]), row,
            int(positions[i]), documents[i],
        )  # fmt: skip
        found.setdefault(latent, {}).setdefault(name, []).append(seen)
    return {latent: [Group(name, seen) for name, seen in groups.items()] for latent, groups in found.items()}


def _picks(latent: int, statistics: LatentStatistics, store: Store, column: str) -> list[tuple[int, str, int]]:
    """(latent, name of the group, row) of the firings to show."""
    strongest = statistics.strongest.rows[latent]
    strongest = strongest[strongest >= 0]
    top = [int(strongest[p]) for p in first_of_each(column_at(store, column, strongest), TOP)]
    picks = [(latent, "strongest", row) for row in top]
    sample, fifths = statistics.sample_rows[latent], bands(statistics.sample_rows[latent], set(top), EACH)
    for i, places in enumerate(fifths):
        picks += [(latent, fifth_name(i), int(sample[p])) for p in places]
    return picks


def fifth_name(i: int) -> str:
    """What the group of the i-th fifth of the firings is called, the strongest being the first."""
    return f"{100 - 20 * (i + 1)}–{100 - 20 * i} %"


def _text_column(store: Store) -> str:
    """The column that tells texts apart."""
    return "document" if "document" in store.columns else "sequence"
