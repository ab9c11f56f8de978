"""A seal in a weights file: a checksum of its tensors and the settings that they are for, so that damage to either is seen.

safetensors files have neither. The seal stands in the file's `__metadata__`, which other programs leave alone; files of theirs have none, and
are taken as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from ..errors import SAEError
from ..quantities import parse_json
from ..tensor_files import read_tensors

_KEY = "splinterp"


def sealed(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> bytes:
    """A safetensors file of contiguous tensors on the CPU, for these settings (plain JSON)."""
    told = {"crc32c": _crc(tensors), "settings": dict(settings)}
    return save(dict(tensors), {_KEY: json.dumps(told, sort_keys=True)})


def unsealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a file, on the CPU, and the settings that they are for; None where it has no seal.

    Raises:
        SAEError: it is damaged. OSError: it cannot be read.
    """
    try:
        tensors, metadata = read_tensors(path)
        if _KEY not in metadata:
            return tensors, None
        told = parse_json(metadata[_KEY])
        crc, settings = told["crc32c"], dict(told["settings"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SAEError(f"{path} is damaged: {error}.") from error
    if crc != _crc(tensors):
        raise SAEError(f"{path} is damaged: its numbers do not match their checksum; restore the file, or make it again.")
    return tensors, settings


def check_settings(path: Path, found: Mapping[str, Any], weights: Path, settings: Mapping[str, Any] | None) -> None:
    """See that a file tells of the settings that the weights beside it are for. Raises SAEError naming the first that differs."""
    for name, value in (settings or {}).items():
        if json.dumps(found.get(name), sort_keys=True) != json.dumps(value, sort_keys=True):  # as text: NaN is not NaN
            raise SAEError(
                f"{path} says {name}={found.get(name)}, but {weights.name} beside it was written for {name}={value}: one of them is damaged, or of "
                "another SAE; restore it, or make the SAE again."
            )


def _crc(tensors: Mapping[str, Tensor]) -> int:
    """crc32c of names, dtypes, shapes and numbers."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = google_crc32c.extend(crc, f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        crc = google_crc32c.extend(crc, tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
    return crc
