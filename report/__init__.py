"""What people see: tables, the contexts in which latents fire, and a run's report. Called, it is `splinterp.api.report`.

The names below are imported when they are first asked for: pictures and comparisons need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..callable_packages import make_callable

if TYPE_CHECKING:
    from .build import LATENTS, Progress
    from .contexts import Context, LatentContexts, top_contexts
    from .statistics import LatentStatistics, accumulate
    from .terminal import print_contexts
    from .write import write_report

_FROM = {
    "build": ("LATENTS", "Progress"),
    "contexts": ("Context", "LatentContexts", "top_contexts"),
    "statistics": ("LatentStatistics", "accumulate"),
    "terminal": ("print_contexts",),
    "write": ("write_report",),
}

__all__ = [
    "LATENTS",
    "Context",
    "LatentContexts",
    "LatentStatistics",
    "Progress",
    "accumulate",
    "print_contexts",
    "top_contexts",
    "write_report",
]


def __getattr__(name: str) -> Any:
    for module, names in _FROM.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


make_callable(__name__)
