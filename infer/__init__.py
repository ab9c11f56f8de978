"""Sparse inference beyond the encoder: codes for rows from a dictionary alone, better than one pass of an encoder makes them."""

from .codes_store import CodesStore, open_codes
from .encoders import NAMES, Encoder, EncoderOptions, make_encoder
from .flops import flops_per_row
from .methods import METHODS, Method, check, infer
from .problem import Dictionary, Effort, Target

__all__ = [
    "METHODS",
    "NAMES",
    "CodesStore",
    "Dictionary",
    "Effort",
    "Encoder",
    "EncoderOptions",
    "Method",
    "Target",
    "check",
    "flops_per_row",
    "infer",
    "make_encoder",
    "open_codes",
]
