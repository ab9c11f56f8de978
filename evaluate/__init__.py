"""How good a sparse autoencoder is: reconstruction and sparsity over rows, cross-entropy with a model."""

from .metrics import Metrics, evaluate_rows, paired_gain
from .splice import CrossEntropies, cross_entropies

__all__ = ["CrossEntropies", "Metrics", "cross_entropies", "evaluate_rows", "paired_gain"]
