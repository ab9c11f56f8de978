"""The tensors of a safetensors file.

safetensors' own way into torch takes a Ctrl-C in its midst for a ValueError, which would be told as damage to the file: the library only checks the header here.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def place_of(path: Path, name: str) -> int:
    """Where the numbers of a tensor begin in a file that is sound."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return 8 + size + json.loads(file.read(size))[name]["data_offsets"][0]


def read_tensors(path: Path, *, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, on the CPU, in the order in which they lie in the file, and its metadata.

    Args:
        mapped: the tensors are parts of a private map of the file, which must stay as it is; else of memory.

    Raises:
        SafetensorError, ValueError: it is no such file, or damaged, or has a dtype that is not known here. OSError: it cannot be read.
    """
    try:
        with safe_open(str(path), framework="np"):  # in Rust str() of a path would meet the Ctrl-C
            pass
        data = np.memmap(str(path), np.uint8, "c") if mapped else _whole(path)
        begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:begin].tobytes())
        metadata, tensors = header.pop("__metadata__", None) or {}, dict[str, Tensor]()
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, (first, last) = _DTYPES[entry["dtype"]], entry["data_offsets"]
            part = data[begin + first : begin + last]
            if part.ctypes.data % dtype.itemsize:
                part = part.copy()
            tensors[name] = torch.from_numpy(part).view(dtype).reshape(entry["shape"])
        return tensors, metadata
    except (KeyError, TypeError, RuntimeError) as error:
        raise SafetensorError(f"{path}: {error!r}") from error


def _whole(path: Path) -> np.ndarray:
    """A file's bytes; numpy's own way to read one does not take a Ctrl-C either."""
    data = np.empty(path.stat().st_size, np.uint8)
    with path.open("rb") as file:
        return data[: file.readinto(data.data)]
