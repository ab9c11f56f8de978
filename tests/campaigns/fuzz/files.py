"""Files that `import` and `harvest` read: arrays, tensors, IDX images, documents."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from splinterp.errors import StoreError
from splinterp.harvest.column import Column
from splinterp.harvest.formats import file_documents
from splinterp.harvest.tokens import encode_documents
from splinterp.store.imports import open_source

from .kit import Prepared, Target

X = np.arange(30, dtype=np.float32).reshape(10, 3)
MOST_SLABS = 4


def imported(path: Path, write: Callable[[bytes], bytes] = lambda data: data) -> Callable[[bytes], None]:
    def one(data: bytes) -> None:
        path.write_bytes(write(data))
        source = open_source(path, None)
        for _, (rows, _columns) in zip(range(MOST_SLABS), source.slabs(), strict=False):
            for name, x in rows.items():
                assert x.ndim == 2
                assert x.shape[1] == source.sites[name]

    return one


def idx(folder: Path) -> Prepared:
    """Plain, or compressed where it begins so."""
    sound = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 2, 2) + bytes(range(16))
    plain, packed = imported(folder / "a.idx"), imported(folder / "a.idx.gz")

    def one(data: bytes) -> None:
        (packed if data[:2] == b"\x1f\x8b" else plain)(data)

    doubles = bytes([0, 0, 14, 2]) + struct.pack(">2I", 2, 2) + np.array([1, 2, np.nan, 1e300], ">f8").tobytes()
    return Prepared([sound, doubles, gzip.compress(sound, mtime=0)], one)


def npy(folder: Path) -> Prepared:
    seeds = []
    for array in (X, X.astype(">f8"), np.asfortranarray(X), X[:, 0], X.astype("i4")):
        file = io.BytesIO()
        np.save(file, array)
        seeds.append(file.getvalue())
    return Prepared(seeds, imported(folder / "a.npy"))


def npz(folder: Path) -> Prepared:
    seeds = []
    for saved in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        saved(file, x=X)
        seeds.append(file.getvalue())
    return Prepared(seeds, imported(folder / "a.npz"))


def npz_header(folder: Path) -> Prepared:
    """A member of a sound archive, stored and compressed: so that a header's lies get that far."""

    def zipped(data: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if len(data) % 2 else zipfile.ZIP_STORED) as archive:
            archive.writestr("x.npy", data)
        return file.getvalue()

    return Prepared(npy(folder).seeds, imported(folder / "b.npz", zipped))


def pt(folder: Path) -> Prepared:
    """The pickle in a sound archive of torch.save; or the whole file, where it begins as one."""
    whole, pickles = [], []
    for held in (
        torch.from_numpy(X),
        {"a": torch.from_numpy(X), "n": 3},
        torch.nn.Parameter(torch.ones(4, 2)),
        torch.ones(3, 2).to_sparse(),
    ):
        file = io.BytesIO()
        torch.save(held, file)
        whole.append(file.getvalue())
        with zipfile.ZipFile(file) as archive:
            name = next(info.filename for info in archive.infolist() if info.filename.endswith("data.pkl"))
            pickles.append(archive.read(name))

    def zipped(data: bytes) -> bytes:
        if data[:2] == b"PK":
            return data
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, content in (
                ("data.pkl", data),
                ("byteorder", b"little"),
                ("data/0", X.tobytes()),
                ("data/1", bytes(48)),
                ("version", b"3\n"),
            ):
                archive.writestr(f"a/{name}", content)
        return file.getvalue()

    return Prepared([*pickles, *whole], imported(folder / "a.pt", zipped))


def safetensors(folder: Path) -> Prepared:
    """A header as JSON before 120 bytes; or the whole file, where it is no JSON."""
    data = save({"x": torch.from_numpy(X)})
    length = struct.unpack("<Q", data[:8])[0]

    def framed(data: bytes) -> bytes:
        return struct.pack("<Q", len(data)) + data + X.tobytes() if data[:1] == b"{" else data

    return Prepared([data[8 : 8 + length], data], imported(folder / "a.safetensors", framed))


def documents(folder: Path) -> Prepared:
    """Lines of JSON with texts, or with token ids; plain and compressed."""
    lines = b"".join(
        json.dumps(one).encode() + b"\n"
        for one in ({"text": "def f():"}, {"text": "", "n": 1}, {"text": "é\ud800"}, {"text": "x" * 50})
    )
    ids = b"".join(json.dumps({"text": one}).encode() + b"\n" for one in ([1, 2, 3], [], [2**40]))

    def one(data: bytes) -> None:
        kind = ".jsonl.gz" if data[:2] == b"\x1f\x8b" else ".jsonl.zst" if data[:4] == b"\x28\xb5\x2f\xfd" else ".jsonl"
        path = folder / f"a{kind}"
        path.write_bytes(data)
        for tokens in (False, True):
            try:
                read = (document for _, document in file_documents([(path.name, path)], Column("text", tokens=tokens)))
                for _, found in encode_documents(
                    lambda texts: [np.arange(len(text)) % 7 for text in texts], read, 100, "a model"
                ):
                    assert found.ndim == 1
            except StoreError:
                raise AssertionError("a TextError was wanted") from None

    return Prepared([lines, ids, gzip.compress(lines, mtime=0)], one)


TARGETS = (
    Target("idx", "IDX files, plain and gzipped", idx),
    Target("npy", ".npy files", npy),
    Target("npz", ".npz archives", npz),
    Target("npz header", "a member of a sound .npz archive", npz_header),
    Target("pt", ".pt archives, and the pickle in a sound one", pt),
    Target("safetensors", "safetensors headers and files", safetensors),
    Target("documents", ".jsonl of texts and of token ids, also compressed", documents),
)
