"""A store's rows as SAELens's cached activations: an Arrow data set with a column [context, d] a hook point, and the tokens.

SAELens trains on rows and never on contexts: what it calls one is here so many rows in the store's order, which is a shuffled one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch

from ..errors import StoreError
from .batches import Split, plan_epoch
from .import_saelens import TOKENS
from .reader import Store

CONTEXT = 128  # where the store does not tell one
_AT_ONCE = 64  # contexts
_DATA = "data-00000-of-00001.arrow"


def export_saelens(
    store: Store,
    out: Path,
    *,
    context: int | None = None,
    split: Split = "all",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a directory that SAELens takes as `cached_activations_path`; returns the number of rows in it.

    Rows beyond the last whole context are left out, fewer than one context's. bfloat16, which Arrow has not, becomes float32.

    Args:
        context: rows that SAELens is to take for a context, its `context_size`; None: the store's own, or 128.
        progress: called with (rows written, rows in all).

    Raises:
        StoreError: `out` exists, or the split has less than a context's rows.
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter

    context = context or int(store.attributes.get("context") or CONTEXT)
    total = store.split_rows(split) // context * context
    if not total:
        raise StoreError(
            f"{store.path} has {store.split_rows(split):,} rows in its split {split}, fewer than a context of {context}; lower --context."
        )
    if out.exists() and not (force and (not any(out.iterdir()) or (out / "state.json").is_file())):
        raise StoreError(f"{out} exists already; give another --out, or --force to replace what was exported there.")
    tokens = "token_id" in store.columns
    dtypes = {site.name: "float16" if site.dtype == "float16" else "float32" for site in store.sites.values()}
    features: Any = {
        site.name: datasets.Array2D((context, site.d), dtypes[site.name]) for site in store.sites.values()
    }  # fmt: skip
    if tokens:
        features[TOKENS] = datasets.Sequence(datasets.Value("int32"), length=context)
    features = datasets.Features(features)
    beside = out.with_name(f".{out.name}.writing")
    rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        plan = plan_epoch(store.rows, _AT_ONCE * context, split=split, shuffle=False)
        streams = {name: store.batches(name, _AT_ONCE * context, split=split, shuffle=False) for name in store.sites}
        done = 0
        with ArrowWriter(path=str(beside / _DATA), features=features) as writer:
            for i in range(-(-total // (_AT_ONCE * context))):
                rows = min(_AT_ONCE * context, total - done)
                numbers = {name: _numbers(next(stream)[:rows], dtypes[name]) for name, stream in streams.items()}
                columns = {name: _nested(x, context) for name, x in numbers.items()}
                if tokens:
                    ids = np.concatenate([store.column("token_id", a, b) for a, b in plan.spans(i)])[:rows]
                    columns[TOKENS] = _lists(ids.astype(np.int32), context)
                writer.write_table(_table(columns, features))
                done += rows
                if progress:
                    progress(done, total)
            writer.finalize()
        datasets.DatasetInfo(features=features).write_to_directory(str(beside))
        state = {
            "_data_files": [{"filename": _DATA}], "_fingerprint": store.fingerprint[:16], "_format_columns": None, "_format_kwargs": {},
            "_format_type": None, "_output_all_columns": False, "_split": None,
        }  # fmt: skip
        (beside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        if out.exists():
            rmtree(out)
        beside.rename(out)
    finally:
        rmtree(beside, ignore_errors=True)
    return total


def _numbers(x: torch.Tensor, dtype: str) -> np.ndarray:
    return x.to(getattr(torch, dtype), copy=True).numpy()


def _lists(flat: Any, length: int) -> Any:
    """An Arrow array of lists of so many values, without a copy."""
    import pyarrow as pa

    values = pa.array(flat) if isinstance(flat, np.ndarray) else flat
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, length, dtype=np.int32)), values)


def _nested(x: np.ndarray, context: int) -> Any:
    """[N, d] as N/context lists of `context` lists of d values."""
    return _lists(_lists(x.reshape(-1), x.shape[1]), context)


def _table(columns: dict[str, Any], features: Any) -> Any:
    """An Arrow table of the features' types: Array2D is an extension type around nested lists."""
    import pyarrow as pa

    types = features.arrow_schema
    arrays = [
        pa.ExtensionArray.from_storage(types.field(name).type, values) if isinstance(types.field(name).type, pa.ExtensionType) else values
        for name, values in columns.items()
    ]  # fmt: skip
    return pa.Table.from_arrays(arrays, names=list(columns))
