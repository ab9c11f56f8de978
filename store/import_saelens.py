"""Activations that SAELens's CacheActivationsRunner left: an Arrow data set with a column [context, d] a hook point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import StoreError
from .sources import Slab, Source, steps

TOKENS = "token_ids"
POSITION = "place in the stored context; SAELens does not record whether it had cut the context (seqpos_slice)"


def saelens_source(path: Path, site: str | None) -> Source:
    """The hook points of a data set directory; with `site` the column of that name, or the only one under that name.

    Columns: `token_id` where SAELens kept the tokens, `position`, `sequence`. Documents cannot be told from it.

    Raises:
        StoreError: not such a directory, or its columns do not go together; says what it holds.
    """
    import datasets

    if not (path / "state.json").is_file() or not (path / "dataset_info.json").is_file():
        raise StoreError(f"{path} is a directory, but not one of activations cached by SAELens (it has no Arrow data set).")
    try:
        data = datasets.Dataset.load_from_disk(str(path), keep_in_memory=False).with_format("arrow")
        found = {name: f for name, f in data.features.items() if isinstance(f, datasets.Array2D)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # pyarrow's own errors are among them
        raise StoreError(f"{path} is damaged: its Arrow data set cannot be opened.") from None
    hooks = _hooks(path, found, site, data.column_names)
    shapes = {(f.shape[0], f.dtype) for f in hooks.values()}
    context, dtype = next(iter(shapes))
    if len(shapes) > 1:
        raise StoreError(f"{path} has hook points of several contexts or dtypes; choose one with --site: {', '.join(hooks)}.")
    if context is None or dtype not in ("float16", "float32", "float64"):
        raise StoreError(
            f"{path} holds {dtype} activations of shape [{context}, d]; only floating-point ones of one length can be imported."
        )
    renamed = {site if len(hooks) == 1 and site else name: name for name in hooks}
    sites = {new: int(hooks[old].shape[1]) for new, old in renamed.items()}
    tokens = TOKENS in data.column_names

    def slabs() -> Iterator[Slab]:
        try:
            for a, b in steps((len(data), context, sum(sites.values())), np.dtype(dtype).itemsize):
                table: Any = data[a:b]
                rows = {new: _matrix(path, table, old, (b - a) * context, sites[new]) for new, old in renamed.items()}
                columns = {"token_id": _numbers(path, table, (b - a) * context)} if tokens else {}
                columns["position"] = np.tile(np.arange(context), b - a)
                columns["sequence"] = np.repeat(np.arange(a, b), context)
                yield rows, columns
        except (OSError, ValueError, TypeError):
            raise StoreError(f"{path} is damaged: its Arrow data cannot be read.") from None

    columns = (*(["token_id"] if tokens else []), "position", "sequence")
    told = {"context": context, "position_is": POSITION}
    return Source(path, len(data) * context, sites, dtype, slabs, columns, len(data), told)


def _hooks(path: Path, found: dict[str, Any], site: str | None, names: list[str]) -> dict[str, Any]:
    if not found:
        raise StoreError(
            f"{path} holds no activations; its columns are {', '.join(names) or '(none)'}. Harvest its text instead."
        )
    if site is None or (site not in found and len(found) == 1):
        return found
    if site not in found:
        raise StoreError(f"{path} has no hook point '{site}'; choose with --site: {', '.join(found)}.")
    return {site: found[site]}


def _matrix(path: Path, table: Any, name: str, rows: int, d: int) -> torch.Tensor:
    """[rows, d] of an Array2D column, straight from Arrow's buffers: through Python lists it would take minutes."""
    inner = [chunk.storage.flatten() for chunk in table[name].chunks]
    values = [_plain(lists.flatten()) for lists in inner]
    flat = np.concatenate(values)
    if any(bool((lists.value_lengths().to_numpy(zero_copy_only=False) != d).any()) for lists in inner) or len(flat) != rows * d:
        raise StoreError(f"{path} is damaged: '{name}' does not hold {d} numbers a token throughout.")
    return torch.from_numpy(flat.reshape(rows, d))


def _numbers(path: Path, table: Any, rows: int) -> np.ndarray:
    ids = np.concatenate([_plain(chunk.flatten()) for chunk in table[TOKENS].chunks])
    if len(ids) != rows:
        raise StoreError(f"{path} is damaged: '{TOKENS}' does not hold one number a token.")
    return ids.astype(np.int64)


def _plain(values: Any) -> np.ndarray:
    if values.null_count:
        raise ValueError("missing values")
    return values.to_numpy(zero_copy_only=False)
