"""The store against the bare limits of this machine: raw file writing, and a copy out of a memory map.

    splinterp bench store --gb 1 --d 768 --dtype bfloat16 --rounds 5
    splinterp bench store --store acts.zarr      # its rows: normal numbers say little of how activations compress

Every contender runs once a round, one after the other, so that a busy machine slows all alike; a ratio is taken within its
round, and the table gives the median over rounds with the smallest and largest. "Cold" means that the files were synced and
then dropped from the page cache (posix_fadvise DONTNEED) just before; the disk's own cache is beyond reach. Ahead of each run
the page cache is filled and freed once: a virtual machine's host lends memory page by page and takes back what lies idle, and a
page not lent costs 10 times the copy into it, by chance at one contender's cost or another's. torch works with one thread.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import store as stores
from ..errors import SplinterpError
from ..quantities import format_bytes
from ..store.layout import STORAGE, default_chunk_rows
from .contest import compare, measure, touch_page_cache

SITE = "hook"
BATCH = 4096
COLUMNS = ("token_id", "position", "document", "sequence")
WRITE_LIMIT, READ_LIMIT = "raw write", "memmap copy"
WRITERS, READERS = 6, 10
# What lies in the folder at the same time, in units of the rows: our store, raw chunks, an archive, two zarr arrays, and the scratch.
ROOM = 7


@dataclass(frozen=True, kw_only=True)
class StoreBench:
    """What to measure.

    Raises:
        SplinterpError: a value that cannot be.
    """

    gb: float = 1.0
    """Size of the rows in GB."""
    d: int = 768
    """Width of the rows, where they are made up."""
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    """One table each, where they are made up."""
    store: str | None = None
    """Take the rows, d and dtype of this store. None: normal random numbers."""
    site: str | None = None
    """Of the store, where it has several."""
    reading: bool = True
    """False: only the table of writing."""
    rounds: int = 5
    folder: Path | None = None
    """On the disk to be measured. None: the system's temporary folder."""

    def __post_init__(self) -> None:
        for what, value in (("size in GB", self.gb), ("width", self.d), ("number of rounds", self.rounds)):
            if not value > 0:
                raise SplinterpError(f"The {what} must be more than 0, not {value}.")
        for dtype in self.dtypes:
            if dtype not in STORAGE:
                raise SplinterpError(f"A store cannot hold '{dtype}'; choose from {', '.join(STORAGE)}.")
        if self.folder is not None and not self.folder.is_dir():
            raise SplinterpError(f"{self.folder} is no folder; name one on the disk to be measured.")

    @property
    def steps(self) -> int:
        """Contenders' runs in a table."""
        return self.rounds * (WRITERS + 2 * READERS * self.reading)


def run(config: StoreBench, progress: Callable[[], None] | None = None) -> Iterator[dict[str, Any]]:
    """A result for each dtype (see `measure_all`); `progress` is called after each contender's run.

    Raises:
        SplinterpError: the disk has too little room, or the store cannot be read.
    """
    torch.set_num_threads(1)  # memmap copies have one thread too; several would wait for each other on a busy machine
    taken = None if config.store is None else take_rows(config.store, config.site, config.gb)
    for dtype in config.dtypes if taken is None else (taken[1],):
        folder = Path(tempfile.mkdtemp(prefix="splinterp-bench-", dir=config.folder))
        try:
            size = int(config.gb * 1e9) if taken is None else taken[0].nbytes
            free = shutil.disk_usage(folder).free
            if free < ROOM * size:
                raise SplinterpError(
                    f"{folder.parent} has {format_bytes(free)} free, and this takes {format_bytes(ROOM * size)}; "
                    "give a smaller --gb or another --folder."
                )
            x = make_rows(size, config.d, dtype) if taken is None else taken[0]
            yield measure_all(x, config.store or "normal random", dtype, config, folder, progress or (lambda: None))
        finally:
            shutil.rmtree(folder)


