"""Any other Zarr layout of rows [N, d], read through the zarr library: the interface of a store, at zarr's speed."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import StoreError
from .batches import RowReader
from .files import read_json
from .foreign_arrays import DAMAGE, arrays_at, kept_as
from .histogram import median_and_outliers, norm_histogram, summed
from .layout import KEY, LOG, MANIFEST, METADATA, STORAGE
from .pool import column_sums, row_norms
from .reader import Site, Store
from .sources import SLAB_BYTES

NOTE = "not a splinterp store: it is read through zarr, which is slower; `splinterp import` makes a store of it"
CACHE_BYTES = 256 * 2**20
STATISTICS = ("mean", "mean_norm", "rms_norm", "min_norm", "max_norm", "median_norm", "outliers")


def is_foreign(path: Path) -> bool:
    """Whether `path` holds sound Zarr metadata that is not ours (format 3), or any of format 2."""
    if not (path / METADATA).is_file():
        return any((path / name).is_file() for name in (".zarray", ".zgroup"))
    try:
        root = read_json(path / METADATA)
    except (StoreError, OSError):
        return False
    attributes = root.get("attributes") or {}
    # With a manifest it is a store of ours whose root is damaged: that must be said, not read around.
    ours = any((path / name).exists() for name in (LOG, MANIFEST)) or (isinstance(attributes, dict) and KEY in attributes)
    return root.get("zarr_format") == 3 and root.get("node_type") in ("group", "array") and not ours


class ForeignSite(Site):
    """A site whose statistics are computed, in one pass over its rows, when one of them is first asked for."""

    def __init__(self, name: str, rows: int, d: int, dtype: str, scan: Callable[[str], dict[str, Any]]) -> None:
        vars(self).update(name=name, rows=rows, d=d, dtype=dtype, _scan=scan)

    def __getattr__(self, name: str) -> Any:
        if name not in STATISTICS:
            raise AttributeError(name)
        vars(self).update(self._scan(self.name))
        return vars(self)[name]


class ForeignStore(Store):
    """Reads Zarr arrays [N, d] of float16, float32, float64 (given as float32), or bfloat16 kept as uint16.

    A bare array is one site, named like its folder; a group's two-dimensional arrays are sites, named by their paths.
    There are no columns. `mean`, the norms and `fingerprint` cost a pass over the rows when first asked for.
    """

    note = NOTE

    def __init__(self, path: Path) -> None:
        """Raises StoreError when there are no such arrays, or they have different lengths."""
        self.path = path
        self._zarr, told = arrays_at(path)
        lengths = {array.shape[0] for array in self._zarr.values()}
        if len(lengths) > 1:
            names = ", ".join(f"{name} {list(array.shape)}" for name, array in self._zarr.items())
            raise StoreError(f"{path} holds arrays of different lengths ({names}); name one of them by its own path.")
        self.rows = lengths.pop()
        if not self.rows:
            raise StoreError(f"{path} holds no rows.")
        self.attributes = {"status": "complete", **told}
        self.status = "complete"
        self.columns = ()
        self.chunks = sum(array.nchunks for array in self._zarr.values())
        self.chunk_rows = next(iter(self._zarr.values())).chunks[0]
        self.sites = {
            name: ForeignSite(name, self.rows, array.shape[1], kept_as(array), self._scan) for name, array in self._zarr.items()
        }
        self._digests: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        # `fingerprint` is an attribute of every store; here it costs a pass, so it waits until it is asked for.
        if name != "fingerprint":
            raise AttributeError(name)
        for site in self.sites:
            if site not in self._digests:
                self._scan(site)
        self.fingerprint = hashlib.sha256(repr(sorted(self._digests.items())).encode()).hexdigest()[:16]
        return self.fingerprint

    def holds(self, site: str) -> str:
        """The dtype of a site's numbers in the files."""
        return str(self._zarr[site].dtype)

    def acts(self, site: str | None, a: int, b: int) -> torch.Tensor:
        """Rows [a, b) of a site as [b-a, d] in the storage dtype, a copy.

        Raises:
            StoreError: rows out of range, no such site, or a chunk that cannot be decoded.
        """
        chosen = self.site(site)
        if not 0 <= a <= b <= self.rows:
            raise StoreError(f"{self.path} has {self.rows} rows; there are no rows {a} to {b}.")
        return self._read(chosen, a, b)

    def column(self, name: str, a: int = 0, b: int | None = None) -> np.ndarray:
        """Raises StoreError: there are no columns here."""
        raise StoreError(f"{self.path} has no column '{name}'; it has none.")

    def spans(self) -> Iterator[tuple[int, int]]:
        """[a, b) that cover the rows in order, about 32 MiB each and in whole chunks, so that each is decoded once."""
        row_bytes = max(site.d * STORAGE[site.dtype].itemsize for site in self.sites.values())
        step = self.chunk_rows * max(1, SLAB_BYTES // (row_bytes * self.chunk_rows))
        for a in range(0, self.rows, step):
            yield a, min(self.rows, a + step)

    def info(self) -> dict[str, Any]:
        """As for any store, with `note`; the norms cost a pass over the rows the first time."""
        return {
            "path": str(self.path),
            "note": self.note,
            "status": self.status,
            "rows": self.rows,
            "splits": self.splits(),
            "sites": [site.info() for site in self.sites.values()],
            **{key: self.attributes.get(key) for key in ("model", "dataset", "context")},
            "chunks": self.chunks,
            "bytes": sum(array.nbytes_stored() for array in self._zarr.values()),
            "dropped_non_finite": 0,
            "dropped_outliers": 0,
            "fingerprint": self.fingerprint,
        }

    def _row_reader(self, site: Site) -> RowReader:
        return _Decoded(lambda a, b: self._read(site, a, b), self._zarr[site.name].chunks[0], self.rows)

    def _read(self, site: Site, a: int, b: int) -> torch.Tensor:
        try:
            values = np.asarray(self._zarr[site.name][a:b])
        except DAMAGE as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise StoreError(f"{self.path} cannot be read at rows {a} to {b} of {site.name}: {reason}.") from None
        storage = STORAGE[site.dtype]
        # float64 is narrowed; a number beyond float32's range becomes infinite and shows in the statistics.
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.ascontiguousarray(values, storage.numpy)).view(storage.torch)

    def _scan(self, name: str) -> dict[str, Any]:
        """Mean [d] float64 and norm statistics of a site, and its digest, in one pass.

        Raises:
            StoreError: rows that are not finite.
        """
        site, digest = self.sites[name], hashlib.sha256()
        total, norm, square, low, high, bad = np.zeros(site.d), 0.0, 0.0, math.inf, 0.0, 0
        histogram: dict[str, int] = {}
        for a, b in self.spans():
            x = self._read(site, a, b)
            norms = row_norms(x).numpy()
            bad += int((~np.isfinite(norms)).sum())
            if not bad:
                total += column_sums(x)
                norm, square = norm + float(norms.sum()), square + float((norms * norms).sum())
                low, high = min(low, float(norms.min())), max(high, float(norms.max()))
                histogram = summed([histogram, norm_histogram(norms)])
                digest.update(x.view(torch.uint8).numpy().data)
        if bad:
            raise StoreError(
                f"{self.path} has {bad} rows at {name} that are not finite (or chunks that are missing); "
                "`splinterp import` makes a store without them."
            )
        self._digests[name] = digest.hexdigest()
        n = self.rows
        median_and_count = median_and_outliers(histogram, low, high)
        statistics = (torch.from_numpy(total / n), norm / n, math.sqrt(square / n), low, high, *median_and_count)
        return dict(zip(STATISTICS, statistics, strict=True))


