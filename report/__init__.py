"""What people see: tables, and the contexts in which latents fire.

The names below are imported when they are first asked for: pictures and comparisons need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contexts import Context, LatentContexts, interesting_latents, top_contexts
    from .terminal import print_contexts

_FROM = {
    "contexts": ("Context", "LatentContexts", "interesting_latents", "top_contexts"),
    "terminal": ("print_contexts",),
}

__all__ = ["Context", "LatentContexts", "interesting_latents", "print_contexts", "top_contexts"]


def __getattr__(name: str) -> Any:
    for module, names in _FROM.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
