"""How good a sparse autoencoder is: reconstruction and sparsity over rows, cross-entropy with a model. Called, it is `splinterp.api.evaluate`."""

from ..callable_packages import make_callable
from .metrics import Metrics, evaluate_rows, paired_gain
from .splice import CrossEntropies, Splice, cross_entropies, reconstructing

__all__ = ["CrossEntropies", "Metrics", "Splice", "cross_entropies", "evaluate_rows", "paired_gain", "reconstructing"]

make_callable(__name__)
