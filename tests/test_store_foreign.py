"""Other Zarr layouts: the same rows, the same batches as a store of ours, with a note; damage is a sentence."""

from __future__ import annotations

import json

import pytest
import torch
import zarr
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store import foreign

ROWS, D = 2000, 6
LAYOUTS = {
    "plain": {"chunks": (300, D), "compressors": None},
    "zstd": {"chunks": (300, D)},
    "split": {"chunks": (700, 4)},
    "sharded": {"chunks": (100, D), "shards": (500, D)},
    "v2": {"chunks": (300, D), "zarr_format": 2},
    "v2 fortran": {"chunks": (300, D), "zarr_format": 2, "order": "F"},
    "one chunk": {"chunks": (ROWS, D)},
}


def rows(dtype: str = "float32") -> torch.Tensor:
    i = torch.arange(ROWS)
    return torch.stack([i % 128, i // 128, *([i % 5] * (D - 2))], 1).to(getattr(torch, dtype))


def save(path, x: torch.Tensor, name: str | None = None, **layout):
    numbers = x.view(torch.uint16).numpy() if x.dtype is torch.bfloat16 else x.numpy()
    array = zarr.create_array(path, name=name, shape=x.shape, dtype=numbers.dtype, **({"chunks": (300, D)} | layout))
    array[:] = numbers
    if x.dtype is torch.bfloat16:
        array.attrs["torch_dtype"] = "bfloat16"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_every_layout_reads_as_a_store_does(tmp_path, layout, dtype):
    if dtype != "float32" and layout not in ("zstd", "sharded"):
        return
    x = rows(dtype)
    save(tmp_path / "acts.zarr", x, **LAYOUTS[layout])
    opened = store.open(tmp_path / "acts.zarr")
    kept = x.float() if dtype == "float64" else x
    site = opened.site(None)
    assert (site.name, site.rows, site.d, site.dtype) == ("acts", ROWS, D, str(kept.dtype).removeprefix("torch."))
    assert torch.equal(opened.acts(None, 250, 950), kept[250:950])
    assert opened.acts(None, 5, 5).shape == (0, D)
    assert (opened.columns, opened.status) == ((), "complete")
    wide = kept.double()
    assert torch.allclose(site.mean, wide.mean(0))
    norms = wide.norm(dim=1)
    for got, wanted in zip((site.mean_norm, site.rms_norm, site.min_norm, site.max_norm),
                           (norms.mean(), norms.square().mean().sqrt(), norms.min(), norms.max()), strict=True):  # fmt: skip
        assert got == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("cache", [1, foreign.CACHE_BYTES])
def test_batches_are_those_of_a_store_of_ours(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(foreign, "CACHE_BYTES", cache)
    x = rows()
    with store.create(tmp_path / "ours", sites={"h": D}, dtype="float32", rows=ROWS) as writer:
        writer.add({"h": x})
        ours = writer.finish()
    save(tmp_path / "other", ours.acts("h", 0, ROWS), chunks=(130, D))
    other = store.open(tmp_path / "other")
    for options in (
        {},
        {"split": "held_out"},
        {"epoch": 3, "seed": 2, "rank": 1, "world": 2},
        {"start": 2, "drop_last": True},
        {"shuffle": False},
    ):
        one = [b.clone() for b in ours.batches("h", 300, **options)]
        two = [b.clone() for b in other.batches(None, 300, **options)]
        assert len(one) == len(two)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        start = options.pop("start", 0)
        assert other.n_batches(300, **options) - start == len(one)
    assert other.split_rows("held_out") == ours.split_rows("held_out")


def test_statistics_wait_until_they_are_asked_for(tmp_path, monkeypatch):
    save(tmp_path / "a.zarr", rows())
    passes = []
    scan = foreign.ForeignStore._scan
    monkeypatch.setattr(foreign.ForeignStore, "_scan", lambda self, name: passes.append(name) or scan(self, name))
    opened = store.open(tmp_path / "a.zarr")
    next(opened.batches(None, 10))
    assert passes == []
    facts = opened.info()
    assert passes == ["a"]
    json.dumps(facts)
    assert "slower" in facts["note"]
    assert {"name": "a", "rows": ROWS, "d": D, "dtype": "float32"}.items() <= facts["sites"][0].items()
    assert facts["bytes"] > 0
    assert (opened.site(None).rms_norm, passes) == (facts["sites"][0]["rms_norm"], ["a"])
    y = rows()
    y[77, 1] += 1
    save(tmp_path / "b.zarr", y)
    assert store.open(tmp_path / "b.zarr").fingerprint != opened.fingerprint
    assert store.open(tmp_path / "a.zarr").fingerprint == opened.fingerprint


def test_a_group_s_arrays_are_sites(tmp_path):
    group = zarr.create_group(tmp_path / "g", attributes={"model": "tiny"})
    save(group.store, rows(), "layers/0")
    save(group.store, rows("bfloat16"), "layers/1")
    group.create_array("labels", shape=(ROWS,), dtype="i4")
    opened = store.open(tmp_path / "g")
    assert {name: s.dtype for name, s in opened.sites.items()} == {"layers/0": "float32", "layers/1": "bfloat16"}
    assert opened.info()["model"] == "tiny"
    assert store.open(tmp_path / "g" / "layers" / "1").site(None).name == "1"
    with pytest.raises(StoreError, match="choose one with --site: layers/0, layers/1"):
        opened.site(None)
    with pytest.raises(StoreError, match="no column 'position'"):
        opened.column("position")
    group.create_array("short", shape=(5, 2), dtype="f4")
    with pytest.raises(StoreError, match="different lengths"):
        store.open(tmp_path / "g")


def test_what_holds_no_rows_is_refused(tmp_path):
    zarr.create_array(tmp_path / "ints", shape=(4, 3), dtype="i4")
    zarr.create_array(tmp_path / "none", shape=(0, 3), dtype="f4")
    group = zarr.create_group(tmp_path / "g")
    group.create_array("cube", shape=(2, 3, 4), dtype="f4")
    for name, says in [("ints", "but ints int32"), ("none", "holds no rows"), ("g", "cube float32")]:
        with pytest.raises(StoreError, match=says) as error:
            store.open(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def test_damage_is_a_sentence(tmp_path):
    save(tmp_path / "a", rows())
    chunk = tmp_path / "a" / "c" / "2" / "0"
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[: len(sound) // 2])
    opened = store.open(tmp_path / "a")
    for read in (lambda: opened.acts(None, 0, ROWS), lambda: list(opened.batches(None, 100)), lambda: opened.fingerprint):
        with pytest.raises(StoreError) as error:
            read()
        assert str(tmp_path / "a") in str(error.value)
        assert "\n" not in str(error.value)
    x = rows()
    x[17, 2], x[900, 0] = float("nan"), float("inf")
    save(tmp_path / "b", x)
    with pytest.raises(StoreError, match="has 2 rows at b that are not finite"):
        _ = store.open(tmp_path / "b").site(None).mean
    meta = tmp_path / "a" / "zarr.json"
    meta.write_text(meta.read_text().replace('"float32"', '"flaot32"'))
    with pytest.raises(StoreError, match="damaged"):
        store.open(tmp_path / "a")


def test_a_store_of_ours_whose_root_lost_its_attributes_is_not_read_around(tmp_path):
    with store.create(tmp_path / "s", sites={"h": 2}, rows=4) as writer:
        writer.add({"h": torch.ones(4, 2)})
        writer.finish()
    (tmp_path / "s" / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    with pytest.raises(StoreError, match="not a splinterp store"):
        store.open(tmp_path / "s")


def test_any_layout_can_be_imported(tmp_path):
    x = rows()
    x[3] = float("nan")
    save(tmp_path / "a.zarr", x, zarr_format=2)
    opened = store.import_files([tmp_path / "a.zarr"], tmp_path / "s")
    assert (opened.rows, list(opened.sites), opened.note) == (ROWS - 1, ["a"], None)
    assert sorted(map(tuple, opened.acts(None, 0, opened.rows).tolist())) == sorted(
        map(tuple, x[torch.arange(ROWS) != 3].tolist())
    )
    group = zarr.create_group(tmp_path / "g")
    save(group.store, rows(), "l/0")
    save(group.store, rows(), "l/1")
    assert list(store.import_files([tmp_path / "g"], tmp_path / "t").sites) == ["l.0", "l.1"]
    assert list(store.import_files([tmp_path / "g"], tmp_path / "u", site="l/1").sites) == ["l.1"]