def make_rows(size: int, d: int, dtype: str) -> torch.Tensor:
    """[rows, d], `size` bytes of normal numbers, every row different.

    A source as large, and as cold in the processor's caches, as a harvest.
    """
    rows = max(BATCH, size // (d * STORAGE[dtype].itemsize))
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(rows, d, dtype=STORAGE[dtype].torch)
    for part in x.split(BATCH):
        part.copy_(torch.randn(part.shape, generator=generator))
    return x


def take_rows(path: str, site: str | None, gb: float) -> tuple[torch.Tensor, str]:
    """([rows, d], dtype): a store's first `gb` of a site, or all of it."""
    opened = stores.open(path)
    chosen = opened.site(site)
    rows = min(opened.rows, int(gb * 1e9 / (chosen.d * STORAGE[chosen.dtype].itemsize)))
    return opened.acts(chosen.name, 0, rows).clone(), chosen.dtype


def write_raw(x: torch.Tensor, folder: Path, chunk_rows: int, threads: int) -> None:
    """The limit: each chunk's bytes straight from `x` into a file, 1 MiB a call, one fsync a file."""
    data = x.view(torch.uint8).numpy().reshape(-1).data
    size = chunk_rows * x.shape[1] * x.element_size()

    def write(i: int) -> None:
        part = data[i * size : (i + 1) * size]
        fd = os.open(folder / f"raw.{i}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        while part:
            part = part[os.write(fd, part[: 2**20]) :]
        os.fsync(fd)
        os.close(fd)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(-(-len(data) // size))))


def write_ours(x: torch.Tensor, path: Path, dtype: str, chunk_rows: int) -> None:
    """The writer as a harvest uses it: shuffled, checksummed, with statistics and four columns; batches of 16,384 rows.

    The pool is an eighth of the rows, so that it turns over as in a harvest that is much larger than its pool.
    """
    memory = x.numel() * x.element_size() // 4
    with stores.create(
        path, sites={SITE: x.shape[1]}, dtype=dtype, columns=COLUMNS, rows=len(x), chunk_rows=chunk_rows, memory=memory
    ) as writer:
        for a in range(0, len(x), 16384):
            part = x[a : a + 16384]
            numbers = np.arange(a, a + len(part))
            writer.add({SITE: part}, dict.fromkeys(COLUMNS, numbers))
        writer.finish()


def write_archive(store: Path, path: Path) -> None:
    """`splinterp copy --compress` of the store that `write_ours` wrote: read, checked, compressed, written."""
    stores.copy(store, path, compress=True)


def zarr_array(path: Path, x: torch.Tensor, chunk_rows: int, compressed: bool) -> Any:
    """A fresh zarr array of `x`'s shape, its bits as uint16 for bfloat16: blosc lz4 with bitshuffle, or no codec."""
    import zarr
    from zarr.codecs import BloscCodec

    numbers = _numbers(x)
    codec = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=numbers.itemsize)
    return zarr.create_array(
        path, shape=numbers.shape, dtype=numbers.dtype, chunks=(chunk_rows, x.shape[1]), compressors=codec if compressed else None
    )  # fmt: skip


def write_zarr(x: torch.Tensor, array: Any) -> None:
    numbers, chunk_rows = _numbers(x), array.chunks[0]
    for a in range(0, len(x), chunk_rows):
        array[a : a + chunk_rows] = numbers[a : a + chunk_rows]
    # zarr does not sync; the time to reach the disk belongs to the writing all the same.
    for file in _files(Path(array.store.root)):
        _with_fd(file, os.fsync)


def read_memmap(path: Path, x: torch.Tensor, chunk_rows: int) -> None:
    """The limit: every row copied out of the chunk files' memory maps, in order, into one reused batch."""
    numbers = _numbers(x)
    into = np.empty((BATCH, x.shape[1]), numbers.dtype)
    for i in range(-(-len(x) // chunk_rows)):
        rows = min(chunk_rows, len(x) - i * chunk_rows)
        chunk = np.memmap(path / SITE / "acts" / f"c.{i}.0", numbers.dtype, "r", shape=(rows, x.shape[1]))
        for a in range(0, rows, BATCH):
            part = chunk[a : a + BATCH]
            into[: len(part)] = part


def read_sequential(path: Path, x: torch.Tensor) -> None:
    """`Store.acts` in order, each batch copied into one reused tensor."""
    opened, into = stores.open(path), torch.empty(BATCH, x.shape[1], dtype=x.dtype)
    for a in range(0, len(x), BATCH):
        part = opened.acts(SITE, a, min(a + BATCH, len(x)))
        into[: len(part)].copy_(part)


def read_batches(path: Path, shuffle: bool) -> None:
    """`Store.batches`: each batch arrives in a buffer, ready to use."""
    for _ in stores.open(path).batches(SITE, BATCH, split="all", shuffle=shuffle):
        pass


def read_zarr(path: Path) -> None:
    """Plain zarr, `z[a:b]` in order, a batch at a time."""
    import zarr

    array: Any = zarr.open(path, mode="r")
    for a in range(0, array.shape[0], BATCH):
        array[a : a + BATCH]


def measure_all(
    x: torch.Tensor, source: str, dtype: str, config: StoreBench, folder: Path, progress: Callable[[], None]
) -> dict[str, Any]:
    """Run every contender with rows `x` [rows, d] in `folder`.

    Returns:
        What was measured; `gb_per_s` and `ratios` by table (write; read, cold; read, warm) and contender.
    """
    rows, d = x.shape
    rounds, row_bytes = config.rounds, d * x.element_size()
    # A chunk as for a large store, but at least eight of them, so that there are files to go through.
    chunk_rows = min(default_chunk_rows(row_bytes, None), max(256, 2 ** ((rows // 8).bit_length() - 1)))
    ours, archive, plain, packed = folder / "ours", folder / "archive", folder / "plain.zarr", folder / "blosc.zarr"
    write_ours(x, ours, dtype, chunk_rows)

    def fresh(name: str) -> None:
        # Removing old files and settling the disk are nobody's work here.
        outputs = {"ours": [ours], "archive": [archive], "zarr": [plain], "zarr blosc": [packed]}
        for old in outputs.get(name, folder.glob("raw.*")):
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
        os.sync()
        touch_page_cache(folder, 2 * x.nbytes)
        if name == "archive":  # made from a store that is in the page cache
            read_memmap(ours, x, chunk_rows)

    tables = {}
    writing = measure(
        {
            WRITE_LIMIT: lambda: write_raw(x, folder, chunk_rows, 1),
            "raw write, 2 threads": lambda: write_raw(x, folder, chunk_rows, 2),
            "ours": lambda: write_ours(x, ours, dtype, chunk_rows),
            "archive": lambda: write_archive(ours, archive),
            "zarr": lambda: write_zarr(x, zarr_array(plain, x, chunk_rows, False)),
            "zarr blosc": lambda: write_zarr(x, zarr_array(packed, x, chunk_rows, True)),
        },
        rounds,
        fresh,
        progress,
    )
    tables["write"] = (writing, WRITE_LIMIT)
    fresh(WRITE_LIMIT)
    stored = sum(file.stat().st_size for file in _files(archive / SITE))
    reading = {
        READ_LIMIT: lambda: read_memmap(ours, x, chunk_rows),
        "ours, sequential": lambda: read_sequential(ours, x),
        "ours, batches in order": lambda: read_batches(ours, False),
        "ours, shuffled batches": lambda: read_batches(ours, True),
        "archive, sequential": lambda: read_sequential(archive, x),
        "archive, batches in order": lambda: read_batches(archive, False),
        "archive, shuffled batches": lambda: read_batches(archive, True),
        "zarr on our store": lambda: read_zarr(ours / SITE / "acts"),
        "zarr": lambda: read_zarr(plain),
        "zarr blosc": lambda: read_zarr(packed),
    }

    def cold(_: str) -> None:
        forget([ours, archive, plain, packed])
        touch_page_cache(folder, x.nbytes)

    if config.reading:
        tables["read, cold"] = (measure(reading, rounds, cold, progress), READ_LIMIT)
        for contender in reading.values():
            contender()
        tables["read, warm"] = (measure(reading, rounds, lambda _: None, progress), READ_LIMIT)
    return {
        "rows": rows,
        "d": d,
        "dtype": dtype,
        "chunk_rows": chunk_rows,
        "rounds": rounds,
        "source": source,
        "compression": rows * row_bytes / stored,
        "gb_per_s": {
            title: {name: rows * row_bytes / 1e9 / statistics.median(times) for name, times in seconds.items()}
            for title, (seconds, _) in tables.items()
        },
        "ratios": {title: compare(seconds, limit) for title, (seconds, limit) in tables.items()},
    }


def forget(folders: list[Path]) -> None:
    """Drop the folders' files from the page cache."""
    for folder in folders:
        for file in _files(folder):
            _with_fd(file, os.fsync)
            _with_fd(file, lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED))


def table(result: dict[str, Any]) -> str:
    """Markdown: a line a contender, its speed, and its share of the limit with the smallest and largest over the rounds."""
    lines = [
        f"{result['rows']:,} rows, d={result['d']}, {result['dtype']}, {result['chunk_rows']:,} rows a chunk, {result['rounds']} rounds; "
        f"the archive is {result['compression']:.2f} times smaller than these rows ({result['source']}).",
        "",
        "| | | GB/s | of the limit | over rounds |",
        "|---|---|---|---|---|",
    ]
    for title, shares in result["ratios"].items():
        for name, s in shares.items():
            speed = result["gb_per_s"][title][name]
            lines.append(f"| {title} | {name} | {speed:.2f} | {s['median']:.2f} | {s['low']:.2f} – {s['high']:.2f} |")
    return "\n".join(lines)


def _numbers(x: torch.Tensor) -> np.ndarray:
    return (x.view(torch.uint16) if x.dtype is torch.bfloat16 else x).numpy()


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def _with_fd(file: Path, act: Callable[[int], Any]) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        act(fd)
    finally:
        os.close(fd)
