"""merge(): several stores into one, every row once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import StoreError
from .create import create
from .derive import copy_tokenizer, origin_of, pieces, refuse_overwriting, same_tokenizer, told_of
from .layout import COLUMN_FILL
from .opening import open_any
from .places import Location, place
from .reader import Store

# Numbers that count within a store: shifted, so that they stay unique.
COUNTED = ("document", "sequence")


def merge(
    paths: Sequence[Location],
    out: Location,
    *,
    seed: int = 0,
    memory: int = 2**30,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Make one store of all rows of the stores at `paths`, which must have the same sites, widths, dtype and columns.

    The stores are read alternately, in pieces in a random order, so that the result is mixed throughout. The columns
    `document` and `sequence` are shifted by the numbers that earlier stores use. Attributes on which the stores agree are kept;
    the others are recorded under `differing`, and the stores under `merged_from`.

    Args:
        progress: called with (rows read, rows in all).

    Raises:
        StoreError: fewer than two stores, one unlike the first or with the same rows, or `out` exists or is one of them.
    """
    stores = [open_any(path) for path in paths]
    if len(stores) < 2:
        raise StoreError("Name at least two stores to merge.")
    refuse_overwriting(place(out), stores)
    first = stores[0]
    for i, store in enumerate(stores[1:], 1):
        _check_alike(first, store)
        for earlier in stores[:i]:
            if store.fingerprint == earlier.fingerprint:
                raise StoreError(f"{store.path} holds the same rows as {earlier.path}; merging would double them.")
    shifts = _shifts(stores)
    total = sum(store.rows for store in stores)
    shared, differing = _attributes(stores)
    with create(
        out,
        sites={name: site.d for name, site in first.sites.items()},
        dtype=next(iter(first.sites.values())).dtype,
        columns=first.columns,
        rows=total,
        attributes={**shared, "source": "merge", "merged_from": [origin_of(s) for s in stores], "differing": differing},
        seed=seed,
        memory=memory,
        force=force,
    ) as writer:
        if same_tokenizer(stores):
            copy_tokenizer(first, place(out))
        work = [(i, a, b) for i, store in enumerate(stores) for a, b in pieces(store)]
        done = 0
        for at in np.random.default_rng([seed, len(work)]).permutation(len(work)):
            i, a, b = work[at]
            columns = {name: stores[i].column(name, a, b).astype(np.int64) for name in first.columns}
            for name, shift in shifts[i].items():
                columns[name] += shift
            writer.add({name: stores[i].acts(name, a, b) for name in first.sites}, columns)
            done += b - a
            if progress:
                progress(done, total)
        return writer.finish()


def _check_alike(first: Store, store: Store) -> None:
    for what, one, other in (
        ("sites", sorted(first.sites), sorted(store.sites)),
        ("columns", sorted(first.columns), sorted(store.columns)),
    ):
        if one != other:
            raise StoreError(
                f"{store.path} has the {what} {', '.join(other) or '(none)'}, but {first.path} {', '.join(one) or '(none)'}; leave it out."
            )
    for name, site in store.sites.items():
        one = first.sites[name]
        if (site.d, site.dtype) != (one.d, one.dtype):
            raise StoreError(
                f"{store.path} has {site.dtype} rows of width {site.d} at {name}, but {first.path} {one.dtype} of width {one.d}."
            )


def _shifts(stores: Sequence[Store]) -> list[dict[str, int]]:
    """For each store, what is added to each counted column."""
    shifts: list[dict[str, int]] = []
    after = {name: 0 for name in COUNTED if name in stores[0].columns}
    for store in stores:
        shifts.append(dict(after))
        for name in after:
            after[name] += 1 + max(int(store.column(name, a, b).max()) for a, b in pieces(store))
            if after[name] - 1 > COLUMN_FILL:
                raise StoreError(
                    f"The stores' column '{name}' counts beyond {COLUMN_FILL} in {store.path}; merge fewer stores."
                )
    return shifts


def _attributes(stores: Sequence[Store]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(attributes on which all agree, the values of the others store by store)."""
    told = [told_of(store) for store in stores]
    shared: dict[str, Any] = {}
    differing: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in told for key in one):
        values = [one.get(key) for one in told]
        if all(value == values[0] for value in values):
            shared[key] = values[0]
        else:
            differing[key] = values
    if not same_tokenizer(stores):
        differing["tokenizer"] = "not the same files in all stores, so none was kept"
    return shared, differing