class _Decoded:
    """Rows in groups of whole chunks, those last used kept: blocks of 256 rows would decode a large chunk over and over."""

    def __init__(self, read: Callable[[int, int], torch.Tensor], group_rows: int, rows: int) -> None:
        self._read, self._group_rows, self._rows = read, group_rows, rows
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def announce(self, spans: list[tuple[int, int]]) -> None:
        """zarr has no such thing as reading ahead."""

    def read(self, a: int, b: int, into: memoryview) -> int:
        first, at = a, 0
        while first < b:
            group, skip = divmod(first, self._group_rows)
            rows = self._group(group)
            piece = rows[skip : skip + b - first]
            into[at : at + piece.nbytes] = piece.reshape(-1).data
            first, at = first + len(piece), at + piece.nbytes
        return b - a

    def settle(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        self._kept.clear()

    def _group(self, group: int) -> np.ndarray:
        """Rows of a group as bytes, uint8 [n, row bytes]."""
        found = self._kept.pop(group, None)
        if found is None:
            a = group * self._group_rows
            found = self._read(a, min(a + self._group_rows, self._rows)).view(torch.uint8).numpy()
        self._kept[group] = found
        while len(self._kept) > 1 and len(self._kept) * found.nbytes > CACHE_BYTES:
            self._kept.popitem(last=False)
        return found
