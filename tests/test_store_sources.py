"""Importing .npz, .pt, IDX and SAELens's cached activations: streamed, never unpickled, and never believed unchecked."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store import sources
from splinterp.store.imports import open_source


def rows_of(opened, site=None) -> list[tuple[float, ...]]:
    return sorted(map(tuple, opened.acts(site, 0, opened.rows).double().tolist()))


def wanted(x) -> list[tuple[float, ...]]:
    return sorted(map(tuple, torch.as_tensor(np.ascontiguousarray(x)).double().tolist()))


def refused(path: Path, out: Path, **options) -> str:
    """The sentence that refuses `path`: one line, with the file's name, no exception's name."""
    with pytest.raises(StoreError) as error:
        store.import_files([path], out, **options)
    said = str(error.value)
    assert str(path) in said
    assert "\n" not in said
    assert "Error" not in said
    return said


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch):
    monkeypatch.setattr(sources, "SLAB_BYTES", 700)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
def test_npz_round_trip(tmp_path, compressed, dtype):
    x = np.random.default_rng(0).standard_normal((30, 10, 5)).astype(dtype)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", acts=x, labels=np.arange(30))
    opened = store.import_files([tmp_path / "a.npz"], tmp_path / "s")
    kept = "float16" if dtype == "<f2" else "float32"
    assert (opened.site(None).dtype, list(opened.sites)) == (kept, ["imported"])
    assert rows_of(opened) == wanted(x.reshape(-1, 5).astype(kept))


def test_npz_members_are_chosen_by_the_site(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros((4, 2), np.float32), b=np.ones((5, 3), np.float32))
    assert "--site: a, b" in refused(tmp_path / "a.npz", tmp_path / "s")
    opened = store.import_files([tmp_path / "a.npz"], tmp_path / "s", site="b")
    assert (opened.rows, opened.site("b").d) == (5, 3)


def test_npz_is_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SLAB_BYTES", 2**16)
    x = np.zeros((2**15, 64), np.float32)
    np.savez_compressed(tmp_path / "a.npz", x=x)
    tracemalloc.start()
    source = open_source(tmp_path / "a.npz", None)
    assert sum(len(rows["imported"]) for rows, _ in source.slabs()) == len(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 8


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB"],))


@pytest.fixture
def bomb(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    yield Bomb()
    assert not (tmp_path / "exploded").exists()


def test_bad_npz_files_are_refused(tmp_path, bomb):
    out = tmp_path / "s"
    np.savez(tmp_path / "pickled.npz", x=np.array([[bomb]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "ints.npz", x=np.ones((3, 2), np.int32))
    np.savez(tmp_path / "fortran.npz", x=np.asfortranarray(np.ones((3, 2), np.float32)))
    np.savez(tmp_path / "none.npz", x=np.ones((0, 2), np.float32))
    np.savez(tmp_path / "flat.npz", x=np.ones(3, np.float32))
    np.savez(tmp_path / "sound.npz", x=np.random.default_rng(0).standard_normal((300, 2)))
    sound = (tmp_path / "sound.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(sound[:-200])
    (tmp_path / "flipped.npz").write_bytes(sound[:1000] + bytes([sound[1000] ^ 1]) + sound[1001:])
    (tmp_path / "junk.npz").write_bytes(b"junk")
    with zipfile.ZipFile(tmp_path / "lying.npz", "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 768), }"
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"12345678")
        archive.writestr("notes.txt", "hello")
    says = {name: refused(tmp_path / f"{name}.npz", out, force=out.exists()) for name in
            ("pickled", "ints", "fortran", "none", "flat", "cut", "junk", "lying", "flipped")}  # fmt: skip
    assert "holds object numbers" in says["pickled"]
    assert "column by column" in says["fortran"]
    assert "not as large as its header says" in says["lying"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"acts": x, "n": 3, "ids": torch.ones(4, 4, dtype=torch.int64)}])
def test_pt_round_trip(tmp_path, dtype, wrap):
    x = torch.randn(20, 15, 4).to(dtype)
    torch.save(wrap(x), tmp_path / "a.pt")
    opened = store.import_files([tmp_path / "a.pt"], tmp_path / "s")
    kept = torch.float32 if dtype == torch.float64 else dtype
    assert opened.acts(None, 0, 1).dtype == kept
    assert rows_of(opened) == wanted(x.to(kept).double().reshape(-1, 4))


def test_pt_tensors_are_chosen_by_the_site_and_may_be_parameters(tmp_path):
    torch.save({"a": torch.zeros(3, 2), "b": torch.nn.Parameter(torch.ones(6, 4)[:, ::2])}, tmp_path / "x.pt")
    assert "--site: a, b" in refused(tmp_path / "x.pt", tmp_path / "s")
    assert rows_of(store.import_files([tmp_path / "x.pt"], tmp_path / "s", site="b")) == [(1.0, 1.0)] * 6


def test_bad_pt_files_are_refused(tmp_path, bomb):
    out = tmp_path / "s"
    torch.save({"x": torch.ones(3, 2), "evil": bomb}, tmp_path / "evil.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(bomb))
    torch.save(torch.ones(3, 2), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.ones(3, 2, dtype=torch.int32), tmp_path / "ints.pt")
    torch.save(torch.ones(3, 2).to_sparse(), tmp_path / "sparse.pt")
    torch.save([torch.ones(3, 2)], tmp_path / "list.pt")
    torch.save({"bias": torch.ones(3)}, tmp_path / "flat.pt")
    torch.save(torch.ones(300, 2), tmp_path / "sound.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "sound.pt").read_bytes()[:-300])
    (tmp_path / "junk.pt").write_bytes(b"junk")
    assert "not loaded" in refused(tmp_path / "evil.pt", out)
    assert "newer PyTorch" in refused(tmp_path / "old.pt", out)
    for name in ("pickle", "ints", "sparse", "list", "flat", "cut", "junk"):
        refused(tmp_path / f"{name}.pt", out)
    assert not out.exists()


def idx(values: np.ndarray, kind: int) -> bytes:
    return bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.mark.parametrize(("kind", "dtype"), [(8, ">u1"), (9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
@pytest.mark.parametrize("name", ["a.idx", "a.idx.gz", "train-images-idx3-ubyte", "t10k-images.idx3-ubyte.gz"])
def test_idx_round_trip(tmp_path, kind, dtype, name):
    images = np.random.default_rng(0).integers(-100, 100, (70, 4, 3)).astype(dtype)
    data = idx(images, kind)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    opened = store.import_files([tmp_path / name], tmp_path / "s")
    assert (opened.site(None).dtype, opened.site(None).d) == ("float32", 12)
    assert rows_of(opened) == wanted(images.reshape(70, 12).astype(np.float32))


def test_bad_idx_files_are_refused_before_anything_is_allocated(tmp_path):
    sound = idx(np.ones((10, 3, 3), np.uint8), 8)
    lying = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31) + b"123"
    bad = {
        "lying.idx": lying,
        "lying.idx.gz": gzip.compress(lying),
        "little.idx.gz": gzip.compress(bytes([0, 0, 8, 2]) + struct.pack(">2I", 3, 2) + b"12345"),
        "more.idx.gz": gzip.compress(sound + b"1"),
        "cut.idx": sound[:-1],
        "more.idx": sound + b"1",
        "cut.idx.gz": gzip.compress(sound)[:-6],
        "notgz.idx.gz": sound,
        "junk.idx": b"junk and more junk",
        "short.idx": b"\0\0\x08\x03\0\0",
        "type.idx": b"\0\0\x07\x01\0\0\0\0",
        "labels.idx": idx(np.ones(5, np.uint8), 8),
        "none.idx": idx(np.ones((0, 2), np.uint8), 8),
        "thin.idx": idx(np.ones((3, 0), np.uint8), 8),
    }
    tracemalloc.start()
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, tmp_path / "s")
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()
    assert not (tmp_path / "s").exists()


def cached(path: Path, n: int, hooks: dict[str, int], context: int, dtype: str, tokens: bool = True) -> dict[str, np.ndarray]:
    """A data set like CacheActivationsRunner's (its own code makes it in the next test)."""
    import datasets

    rng = np.random.default_rng(n)
    made = {name: rng.standard_normal((n, context, d)).astype(dtype) for name, d in hooks.items()}
    features = {name: datasets.Array2D(shape=(context, d), dtype=dtype) for name, d in hooks.items()}
    if tokens:
        made["token_ids"] = rng.integers(0, 50000, (n, context)).astype(np.int32)
        features["token_ids"] = datasets.Sequence(datasets.Value("int32"), length=context)
    datasets.Dataset.from_dict(made, features=datasets.Features(features)).save_to_disk(path)
    return made


