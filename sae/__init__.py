"""What a sparse autoencoder is: its activations, encode and decode, and its files."""

from .codes import ByLatent, Codes, SparseCodes, by_latent, decode, fired_counts, l0, rows_of, sum_rows, to_dense, to_double
from .files import load_sae, save_sae
from .kernels import kernels_for
from .model import SAE, Architecture, SAEConfig, select_topk
from .ragged import RaggedCodes, entry_rows, sparse_if_sparse, starts_of, thinned, to_ragged

__all__ = [
    "SAE",
    "Architecture",
    "ByLatent",
    "Codes",
    "RaggedCodes",
    "SAEConfig",
    "SparseCodes",
    "by_latent",
    "decode",
    "entry_rows",
    "fired_counts",
    "kernels_for",
    "l0",
    "load_sae",
    "rows_of",
    "save_sae",
    "select_topk",
    "sparse_if_sparse",
    "starts_of",
    "sum_rows",
    "thinned",
    "to_dense",
    "to_double",
    "to_ragged",
]
