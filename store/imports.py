"""Rows from other programs' files, streamed in slabs into a new store."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import StoreError
from .create import create
from .foreign import is_foreign
from .import_arrays import npy_source, npz_source
from .import_idx import idx_source
from .import_saelens import saelens_source
from .import_tensors import safetensors_source, torch_source
from .import_zarr import zarr_source
from .places import Location, RemotePath, place
from .reader import Store
from .sources import Source

KINDS = ".npy, .npz, .safetensors, .pt, .idx and .idx.gz files, Zarr arrays, or directories of activations cached by SAELens"
_SOURCES: dict[str, Callable[[Path, str | None], Source]] = {
    ".npy": npy_source,
    ".npz": npz_source,
    ".safetensors": safetensors_source,
    ".pt": torch_source,
    ".pth": torch_source,
}
# Such as digits.idx, train-images-idx3-ubyte and train-images.idx3-ubyte.gz.
_IDX = re.compile(r".*[-.]idx(\d-\w+)?(\.gz)?", re.IGNORECASE)


def import_files(
    files: Sequence[Location],
    out: Location,
    *,
    site: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Store:
    """Make a store from the rows of `files`, in that order, shuffled like any store. Nothing is unpickled.

    A file holds one array [N, d] or [B, T, d] (taken as [B*T, d]): .npy; .npz, .safetensors or .pt with a single such
    array or one named like the site. An IDX file of images [N, h, w] gives float32 rows [N, h*w]. A Zarr array, or a group's arrays, come as `open` sees them. A SAELens
    directory gives the columns `token_id` (if SAELens kept the tokens), `position` (the place in the stored context) and
    `sequence` (the number of the context); documents cannot be told from it. Rows that are not finite are dropped
    and counted.

    Args:
        site: name of the site; None: "imported", or a SAELens directory's own hook names.
        dtype: of the store; None keeps the files' (float64 becomes float32).
        progress: called with (rows read, rows in all).
        tell: hears that float64 has become float32, where no `dtype` asks for it.

    Raises:
        StoreError: a file is missing, of another kind, not floating-point, or unlike the others; or `out` exists.
    """
    if not files:
        raise StoreError("Name at least one file to import.")
    sources = [open_source(_local(file), site) for file in files]
    for source in sources[1:]:
        _check_alike(sources[0], source, dtype)
    first, total = sources[0], sum(source.rows for source in sources)
    if not total:
        raise StoreError(f"{first.path} holds no rows.")
    kept = "float32" if first.dtype == "float64" else first.dtype
    shared = {k: v for k, v in first.attributes.items() if all(source.attributes.get(k) == v for source in sources)}
    with create(
        out,
        sites=first.sites,
        dtype=dtype or kept,
        columns=first.columns,
        rows=total,
        attributes={"source": "import", "files": [str(source.path) for source in sources], **shared},
        seed=seed,
        force=force,
    ) as writer:
        done = sequences = 0
        for source in sources:
            for rows, columns in source.slabs():
                if "sequence" in columns:
                    columns["sequence"] = columns["sequence"] + sequences
                writer.add(rows, columns)
                done += len(next(iter(rows.values())))
                if progress:
                    progress(done, total)
            sequences += source.sequences
        made = writer.finish()
    if tell and dtype is None and any(source.dtype == "float64" or source.narrowed for source in sources):
        tell("The files' float64 became float32.")
    return made


def _local(file: Location) -> Path:
    path = place(file)
    if isinstance(path, RemotePath):
        raise StoreError(f"{path} cannot be imported from where it is; copy it to a local file first.")
    return path


def open_source(path: Path, site: str | None) -> Source:
    """Look at a file without reading its rows.

    Raises:
        StoreError: it cannot be imported; says why.
    """
    if is_foreign(path):
        return zarr_source(path, site)
    if path.is_dir():
        return saelens_source(path, site)
    if not path.is_file():
        raise StoreError(f"There is no file {path}; check the path.")
    if _IDX.fullmatch(path.name):
        return idx_source(path, site)
    if path.suffix not in _SOURCES:
        raise StoreError(f"{path} cannot be imported: give {KINDS}.")
    return _SOURCES[path.suffix](path, site)


def _check_alike(first: Source, source: Source, dtype: str | None) -> None:
    if list(source.sites) != list(first.sites):
        raise StoreError(f"{source.path} has the sites {', '.join(source.sites)}, but {first.path} {', '.join(first.sites)}.")
    for site, d in source.sites.items():
        if d != first.sites[site]:
            raise StoreError(f"{source.path} has rows of width {d}, but {first.path} of width {first.sites[site]}.")
    if source.columns != first.columns:
        raise StoreError(
            f"{source.path} has the columns {', '.join(source.columns) or '(none)'}, but {first.path} "
            f"{', '.join(first.columns) or '(none)'}; import them one by one."
        )
    if dtype is None and source.dtype != first.dtype:
        raise StoreError(f"{source.path} holds {source.dtype}, but {first.path} {first.dtype}; choose one with --dtype.")
