"""What a writer is asked to make: validated parameters, and everything that follows from them alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import StoreError
from .layout import (
    STORAGE,
    STORE_VERSION,
    Array,
    Storage,
    arrays_of,
    check_name,
    default_chunk_rows,
    default_pool_chunks,
)
from .manifest import Line
from .places import AnyPath

RESERVED = (
    "format_version",
    "status",
    "rows",
    "planned_rows",
    "chunk_rows",
    "pool_chunks",
    "seed",
    "dtype",
    "sites",
    "columns",
    "compression",
    "max_norms",
    "offered_rows",
    "dropped_non_finite",
    "dropped_outliers",
    "manifest_crc32c",
    "metadata_crc32c",
    "attributes_crc32c",
)


@dataclass(frozen=True)
class Plan:
    """The parameters of a store being written. Two plans that are equal make byte-identical stores of one source.

    max_norms: by site, the Euclidean norm above which a row is left out, everywhere; None: no row is.
    """

    path: AnyPath
    sites: dict[str, int]
    dtype: str
    columns: tuple[str, ...]
    rows: int | None
    seed: int
    chunk_rows: int
    pool_chunks: int
    attributes: dict[str, Any] = field(default_factory=dict)
    compression: str | None = None
    max_norms: dict[str, float] | None = None

    @property
    def arrays(self) -> list[Array]:
        return arrays_of(self.sites, self.dtype, self.columns, self.compression is not None)

    @property
    def storage(self) -> Storage:
        return STORAGE[self.dtype]

    @property
    def pool_rows(self) -> int:
        return self.pool_chunks * self.chunk_rows

    @property
    def resumable(self) -> bool:
        """Harvests can be resumed; imports, merges and subsets name their source, and are begun again."""
        return "source" not in self.attributes

    def generation_size(self, generation: int) -> int:
        """Rows that pool generation `generation` takes: a pool full, or what is left of the planned rows."""
        if self.rows is None:
            return self.pool_rows
        return max(0, min(self.pool_rows, self.rows - generation * self.pool_rows))

    def permutation(self, generation: int) -> np.ndarray:
        """[generation_size] int64: the pool slot of each incoming row, a function of (seed, generation) alone."""
        return np.random.default_rng([self.seed, generation]).permutation(self.generation_size(generation))

    def chunks_of(self, generation: int, rows: int) -> range:
        """Chunk indices that the first `rows` slots of a generation fill."""
        first = generation * self.pool_chunks
        return range(first, first + -(-rows // self.chunk_rows))

    def root_attributes(self, status: str, rows: int, more: dict[str, Any]) -> dict[str, Any]:
        """The store's attributes: ours, the creator's, then `more`."""
        return {
            "format_version": STORE_VERSION,
            "status": status,
            "rows": rows,
            "planned_rows": self.rows,
            "chunk_rows": self.chunk_rows,
            "pool_chunks": self.pool_chunks,
            "seed": self.seed,
            "dtype": self.dtype,
            "sites": dict(self.sites),
            "columns": list(self.columns),
            **({"compression": self.compression} if self.compression else {}),
            **({"max_norms": self.max_norms} if self.max_norms else {}),
            **self.attributes,
            **more,
        }

    def committed(self, lines: dict[int, Line]) -> tuple[int, int, int, int]:
        """(generations, rows, offered, dropped_outliers) of the leading generations that are wholly committed."""
        generation = rows = offered = outliers = 0
        while size := self.generation_size(generation):
            done = [lines.get(i) for i in self.chunks_of(generation, size)]
            if any(line is None or line.generation_rows != size for line in done):
                break
            rows, offered = rows + size, max(line.offered for line in done if line)
            outliers = max(line.dropped_outliers for line in done if line)
            generation += 1
        return generation, rows, offered, outliers


def make_plan(
    path: AnyPath,
    *,
    sites: dict[str, int],
    dtype: str,
    columns: tuple[str, ...],
    rows: int | None,
    attributes: dict[str, Any] | None,
    seed: int,
    memory: int,
    chunk_rows: int | None,
    max_norms: Mapping[str, float] | None = None,
) -> Plan:
    """Validate a creator's parameters and choose chunk and pool sizes.

    Raises:
        StoreError: naming the parameter that cannot be.
    """
    if dtype not in STORAGE:
        raise StoreError(f"A store cannot hold '{dtype}'; choose one of {', '.join(STORAGE)}.")
    if not sites:
        raise StoreError("A store needs at least one site.")
    for name, d in sites.items():
        check_name(name, "site")
        if d < 1:
            raise StoreError(f"Site '{name}' must have a width of at least 1, not {d}.")
    for name in columns:
        check_name(name, "column")
    names = [*sites, *columns]
    if len(set(names)) < len(names):
        raise StoreError(f"Sites and columns must have different names, not {', '.join(names)}.")
    for what, value in (("rows", rows), ("chunk_rows", chunk_rows)):
        if value is not None and value < 1:
            raise StoreError(f"The store's {what} must be at least 1, not {value}.")
    for name, largest in (max_norms or {}).items():
        if name not in sites:
            raise StoreError(f"There is no site '{name}' to bound the norms of; the sites are {', '.join(sites)}.")
        if not 0 < largest < math.inf:
            raise StoreError(f"The largest norm at site '{name}' must be a positive number, not {largest}.")
    if seed < 0:
        raise StoreError(f"The seed must not be negative, but it is {seed}.")
    plain = plain_attributes(attributes)
    arrays = arrays_of(sites, dtype, columns)
    size = chunk_rows or default_chunk_rows(max(a.row_bytes for a in arrays), rows)
    # A row in the pool also has a norm at each site, and a slot: 8 bytes each.
    pooled = sum(a.row_bytes for a in arrays) + 8 * (len(sites) + 1)
    pool = default_pool_chunks(pooled, size, rows, memory)
    bounds = {name: float(largest) for name, largest in max_norms.items()} if max_norms else None
    return Plan(path, dict(sites), dtype, tuple(columns), rows, seed, size, pool, plain, max_norms=bounds)


def plain_attributes(attributes: dict[str, Any] | None) -> dict[str, Any]:
    """A creator's attributes as JSON gives them back.

    Raises:
        StoreError: a name is the store's own, or a value is not plain JSON.
    """
    taken = sorted(set(attributes or {}) & set(RESERVED))
    if taken:
        raise StoreError(f"The attribute '{taken[0]}' is the store's own; give yours another name.")
    try:
        return json.loads(json.dumps(attributes or {}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(f"The store's attributes must be plain JSON values: {error}.") from None
