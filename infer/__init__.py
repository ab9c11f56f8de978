"""Sparse inference beyond the encoder: codes for rows from a dictionary alone, better than one pass of an encoder makes them."""

from .encoders import NAMES, Encoder, EncoderOptions, make_encoder
from .flops import flops_per_row
from .methods import METHODS, Method, check, infer
from .problem import Dictionary, Target

__all__ = [
    "METHODS",
    "NAMES",
    "Dictionary",
    "Encoder",
    "EncoderOptions",
    "Method",
    "Target",
    "check",
    "flops_per_row",
    "infer",
    "make_encoder",
]
