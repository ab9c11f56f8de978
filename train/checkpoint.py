"""A checkpoint: everything a training run needs to go on bit for bit, in one safetensors file that is replaced as a whole.

The file holds the tensors of `state()` (train/state.py), the position of the run as JSON in its `__metadata__`, and as its last tensor the
crc32c of all that stands before. The order of the rows is a function of its seed and epoch, and but for resampling, which keeps its generator's
state in `state()`, no random number is drawn after the initialisation: whoever brings in another one does the same.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import SplinterpError, StoreError
from ..quantities import parse_json
from ..store.files import file_crc, write_files
from ..tensor_files import read_tensors
from .state import State

CHECKPOINT = "checkpoint.safetensors"
FORMAT = 1
_CHECKSUM = "crc32c"
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_SLAB = 2**23


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        steps, rows: done. seconds: spent on them, interruptions left out.
        window_error, window_rows: Σ‖x̂ − x‖² and rows since the last line of metrics.jsonl. metrics_bytes: that file's length.
        dead: dead latents at the end of training; None before it.
    """

    steps: int = 0
    rows: int = 0
    seconds: float = 0.0
    window_error: float = 0.0
    window_rows: int = 0
    metrics_bytes: int = 0
    dead: int | None = None


def state_bytes(state: State) -> int:
    """What a checkpoint of `state` takes on disk, but for its header."""
    return sum(tensor.nbytes for tensor in state.values())


def unsound(state: State) -> bool:
    """Whether a floating-point tensor of the state holds a NaN or an infinity."""
    # A sum takes no memory and carries both along.
    return not all(bool(t.sum().isfinite()) for t in state.values() if t.is_floating_point())


def write_checkpoint(path: Path, position: Position, state: State) -> None:
    """Durably replace `path`: the old checkpoint is there until the new one is whole. Memory: one tensor's copy where it is on a GPU."""
    write_files([(path, _file(position, state))])


def read_checkpoint(path: Path) -> tuple[Position, dict[str, Tensor]]:
    """The position and the state in a checkpoint; large tensors are mapped rather than read.

    Raises:
        SplinterpError: it is damaged, or of another version.
    """
    try:
        found, told = file_crc(path)
        if found != told:
            raise _damaged(path, "its checksum is wrong")
        state, metadata = read_tensors(path, mapped=True)
        del state[_CHECKSUM]
        if parse_json(metadata["format"]) != FORMAT:
            raise SplinterpError(f"{path} was written by another version of splinterp; resume with that, or start again.")
        return _position(parse_json(metadata["position"])), state
    except (SafetensorError, StoreError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _position(told: Any) -> Position:
    """Raises TypeError or ValueError where it cannot be one."""
    position = Position(**told)
    for name, value in asdict(position).items():
        kinds = (int, float) if name in ("seconds", "window_error") else (int,)
        if not (type(value) in kinds and 0 <= value < 2**63) and not (name == "dead" and value is None):
            raise ValueError(f"{name} is {value!r}")
    return position


def _damaged(path: Path, why: str) -> SplinterpError:
    return SplinterpError(f"The checkpoint {path} is damaged ({why.rstrip('.')}); start the run again with --force.")


def _file(position: Position, state: State) -> Iterator[memoryview]:
    """The bytes of the file, made as they are written, so that the checksum takes no second pass over the state."""
    # Widest first: every tensor is then aligned to its elements.
    names = sorted(state, key=lambda name: (-state[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": json.dumps(FORMAT), "position": json.dumps(asdict(position))}}
    at = 0
    for name in names:
        tensor = state[name]
        header[name] = _entry(_NAMES[tensor.dtype], list(tensor.shape), at, tensor.nbytes)
        at += tensor.nbytes
    header[_CHECKSUM] = _entry("U8", [4], at, 4)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    crc = 0
    for piece in _pieces(struct.pack("<Q", len(encoded)) + encoded, names, state):
        crc = google_crc32c.extend(crc, piece)  # pyright: ignore[reportArgumentType]
        yield piece.data
    yield memoryview(crc.to_bytes(4, "little"))


def _entry(dtype: str, shape: list[int], at: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}


def _pieces(head: bytes, names: list[str], state: State) -> Iterator[np.ndarray]:
    """Bytes, as uint8 arrays."""
    yield np.frombuffer(head, np.uint8)
    for name in names:
        data = state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for a in range(0, len(data), _SLAB):
            yield data[a : a + _SLAB]
