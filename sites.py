"""Which site of a store an SAE belongs to."""

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
