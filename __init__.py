"""splinterp: harvest a model's activations once, train sparse autoencoders on them many times.

The names below are `splinterp.api`'s and a few classes, imported when they are first asked for: `import splinterp` itself is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each name comes from. Those that are packages too are called as packages: see callable_packages.py.
_API = (
    "compare", "encode", "evaluate", "export_activations", "export_neuronpedia", "export_sae", "gap", "geometry", "harvest", "import_activations", "load_sae", "mlp", "open_store", "plot", "push_to_hub", "refit",
    "report", "spectrum", "splice", "sweep", "train",
)  # fmt: skip
_CLASSES = {"SAE": ".sae", "SAETransformer": ".api.transformer", "SplinterpError": ".errors", "Store": ".store"}
_PACKAGES = ("api", "evaluate", "geometry", "harvest", "infer", "report", "sae", "store", "train")

if TYPE_CHECKING:
    from .api import (
        compare,
        encode,
        evaluate,
        export_activations,
        export_neuronpedia,
        export_sae,
        gap,
        geometry,
        harvest,
        import_activations,
        load_sae,
        mlp,
        open_store,
        plot,
        push_to_hub,
        refit,
        report,
        spectrum,
        splice,
        sweep,
        train,
    )
    from .api.transformer import SAETransformer
    from .errors import SplinterpError
    from .sae import SAE
    from .store import Store

__all__ = [
    "SAE",
    "SAETransformer",
    "SplinterpError",
    "Store",
    "compare",
    "encode",
    "evaluate",
    "export_activations",
    "export_neuronpedia",
    "export_sae",
    "gap",
    "geometry",
    "harvest",
    "import_activations",
    "load_sae",
    "mlp",
    "open_store",
    "plot",
    "push_to_hub",
    "refit",
    "report",
    "spectrum",
    "splice",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    if name in _API:
        return getattr(import_module(".api", __name__), name)
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
