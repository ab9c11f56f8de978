"""Which arrays of another Zarr layout can be sites, and whether what their metadata promise can be so."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..quantities import format_bytes

# What zarr and its codecs raise for damaged metadata or chunks.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
)
# No activations compress so well; what promises more would have time and memory spent on rows that are not there.
LARGEST_RATIO = 1000
ALWAYS_BYTES = 2**26
_PICKLES = ("pickle",)


def arrays_at(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the arrays that can be sites, by name; the attributes of what is at `path`).

    Raises:
        StoreError: there are none, or one promises more than its files can hold, or names a codec that runs code.
    """
    import zarr

    try:
        with warnings.catch_warnings():
            # zarr warns of every file beside its own.
            warnings.simplefilter("ignore")
            # What lies in the folders, and not what consolidated metadata say of it: their names may lead out of it.
            found = zarr.open(path, mode="r", use_consolidated=False)
            if isinstance(found, zarr.Array):
                members = {path.name.removesuffix(".zarr"): found}
            else:
                members = {name: member for name, member in found.members(max_depth=None) if isinstance(member, zarr.Array)}
            told = dict(found.attrs)
    except DAMAGE:
        raise StoreError(f"{path} is damaged: zarr cannot open it.") from None
    chosen = {name: array for name, array in sorted(members.items()) if array.ndim == 2 and array.shape[1] and kept_as(array)}
    if not chosen:
        shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in sorted(members.items()))
        if isinstance(found, zarr.Array):
            raise StoreError(
                f"{path} is not a store: it does not describe a Zarr v3 group or a floating-point array [N, d], but {shapes}."
            )
        raise StoreError(
            f"{path} is a Zarr group, but not a splinterp store, and has no floating-point array [N, d]; it has {shapes or 'nothing'}."
        )
    for name, array in chosen.items():
        _check(path, name, array)
    return chosen, told


def _check(path: Path, name: str, array: Any) -> None:
    """See that an array's codecs run no code, and that neither it nor a chunk of it promises more than its files can hold."""
    metadata = array.metadata
    codecs = [
        *(getattr(metadata, "filters", None) or ()),
        *filter(None, [getattr(metadata, "compressor", None)]),
    ]  # of format 2
    if any(getattr(codec, "codec_id", "") in _PICKLES for codec in codecs):
        raise StoreError(f"{path} holds pickled chunks at {name}, and those are never read; save plain numbers.")
    at_once = getattr(array, "shards", None) or array.chunks
    if not all((*at_once, *array.chunks)):
        raise StoreError(f"{path} is damaged: it has chunks without rows at {name}.")
    stored = sum(file.stat().st_size for file in (path / array.path).rglob("*") if file.is_file())
    promised = max(math.prod(array.shape), math.prod(at_once)) * array.dtype.itemsize
    if promised > LARGEST_RATIO * stored + ALWAYS_BYTES:
        raise StoreError(
            f"{path} promises {format_bytes(promised)} at {name} in files of {format_bytes(stored)}: it is damaged, or most of its chunks are missing."
        )


def kept_as(array: Any) -> str:
    """The dtype as which the rows are given; empty for numbers that are no rows."""
    if array.dtype.kind == "u" and array.dtype.itemsize == 2 and array.attrs.get("torch_dtype") == "bfloat16":
        return "bfloat16"
    return {2: "float16", 4: "float32", 8: "float32"}.get(array.dtype.itemsize, "") if array.dtype.kind == "f" else ""
