"""What the command line does, each command one function with the same defaults and the same errors: the names of `import splinterp`.

`sae` is an SAE in memory, the directory of one (a run, or SAELens's), or what `train` and `refit` return; `store` a store's path or URL, or what
`harvest` and `open_store` return. `progress` is called with (stage, done, total, figures) on the way: print will do. Sentences about what
was chosen go to the logger "splinterp" as warnings, or to `tell`. Everything that a user can mend is raised as a SplinterpError.
"""

from ..store import open as open_store
from .figures import encode, evaluate, gap, geometry, spectrum
from .making import (
    export_activations,
    export_neuronpedia,
    export_sae,
    harvest,
    import_activations,
    mlp,
    push_to_hub,
    refit,
    sweep,
    train,
)
from .opened import load_sae
from .views import compare, plot, report, splice

__all__ = [
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
