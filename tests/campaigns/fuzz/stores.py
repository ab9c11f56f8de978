"""Stores: ours whole and being written, archives, the kept pool, other Zarr."""

from __future__ import annotations

import json
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch
import zarr
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store import manifest
from splinterp.store.create import create
from splinterp.store.files import json_crc
from splinterp.store.foreign import ForeignStore
from splinterp.store.opening import open_any

from .kit import Prepared, Target
from .trees import Tree, encoded, reread

ROWS, D = 700, 3


def acts() -> torch.Tensor:
    return torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0))


def make(path: Path, *, finished: bool = True, columns: bool = True, resume: bool = False) -> None:
    """A store of two chunks and a bit, or most of it; with `resume` the rest."""
    told = {"token_id": np.arange(ROWS), "position": np.arange(ROWS) % 64} if columns else {}
    writer = create(
        path, sites={"h": D}, dtype="float32", columns=tuple(told), rows=ROWS, chunk_rows=256, attributes={"model": "tiny"}, memory=2**13, resume=resume
    )  # fmt: skip
    try:
        first, last = min(ROWS, writer.resume_offered) if resume else 0, ROWS if finished else 600
        writer.add({"h": acts()[first:last]}, {name: column[first:last] for name, column in told.items()})
        if finished:
            writer.finish()
    finally:
        writer.close()


def look(path: Path) -> None:
    """All that reads a store: its description, its rows, its columns, and both kinds of verification."""
    problems = store.verify(path, full=True)
    assert all(isinstance(problem, str) and problem for problem in problems)
    opened = open_any(path, unfinished=True)
    json.dumps(opened.info())
    for name in opened.sites:
        for batch in opened.batches(name, 100, split="all"):
            assert batch.shape[1] == opened.sites[name].d
        opened.acts(name, 0, min(5, opened.rows))
    for name in opened.columns:
        opened.column(name, 0, min(5, opened.rows))


def sealed(files: dict[str, bytes], told: dict[str, Any]) -> None:
    """Every checksum in a store's root, and in the lines of its log, as the files have it."""
    if "log.jsonl" in files:
        files["log.jsonl"] = b"".join(map(_resealed, files["log.jsonl"].splitlines(keepends=True)))
    root = reread(files, "zarr.json")
    ours = root.get("attributes", {}) if isinstance(root, dict) else None
    ours = ours.get("splinterp") if isinstance(ours, dict) else None
    if not isinstance(ours, dict):
        return
    if "manifest.jsonl" in files and isinstance(ours.get("manifest_crc32c"), int):
        ours["manifest_crc32c"] = google_crc32c.value(files["manifest.jsonl"])
    known = ours.get("metadata_crc32c")
    for name in known if isinstance(known, dict) else ():
        if name in files:
            known[name] = google_crc32c.value(files[name])
    ours.pop("attributes_crc32c", None)
    ours["attributes_crc32c"] = json_crc(ours)
    files["zarr.json"] = encoded(root)


def _resealed(line: bytes) -> bytes:
    """A log's line with the checksum that fits, where it has one."""
    value = reread({"line": line}, "line")
    if not isinstance(value, dict) or "line_crc32c" not in value:
        return line
    del value["line_crc32c"]
    return manifest.sealed(json.dumps(value, separators=(",", ":")).encode() + b"\n")


def whole(folder: Path) -> Prepared:
    path = folder / "acts.zarr"
    make(path)
    tree = Tree(path, ["zarr.json", "manifest.jsonl", "h/zarr.json", "h/acts/zarr.json", "token_id/zarr.json"], sealed)

    def one(data: bytes) -> None:
        tree.write(data)
        look(path)

    return Prepared([tree.seed(), tree.seed(repair=False)], one)


def unfinished(folder: Path) -> Prepared:
    """The log of a store being written, and the rows kept for it: it is read, and then gone on with."""
    path, kept = folder / "acts.zarr", folder / "kept.zarr"
    make(kept, finished=False)
    tree = Tree(kept, ["log.jsonl", "zarr.json", *(["pool"] if (kept / "pool").exists() else [])], sealed)

    def one(data: bytes) -> None:
        tree.write(data)
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(kept, path)
        manifest.parse((path / "log.jsonl").read_bytes() if (path / "log.jsonl").exists() else b"", path)
        with suppress(StoreError):
            look(path)
        make(path, resume=True)
        look(path)

    return Prepared([tree.seed()], one)


def archive(folder: Path) -> Prepared:
    """A chunk file of an archive: blosc's frames and their index. The checksums are made to fit."""
    make(folder / "plain.zarr", columns=False)
    path = folder / "small.zarr"
    store.copy(folder / "plain.zarr", path, compress=True)
    chunk = path / "h" / "acts" / "c.0.0"
    sound = chunk.read_bytes()
    root, lines = json.loads((path / "zarr.json").read_bytes()), (path / "manifest.jsonl").read_bytes().splitlines()

    def one(data: bytes) -> None:
        body = bytearray(data)
        # Behind every frame and the index their own crc32c, as a forger would have them: of one frame a chunk.
        if len(body) >= 24:
            size = len(body) - 16 - 4 - 4
            if data[:1] != b"\xff":
                body[-20:-4] = struct.pack("<QQ", 0, size + 4)
            body[size : size + 4] = google_crc32c.value(bytes(body[:size])).to_bytes(4, "little")
            body[-4:] = google_crc32c.value(bytes(body[-20:-4])).to_bytes(4, "little")
        chunk.write_bytes(bytes(body))
        line = json.loads(lines[0])
        line["stored"]["h/acts"] = [len(body), 0]
        files = {"manifest.jsonl": b"\n".join([encoded(line), *lines[1:]]) + b"\n", "zarr.json": encoded(root)}
        sealed(files, {})
        for name, content in files.items():
            (path / name).write_bytes(content)
        look(path)

    return Prepared([sound], one)


V2 = {"zarr_format": 2, "shape": [300, 3], "chunks": [100, 3], "dtype": "<f4", "order": "C", "fill_value": 0.0, "filters": None}


def foreign(folder: Path) -> Prepared:
    """Other Zarr: an array of format 3, one of format 2, and a group of two."""
    x = acts()[:300].numpy()
    three, two, group = folder / "three", folder / "two", folder / "group"
    zarr.create_array(three, shape=x.shape, dtype="f4", chunks=(100, D))[:] = x
    zarr.create_array(two, shape=x.shape, dtype="f4", chunks=(100, D), zarr_format=2)[:] = x
    made = zarr.create_group(group)
    made.create_array("a", shape=x.shape, dtype="f4", chunks=(100, D), shards=(200, D))[:] = x
    trees = [Tree(three, ["zarr.json"]), Tree(two, [".zarray", ".zattrs"]), Tree(group, ["zarr.json", "a/zarr.json"])]

    def one(data: bytes) -> None:
        tree = next((tree for tree in trees if f'"{tree.names[-1]}"'.encode() in data), trees[0])
        tree.write(data)
        opened = open_any(tree.folder)
        if not isinstance(opened, ForeignStore):
            return
        json.dumps(opened.info())
        for _, _batch in zip(range(3), opened.batches(next(iter(opened.sites)), 100), strict=False):
            pass

    return Prepared([tree.seed() for tree in trees], one)


TARGETS = (
    Target("store", "a finished store's zarr.json files and manifest, checksums made to fit", whole),
    Target("log", "the commit log of a store being written", unfinished),
    Target("archive", "a compressed chunk file, checksums made to fit", archive),
    Target("zarr", "Zarr arrays and groups of formats 2 and 3 that are not ours", foreign),
)
