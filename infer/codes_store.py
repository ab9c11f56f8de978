"""A store of codes: a CSR matrix [N, d_sae] in a Zarr v3 group, written as it comes and read by plain zarr and scipy.

    <codes>/zarr.json              group; attributes: format, shape, nnz, complete, and what the writer says of the SAE, the store, the encoder
    <codes>/indptr/                int64 [N + 1]: where each row begins in the next two, and their number
    <codes>/indices/               int32 [nnz]: latents, ascending within a row
    <codes>/data/                  float32 [nnz]: their codes, none of them zero
    <codes>/rows/                  int64 [N]: each row's number in the store that was encoded

Chunk files are raw little-endian numbers and their crc32c, like a store's. All of it is written into a folder beside, `.<codes>.writing`, which gets its name
at the end: what is found under the name is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import StoreError
from ..sae import Codes, RaggedCodes, SparseCodes, entry_rows, rows_of, to_ragged
from ..store.files import (
    Lock,
    crc_bytes,
    crc_of,
    json_crc,
    read_json,
    remove_set_aside,
    set_aside,
    sync_folder,
    write_files,
    write_json,
)
from ..store.layout import METADATA, group_metadata
from .codes_layout import ARRAYS, CHUNK, FORMAT, array_metadata, check_array, shape_of


class CSR(NamedTuple):
    """Codes of some rows: entries a row int64 [N]; latents int32 [M], ascending within a row; their codes float32 [M], none zero."""

    counts: np.ndarray
    indices: np.ndarray
    data: np.ndarray


def to_csr(codes: Codes, d_sae: int) -> CSR:
    """The codes that are not zero."""
    if isinstance(codes, SparseCodes):
        k = codes.indices.shape[1]
        rows = torch.arange(len(codes.indices), device=codes.indices.device).repeat_interleave(k)
        indices, values = codes.indices.reshape(-1), codes.values.reshape(-1)
    else:
        ragged = codes if isinstance(codes, RaggedCodes) else to_ragged(codes)
        rows, (indices, values, _) = entry_rows(ragged), ragged
    there = values != 0
    rows, indices, values = rows[there], indices[there], values[there]
    order = (rows * d_sae + indices).argsort()
    counts = torch.bincount(rows, minlength=rows_of(codes))
    return CSR(_numpy(counts), _numpy(indices[order].int()), _numpy(values[order].float()))


def write_codes(
    out: Path, batches: Iterable[tuple[np.ndarray, Codes]], d_sae: int, attributes: dict[str, Any], *, force: bool = False
) -> CodesStore:
    """Write a store of codes; whatever stops it leaves nothing under the name `out`, or what was there before.

    Args:
        batches: (int64 [n], the rows' numbers in the store that they are from; their codes), in order. No more than one is held.
        attributes: plain JSON, saved with it. force: replace a store of codes at `out`.

    Raises:
        StoreError: `out` exists, or is being written by another process.
    """
    check_free(out, force)
    with _beside(out) as folder:
        arrays = {name: _Growing(folder / name, dtype) for name, dtype in ARRAYS.items()}
        arrays["indptr"].add(np.zeros(1, np.int64))
        for rows, codes in batches:
            csr = to_csr(codes, d_sae)
            arrays["indptr"].add(arrays["indices"].length + csr.counts.cumsum())
            arrays["indices"].add(csr.indices)
            arrays["data"].add(csr.data)
            arrays["rows"].add(rows)
        for array in arrays.values():
            array.finish()
        shape, nnz = [arrays["rows"].length, d_sae], arrays["data"].length
        about = {"format": FORMAT, "shape": shape, "nnz": nnz, **attributes, "complete": True}
        write_json({folder / METADATA: group_metadata(about | {"attributes_crc32c": json_crc(about)})})
        _publish(folder, out, force)
    return open_codes(out)


class CodesStore:
    """A finished store of codes.

    Attributes:
        path. attributes: as saved. shape: (N, d_sae). nnz: codes in all. rows: int64 [N], their numbers in the store that was encoded.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        """Raises StoreError when the files of an array are not as long as the attributes say, or are of another kind."""
        import zarr

        self.path, self.attributes = path, attributes
        self.shape, self.nnz = shape_of(path, attributes)
        for name, length in (("indptr", self.shape[0] + 1), ("indices", self.nnz), ("data", self.nnz), ("rows", self.shape[0])):
            check_array(path / name, ARRAYS[name], length)
        group = zarr.open_group(str(path), mode="r", use_consolidated=False)
        self._arrays: dict[str, Any] = {name: group[name] for name in ARRAYS}

    def __repr__(self) -> str:
        return f"CodesStore({str(self.path)!r}, shape {self.shape}, {self.nnz} codes)"

    @property
    def rows(self) -> np.ndarray:
        return self._read("rows", 0, self.shape[0])

    def codes(self, a: int, b: int) -> RaggedCodes:
        """Codes of rows [a, b).

        Raises:
            StoreError: there are no such rows, or they are damaged.
        """
        if not 0 <= a <= b <= self.shape[0]:
            raise StoreError(f"{self.path} has codes of {self.shape[0]:,} rows; there are no rows {a} to {b}.")
        starts = self._read("indptr", a, b + 1)
        first, last = int(starts[0]), int(starts[-1])
        if not (first >= 0 and last <= self.nnz and (starts[1:] >= starts[:-1]).all()):
            raise StoreError(f"{self.path} is damaged: its rows do not begin one after the other; encode again with --force.")
        indices, values = self._read("indices", first, last), self._read("data", first, last)
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.shape[1]:
            raise StoreError(
                f"{self.path} is damaged: it has codes of latents that its SAE does not have; encode again with --force."
            )
        return RaggedCodes(torch.from_numpy(indices).long(), torch.from_numpy(values), torch.from_numpy(starts - first))

    def _read(self, name: str, a: int, b: int) -> np.ndarray:
        try:
            return np.asarray(self._arrays[name][a:b])
        except (OSError, ValueError) as error:  # a file that has gone, a checksum that is wrong
            raise StoreError(f"{self.path / name} is damaged ({error}); encode again with --force.") from None


def open_codes(path: str | Path) -> CodesStore:
    """Open a store of codes.

    Raises:
        StoreError: there is none at `path`, or it is damaged.
    """
    path = Path(path)
    return CodesStore(path, _attributes(path))


def check_free(out: Path, force: bool) -> None:
    """See that a store of codes can be written to `out`. Raises StoreError otherwise."""
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise StoreError(f"{out} exists already; give another --out, or --force to replace it.")
    try:
        _attributes(out)
    except StoreError:
        raise StoreError(f"{out} is not a store of codes, so that --force leaves it alone; give another --out.") from None


def _attributes(path: Path) -> dict[str, Any]:
    try:
        root = read_json(path / METADATA)
        found = root.get("attributes")
    except OSError:
        raise StoreError(f"There is no store of codes at {path}; `splinterp encode` writes one.") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("complete") is not True:
        raise StoreError(f"{path} is not a store of codes, or of another version of splinterp ({FORMAT} was expected).")
    described = root == group_metadata(dict(found))
    crc = found.pop("attributes_crc32c", None)  # stores of before have none
    if crc not in (None, json_crc(found)) or not described:
        raise StoreError(
            f"{path / METADATA} is damaged: its attributes do not match their checksum; encode again with --force."
        )
    return found


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """An empty folder within one beside `out` that is this process's own and gone at the end, whatever happens; what a killed one left goes
    first."""
    own = out.with_name(f".{out.name}.writing")
    own.mkdir(parents=True, exist_ok=True)
    lock, folder = Lock(own), own / "codes"
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        yield folder
    finally:
        lock.release()
        shutil.rmtree(own, ignore_errors=True)


def _publish(folder: Path, out: Path, force: bool) -> None:
    """Give the folder the name `out`."""
    for path in (*(folder / name for name in ARRAYS), folder):
        sync_folder(path)
    check_free(out, force)  # somebody else may have come first
    if out.exists() or out.is_symlink():
        set_aside(out)
    folder.rename(out)
    sync_folder(out.absolute().parent)
    remove_set_aside(out)


class _Growing:
    """One array of unknown length: chunks go to their files as soon as they are full, the metadata at the end."""

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self.folder, self.dtype, self.length = folder, dtype, 0
        self._waiting: list[np.ndarray] = []
        self._chunks = 0
        folder.mkdir()

    def add(self, numbers: np.ndarray) -> None:
        """Take numbers [n]."""
        self._waiting.append(numbers.astype(self.dtype))
        self.length += len(numbers)
        while self.length - self._chunks * CHUNK >= CHUNK:
            joined = np.concatenate(self._waiting)
            self._write(joined[:CHUNK])
            self._waiting = [joined[CHUNK:]]

    def finish(self) -> None:
        """Write what is left, and the array's metadata."""
        size = CHUNK if self._chunks else max(1, self.length)
        fill = float("nan") if self.dtype.kind == "f" else -1  # of a chunk that is missing: seen at once
        if self.length > self._chunks * CHUNK:
            last = np.full(size, fill, self.dtype)
            rest = np.concatenate(self._waiting)
            last[: len(rest)] = rest
            self._write(last)
        self._waiting = []
        write_json({self.folder / METADATA: array_metadata(self.dtype, self.length, size)})

    def _write(self, chunk: np.ndarray) -> None:
        path = self.folder / f"c.{self._chunks}"
        checksum = memoryview(crc_bytes(crc_of([chunk])))
        # Durable before the folder has its name; the folder itself is synced once, by then.
        write_files([(path, [np.ascontiguousarray(chunk).data.cast("B"), checksum])], sync_folders=False)
        self._chunks += 1


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