def test_a_directory_that_saelens_itself_wrote(tmp_path, monkeypatch):
    runner = pytest.importorskip("sae_lens.cache_activations_runner")
    n, context, d = 12, 7, 6
    x, ids = torch.randn(n * context, d), torch.randint(0, 50000, (n * context,))

    class Config:
        dtype, d_in, hook_name, n_seq_in_buffer = "float32", d, "blocks.1.hook_resid_post", n // 2

    made = runner.CacheActivationsRunner.__new__(runner.CacheActivationsRunner)
    made.cfg, made.context_size = Config(), context
    from datasets import Array2D, Features, Sequence, Value

    made.features = Features(
        {Config.hook_name: Array2D((context, d), "float32"), "token_ids": Sequence(Value("int32"), length=context)}
    )
    half, out = n * context // 2, tmp_path / "cached"
    for i in range(2):
        part = slice(i * half, (i + 1) * half)
        made._create_shard((x[part], ids[part])).save_to_disk(str(tmp_path / "shards" / f"shard_{i:05d}"), num_shards=1)
    out.mkdir()
    made._consolidate_shards(tmp_path / "shards", out)
    opened = store.import_files([out], tmp_path / "s")
    assert list(opened.sites) == [Config.hook_name]
    assert opened.columns == ("token_id", "position", "sequence")
    place = opened.column("sequence").astype(int) * context + opened.column("position")
    assert sorted(place) == list(range(n * context))
    assert torch.equal(opened.acts(None, 0, opened.rows), x[torch.from_numpy(place)])
    assert np.array_equal(opened.column("token_id"), ids.numpy()[place])
    assert opened.info()["context"] == context


