"""Importing other programs' files: what is in them is in the store, once; nothing is unpickled."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store import sources
from splinterp.store.imports import open_source


def rows_of(opened) -> list[tuple[float, ...]]:
    return sorted(map(tuple, opened.acts(None, 0, opened.rows).double().tolist()))


def wanted(x) -> list[tuple[float, ...]]:
    return sorted(map(tuple, torch.as_tensor(np.ascontiguousarray(x)).double().tolist()))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_npy_round_trip(tmp_path, dtype):
    x = np.random.default_rng(0).standard_normal((500, 5)).astype(dtype)
    np.save(tmp_path / "a.npy", x[:200])
    np.save(tmp_path / "b.npy", np.asfortranarray(x[200:]))
    calls = []
    opened = store.import_files(
        [tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "s", site="layer", progress=lambda *done: calls.append(done)
    )
    kept = "float16" if dtype == "<f2" else "float32"
    assert opened.site(None).dtype == kept
    assert list(opened.sites) == ["layer"]
    assert rows_of(opened) == wanted(x.astype(kept))
    assert calls[-1] == (500, 500)
    assert opened.columns == ()
    assert store.verify(tmp_path / "s", full=True) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_safetensors_round_trip(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(sources, "SLAB_BYTES", 700)
    x = torch.randn(20, 15, 4).to(dtype)
    save_file({"acts": x, "bias": torch.ones(4)}, tmp_path / "a.safetensors")
    opened = store.import_files([tmp_path / "a.safetensors"], tmp_path / "s")
    kept = torch.float32 if dtype == torch.float64 else dtype
    assert opened.acts(None, 0, 1).dtype == kept
    assert rows_of(opened) == wanted(x.to(kept).double().reshape(-1, 4))


def test_the_tensor_named_like_the_site_is_taken(tmp_path):
    save_file({"a": torch.zeros(5, 2), "b": torch.ones(6, 2)}, tmp_path / "x.safetensors")
    assert store.import_files([tmp_path / "x.safetensors"], tmp_path / "s", site="b").rows == 6
    with pytest.raises(StoreError, match=r"--site: a, b"):
        store.import_files([tmp_path / "x.safetensors"], tmp_path / "t")


def test_mixed_kinds_need_a_dtype_and_non_finite_rows_are_dropped(tmp_path):
    x = np.ones((6, 2), np.float32)
    x[3] = np.nan
    np.save(tmp_path / "a.npy", x)
    save_file({"t": torch.ones(4, 2, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    both = [tmp_path / "a.npy", tmp_path / "b.safetensors"]
    with pytest.raises(StoreError, match="--dtype"):
        store.import_files(both, tmp_path / "s")
    opened = store.import_files(both, tmp_path / "s", dtype="float16")
    assert (opened.rows, opened.attributes["dropped_non_finite"], opened.site(None).dtype) == (9, 1, "float16")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_what_cannot_be_imported_is_named(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "ints.npy", np.ones((3, 2), np.int32))
    np.save(tmp_path / "flat.npy", np.ones(3, np.float32))
    np.save(tmp_path / "none.npy", np.ones((0, 2), np.float32))
    np.save(tmp_path / "two.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "three.npy", np.ones((3, 3), np.float32))
    (tmp_path / "junk.npy").write_bytes(b"not an array")
    (tmp_path / "junk.safetensors").write_bytes(b"not tensors")
    (tmp_path / "rows.csv").write_text("1,2")
    save_file({"i": torch.ones(3, 2, dtype=torch.int64)}, tmp_path / "ints.safetensors")
    for name in (
        "pickled.npy",
        "ints.npy",
        "flat.npy",
        "none.npy",
        "junk.npy",
        "junk.safetensors",
        "rows.csv",
        "ints.safetensors",
    ):
        with pytest.raises(StoreError) as error:
            store.import_files([tmp_path / name], tmp_path / "s")
        assert str(tmp_path / name) in str(error.value)
        assert "Error" not in str(error.value)
    for second in ("three.npy", "missing.npy"):
        with pytest.raises(StoreError) as error:
            store.import_files([tmp_path / "two.npy", tmp_path / second], tmp_path / "s")
        assert str(tmp_path / second) in str(error.value)
    with pytest.raises(StoreError, match="at least one file"):
        store.import_files([], tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_an_interrupted_import_says_to_import_again(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.ones((300, 2), np.float32))

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.import_files([tmp_path / "a.npy"], tmp_path / "s", progress=interrupt)
    with pytest.raises(StoreError, match=r"splinterp import \.\.\. --force"):
        store.open(tmp_path / "s")
    assert store.import_files([tmp_path / "a.npy"], tmp_path / "s", force=True).rows == 300


def test_an_interrupted_import_is_not_told_to_resume(tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, np.zeros((2000, 8), np.float32))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.import_files([file], tmp_path / "x.zarr", progress=interrupt)
    with pytest.raises(StoreError, match="unfinished; give another name or --force"):
        store.import_files([file], tmp_path / "x.zarr")
    with pytest.raises(StoreError, match=r"run `splinterp import \.\.\. --force` again"):
        store.open(tmp_path / "x.zarr")
    assert store.import_files([file], tmp_path / "x.zarr", force=True).rows == 2000


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
@pytest.mark.parametrize("how", ["cut", "emptied", "written anew", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, monkeypatch, kind, how):
    """Through a memory map one that is cut would end the process."""
    monkeypatch.setattr(sources, "SLAB_BYTES", 4 * 3 * 10)
    path, x = tmp_path / f"rows.{kind}", torch.randn(200, 3)

    def write(rows: torch.Tensor, to: Path) -> None:
        np.save(to, rows.numpy()) if kind == "npy" else save_file({"x": rows}, to)

    def change() -> None:
        if how in ("cut", "emptied"):
            os.truncate(path, path.stat().st_size // 2 if how == "cut" else 0)
        elif how == "written anew":
            with path.open("r+b") as file:
                file.seek(-4, os.SEEK_END)
                file.write(b"1234")
        else:
            write(x + 1, tmp_path / f"new.{kind}")
            os.replace(tmp_path / f"new.{kind}", path)

    write(x, path)
    source = open_source(path, None)
    if how == "replaced":
        change()

    def read() -> None:
        for i, _ in enumerate(source.slabs()):
            if i == 2:
                change()

    with pytest.raises(StoreError, match=r"was changed while it was imported|is truncated: its rows end early"):
        read()
