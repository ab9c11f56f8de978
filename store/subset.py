"""subset(): some of a store's rows as a store of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from ..errors import StoreError
from .create import create
from .derive import copy_tokenizer, origin_of, pieces, refuse_overwriting, told_of
from .opening import open_any
from .places import Location, place
from .reader import Store

# NumPy draws hypergeometric numbers from fewer than a milliard rows.
_LARGEST_SAMPLED = 10**9


def subset(
    path: Location,
    out: Location,
    *,
    rows: int | None = None,
    token_ids: Collection[int] | None = None,
    positions: Collection[int] | None = None,
    documents: Collection[int] | None = None,
    seed: int = 0,
    memory: int = 2**30,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Make a store of the rows of the store at `path` that meet every condition given; numbers in columns stay as they are.

    Args:
        rows: how many of them, a uniform random sample without replacement that follows from `seed`; None: all.
        token_ids, positions, documents: values of those columns to keep (a range will do).
        progress: called with (rows written, rows in all).

    Raises:
        StoreError: no condition, a column that the store lacks, too few rows, or `out` exists or is `path`.
    """
    store = open_any(path)
    refuse_overwriting(place(out), [store])
    asked = {"token_id": token_ids, "position": positions, "document": documents}
    wanted = {name: np.unique(np.fromiter(values, np.int64)) for name, values in asked.items() if values is not None}
    if rows is None and not wanted:
        raise StoreError("Say which rows: a number of rows, token ids, positions or documents.")
    for name in wanted:
        if name not in store.columns:
            raise StoreError(f"{store.path} has no column '{name}' to choose by; it has {', '.join(store.columns) or 'none'}.")
    spans = pieces(store)
    counts = [int(_matching(store, wanted, a, b).sum()) for a, b in spans] if wanted else [b - a for a, b in spans]
    found = sum(counts)
    if not found:
        raise StoreError(f"No row of {store.path} is one of those asked for.")
    if rows is not None and not 1 <= rows <= found:
        raise StoreError(f"{store.path} has {found} such rows; {rows} of them cannot be taken.")
    if rows is not None and found >= _LARGEST_SAMPLED:
        raise StoreError(f"{store.path} has {found} such rows; a sample can be drawn from fewer than {_LARGEST_SAMPLED}.")
    total = found if rows is None else rows
    origin = {**origin_of(store), "sample": rows, **{name: _brief(values) for name, values in wanted.items()}}
    rng = np.random.default_rng([seed, total, found])
    with create(
        out,
        sites={name: site.d for name, site in store.sites.items()},
        dtype=next(iter(store.sites.values())).dtype,
        columns=store.columns,
        rows=total,
        attributes={**told_of(store), "source": "subset", "subset_of": origin},
        seed=seed,
        memory=memory,
        force=force,
    ) as writer:
        copy_tokenizer(store, place(out))
        for (a, b), count in zip(spans, counts, strict=True):
            take = count
            if rows is not None and count:
                # Piece by piece, each with its share drawn: a uniform sample without a list of all rows.
                take = int(rng.hypergeometric(count, found - count, total - writer.rows)) if total > writer.rows else 0
                found -= count
            if not take:
                continue
            here = np.flatnonzero(_matching(store, wanted, a, b))
            if take < count:
                here = np.sort(rng.choice(here, take, replace=False))
            # The rows were finite when they were stored, so the writer takes every one.
            writer.add(
                {name: store.acts(name, a, b)[here] for name in store.sites},
                {name: store.column(name, a, b)[here] for name in store.columns},
            )
            if progress:
                progress(writer.rows, total)
        return writer.finish()


def _matching(store: Store, wanted: dict[str, np.ndarray], a: int, b: int) -> np.ndarray:
    """[b-a] bool: which rows of [a, b) have a wanted value in every column asked for."""
    keep = np.ones(b - a, bool)
    for name, values in wanted.items():
        keep &= np.isin(store.column(name, a, b), values)
    return keep


def _brief(values: np.ndarray) -> list[int] | str:
    """The values for the record; a long list only by its size and ends."""
    if len(values) <= 100:
        return values.tolist()
    return f"{len(values)} values from {values[0]} to {values[-1]}"
