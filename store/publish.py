"""Metadata in the order that keeps a store honest: what is said is never ahead of what is on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import manifest
from .files import is_temporary, json_crc, sync_folder, write_json
from .layout import KEY, LOG, MANIFEST, METADATA, POOL, REMOTE_LOG, Array, group_metadata
from .manifest import Line
from .places import AnyPath, RemotePath
from .plan import Plan
from .remote_writer import delete
from .stats import site_statistics


def publish_root(plan: Plan, status: str, rows: int, more: dict[str, Any]) -> None:
    """Write the store's own zarr.json."""
    attributes = plan.root_attributes(status, rows, more)
    write_json({plan.path / METADATA: group_metadata({KEY: attributes | {"attributes_crc32c": json_crc(attributes)}})})


def publish_beginning(plan: Plan) -> None:
    """Folders and metadata of a store without rows, status "writing". Running it again on a killed writer's store is safe."""
    publish_root(plan, "writing", 0, {})
    metadata = {}
    for site, d in plan.sites.items():
        (plan.path / site / "acts").mkdir(parents=True, exist_ok=True)
        remove_leftovers(plan.path / site)
        metadata[plan.path / site / METADATA] = group_metadata({"site": site, "d": d, "rows": 0, "torch_dtype": plan.dtype})
    for array in plan.arrays:
        folder = plan.path / array.path
        folder.mkdir(exist_ok=True)
        remove_leftovers(folder)
        metadata[folder / METADATA] = array.metadata(0, plan.chunk_rows)
    write_json(metadata)
    sync_folder(plan.path)
    sync_folder(plan.path.absolute().parent)


def publish_complete(
    plan: Plan,
    lines: dict[int, Line],
    rows: int,
    offered: int,
    dropped_outliers: int,
    extra: dict[str, Any],
    check: Callable[[], None],
    means: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Sorted manifest, then shapes and statistics, then the root with status "complete"; what only a writer needs goes after it.

    Args:
        check: called first and once more before the root; raises when another writer has taken over.
        means: each site's mean row [d], where the lines do not have sums.
    """
    check()
    chunks = -(-rows // plan.chunk_rows)
    kept = [lines[i] for i in range(chunks)]
    for array in plan.arrays:
        remove_beyond(plan.path / array.path, array, chunks)
        sync_folder(plan.path / array.path)
    crc = manifest.publish(plan.path / MANIFEST, kept)
    metadata = {plan.path / array.path / METADATA: array.metadata(rows, plan.chunk_rows) for array in plan.arrays}
    for site, d in plan.sites.items():
        mean, norms = site_statistics(kept, site, None if means is None else means[site])
        attributes = {"site": site, "d": d, "rows": rows, "torch_dtype": plan.dtype, "mean": mean.tolist(), **norms}
        metadata[plan.path / site / METADATA] = group_metadata(attributes)
    crcs = {str(path).removeprefix(f"{plan.path}/"): value for path, value in write_json(metadata).items()}
    dropped = {"dropped_non_finite": offered - rows - dropped_outliers}
    if plan.max_norms:
        dropped["dropped_outliers"] = dropped_outliers
    more = {"offered_rows": offered, **dropped, "manifest_crc32c": crc, "metadata_crc32c": crcs}
    check()
    publish_root(plan, "complete", rows, {**extra, **more})
    remove_remains(plan.path)


def remove_remains(path: AnyPath) -> None:
    """Delete what only a store being written needs."""
    if isinstance(path, RemotePath):
        delete((path / REMOTE_LOG).iterdir())
        return
    for name in (LOG, POOL):
        (path / name).unlink(missing_ok=True)


def remove_leftovers(folder: AnyPath) -> None:
    """Delete the temporary files of a killed writer; on an object store there are none."""
    if isinstance(folder, RemotePath):
        return
    for entry in list(folder.iterdir()):
        if is_temporary(entry.name):
            entry.unlink()


def remove_beyond(folder: AnyPath, array: Array, chunks: int) -> None:
    """Delete chunk files past the end: an earlier, interrupted run may have had a longer source."""
    for entry in list(folder.iterdir()):
        index = array.chunk_index(entry.name)
        if index is not None and index >= chunks:
            entry.unlink()
