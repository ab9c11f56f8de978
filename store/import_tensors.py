"""PyTorch's files: .safetensors, and .pt with tensors alone."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import StoreError
from ..tensor_files import place_of
from .sources import FLOATS, Source, choose, matrix_source, opened, state_of, steps, stream

_KINDS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def safetensors_source(path: Path, site: str | None) -> Source:
    """The only tensor of two or three dimensions of a .safetensors file, or the one named like the site."""
    try:
        seen = state_of(path)
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            name = choose(path, site, shapes, "tensors")
            kind = file.get_slice(name).get_dtype()
        begin = place_of(path, name)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError):
        raise StoreError(f"{path} is not a safetensors file, or is damaged.") from None
    if kind not in _KINDS:
        raise StoreError(
            f"{path} holds {kind} numbers in '{name}'; only floating-point tensors of 16 to 64 bits can be imported."
        )
    shape, dtype = shapes[name], getattr(torch, _KINDS[kind])

    def slabs() -> Iterator[torch.Tensor]:
        with opened(path, seen) as file:
            file.seek(begin)
            for piece in stream(path, file, shape, np.dtype(f"u{dtype.itemsize}")):  # bits: numpy has no bfloat16
                yield torch.from_numpy(piece).view(dtype)

    return matrix_source(path, site, shape, _KINDS[kind], slabs)


def torch_source(path: Path, site: str | None) -> Source:
    """A .pt file, memory-mapped: a tensor, or a dictionary with one of two or three dimensions or one named like the site.

    Raises:
        StoreError: it holds anything but tensors and plain containers: no other pickled object is ever made.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise StoreError(
            f"{path} holds more than tensors, and other pickled objects are not loaded: save a plain tensor or a dictionary of tensors."
        ) from None
    except RuntimeError as error:
        if "_use_new_zipfile_serialization" in str(error):
            raise StoreError(f"{path} is in PyTorch's format from before 1.6; save it again with a newer PyTorch.") from None
        raise _damaged(path) from None
    # A malformed pickle can trip the restricted unpickler at any opcode.
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        ArithmeticError,
        MemoryError,
        struct.error,
    ):
        raise _damaged(path) from None
    if isinstance(held, dict):
        tensors = {str(k): v for k, v in held.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
        tensor = tensors[choose(path, site, {name: tuple(v.shape) for name, v in tensors.items()}, "tensors")]
    elif isinstance(held, torch.Tensor):
        tensor = held
    else:
        raise StoreError(f"{path} holds a {type(held).__name__}; only a tensor or a dictionary of tensors can be imported.")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in FLOATS or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise StoreError(
            f"{path} holds {dtype} numbers ({tensor.layout}); only dense tensors of {', '.join(FLOATS)} can be imported."
        )
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise StoreError(
            f"{path} holds fewer numbers than a tensor of shape {list(tensor.shape)} has; save it from .contiguous() first."
        )
    rows, shape = tensor.detach(), tuple(tensor.shape)
    return matrix_source(path, site, shape, dtype, lambda: (rows[a:b] for a, b in steps(shape, rows.element_size())))


def _damaged(path: Path) -> StoreError:
    return StoreError(f"{path} is not a .pt file that torch.save wrote, or is damaged.")