def test_saelens_directories_are_joined_and_their_sequences_numbered_on(tmp_path):
    hooks = {"h0": 3, "h1": 4}
    a, b = (cached(tmp_path / f"c{n}", n, hooks, 5, "float16") for n in (9, 4))
    opened = store.import_files([tmp_path / "c9", tmp_path / "c4"], tmp_path / "s")
    assert {name: s.d for name, s in opened.sites.items()} == hooks
    place = opened.column("sequence").astype(int) * 5 + opened.column("position")
    assert sorted(place) == list(range(13 * 5))
    for name, d in hooks.items():
        whole = np.concatenate([a[name], b[name]]).reshape(-1, d)
        assert np.array_equal(opened.acts(name, 0, opened.rows).numpy(), whole[place])
    one = store.import_files([tmp_path / "c9"], tmp_path / "one", site="h1")
    assert (list(one.sites), one.site(None).d) == (["h1"], 4)


def test_a_single_hook_takes_the_site_s_name_and_tokens_may_be_missing(tmp_path):
    cached(tmp_path / "c", 3, {"h0": 2}, 4, "float32", tokens=False)
    opened = store.import_files([tmp_path / "c"], tmp_path / "s", site="layer")
    assert (list(opened.sites), opened.columns, opened.rows) == (["layer"], ("position", "sequence"), 12)


def test_bad_saelens_directories_are_refused(tmp_path):
    import datasets

    out = tmp_path / "s"
    (tmp_path / "empty").mkdir()
    datasets.Dataset.from_dict({"input_ids": [[1, 2]]}).save_to_disk(tmp_path / "tokens")
    cached(tmp_path / "two", 3, {"h0": 2, "h1": 2}, 4, "float32")
    cached(tmp_path / "ints", 3, {"h0": 2}, 4, "int32")
    cached(tmp_path / "cut", 300, {"h0": 2}, 4, "float32")
    cached(tmp_path / "other", 3, {"h9": 2}, 4, "float32")
    file = next((tmp_path / "cut").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:2000])
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1]})}).save_to_disk(tmp_path / "dict")
    assert "no Arrow data set" in refused(tmp_path / "empty", out)
    assert "no Arrow data set" in refused(tmp_path / "dict", out)
    assert "holds no activations; its columns are input_ids" in refused(tmp_path / "tokens", out)
    assert "--site: h0, h1" in refused(tmp_path / "two", out, site="h7")
    assert "int32" in refused(tmp_path / "ints", out)
    refused(tmp_path / "cut", out)
    with pytest.raises(StoreError, match="has the sites h9, but"):
        store.import_files([tmp_path / "two", tmp_path / "other"], out)
    assert not out.exists()
