"""Rows from any other Zarr layout, so that they are read fast ever after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import StoreError
from .foreign import ForeignStore
from .sources import Slab, Source


def zarr_source(path: Path, site: str | None) -> Source:
    """The arrays of a Zarr layout as `open` sees them; with `site` the one of that name, or the only one under that name.

    Raises:
        StoreError: there are no such arrays, or several dtypes; says what there is.
    """
    store = ForeignStore(path)
    # A site cannot have a slash in its name.
    found = {name.replace("/", "."): at for name, at in store.sites.items()}
    asked = site.replace("/", ".") if site else None
    if len(found) < len(store.sites):
        raise StoreError(f"{path} has arrays whose names differ only in slashes and dots; import them one by one.")
    if asked and asked in found:
        chosen = {asked: found[asked]}
    elif asked is None or len(found) == 1:
        chosen = {asked or name: at for name, at in found.items()}
    else:
        raise StoreError(f"{path} has no array '{site}'; choose with --site: {', '.join(found)}.")
    dtypes = {at.dtype for at in chosen.values()}
    if len(dtypes) > 1:
        raise StoreError(f"{path} has arrays of several dtypes; choose one with --site: {', '.join(found)}.")

    def slabs() -> Iterator[Slab]:
        for a, b in store.spans():
            yield {new: store.acts(at.name, a, b) for new, at in chosen.items()}, {}

    narrowed = any(store.holds(at.name) == "float64" for at in chosen.values())
    return Source(path, store.rows, {new: at.d for new, at in chosen.items()}, dtypes.pop(), slabs, narrowed=narrowed)
