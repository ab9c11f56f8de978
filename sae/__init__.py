"""What a sparse autoencoder is: its activations, encode and decode, and its files."""

from .codes import ByLatent, Codes, SparseCodes, by_latent, decode, fired_counts, l0, sum_rows, to_csr, to_dense, to_double
from .files import load_sae, save_sae
from .kernels import kernels_for
from .model import SAE, Architecture, SAEConfig, select_topk

__all__ = [
    "SAE",
    "Architecture",
    "ByLatent",
    "Codes",
    "SAEConfig",
    "SparseCodes",
    "by_latent",
    "decode",
    "fired_counts",
    "kernels_for",
    "l0",
    "load_sae",
    "save_sae",
    "select_topk",
    "sum_rows",
    "to_csr",
    "to_dense",
    "to_double",
]
