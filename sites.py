"""Which site of a store an SAE belongs to, and whether its rows are those that it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import SplinterpError

if TYPE_CHECKING:
    from .sae import SAE
    from .store import Store


def site_of(sae: SAE, store: Store) -> str | None:
    """The site that an SAE says it belongs to; none if it says nothing, or the store has just one."""
    name = sae.config.metadata.get("hook_name")
    if isinstance(name, str) and name not in store.sites:
        raise SplinterpError(
            f"The SAE belongs to {name}, and {store.path} has {', '.join(store.sites)}; if you mean it, name one with --site."
        )
    return name if isinstance(name, str) else None


def trained_elsewhere(sae: SAE, store: Store, name: str) -> str | None:
    """A note where the SAE called `name` was trained on another store than this one; None where that is not known.

    Which rows are held out goes by their place in a store.
    """
    known = sae.config.metadata.get("store_fingerprint")
    if known is None or known == store.fingerprint:  # of another program's Zarr it costs a pass over the rows
        return None
    return (
        f"{store.path} is not the store that {name} was trained on. Where both have rows in common (a subset, a merge, the same text harvested "
        "anew), rows that are held out here were trained on there, and figures on them flatter."
    )
