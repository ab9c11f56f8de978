"""What a sparse autoencoder is: its activations, encode and decode, and its files."""

from .codes import (
    ByLatent,
    Codes,
    SparseCodes,
    by_latent,
    decode,
    fired_counts,
    l0,
    non_zeros,
    sum_rows,
    to_csr,
    to_dense,
    to_double,
)
from .files import load_sae, save_sae
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
    "l0",
    "load_sae",
    "non_zeros",
    "save_sae",
    "select_topk",
    "sum_rows",
    "to_csr",
    "to_dense",
    "to_double",
]
