"""What a sparse autoencoder is: its activations, encode and decode, and its files."""

from .codes import Codes, SparseCodes, decode, fired_counts, l0, to_csr, to_dense, to_double
from .files import load_sae, save_sae
from .model import SAE, SAEConfig, select_topk

__all__ = [
    "SAE",
    "Codes",
    "SAEConfig",
    "SparseCodes",
    "decode",
    "fired_counts",
    "l0",
    "load_sae",
    "save_sae",
    "select_topk",
    "to_csr",
    "to_dense",
    "to_double",
]
