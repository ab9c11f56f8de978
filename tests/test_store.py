"""The store's format and writer: plain zarr reads it, and the rows that come out are the rows that went in."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store import files
from splinterp.store.layout import CHUNK_BYTES, check_name, default_chunk_rows, default_pool_chunks

SITE = "blocks.5.hook_resid_post"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def numbered(n: int, d: int, offset: int = 0) -> torch.Tensor:
    """Rows that name themselves exactly in every dtype: digits of the row number in base 128."""
    i = torch.arange(n) + offset
    return torch.stack([(i // 128**c) % 128 for c in range(d)], 1).float()


def row_numbers(rows: torch.Tensor) -> torch.Tensor:
    return sum(rows[:, c].long() * 128**c for c in range(min(rows.shape[1], 4)))  # pyright: ignore[reportReturnType]


def write(path: Path, x: torch.Tensor, **kw):
    with store.create(path, sites={SITE: x.shape[1]}, rows=kw.pop("rows", len(x)), **kw) as writer:
        for a in range(0, len(x), 100):
            writer.add({SITE: x[a : a + 100]})
        return writer.finish()


def zarr_open(path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zarr.open(path, mode="r")


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_zarr_reads_it_and_shows_nan_for_a_missing_chunk(tmp_path, dtype):
    x = torch.randn(700, 6) * 3
    opened = write(tmp_path / "s", x, dtype=dtype, chunk_rows=64)
    array = zarr_open(tmp_path / "s")[f"{SITE}/acts"]
    assert array.shape == (700, 6)
    assert array.attrs["torch_dtype"] == dtype
    got = torch.from_numpy(array[:]).view(DTYPES[dtype])
    assert torch.equal(got, opened.acts(SITE, 0, 700))
    assert sorted(map(tuple, got.tolist())) == sorted(map(tuple, x.to(DTYPES[dtype]).tolist()))
    (tmp_path / "s" / SITE / "acts" / "c.3.0").unlink()
    again = torch.from_numpy(zarr_open(tmp_path / "s")[f"{SITE}/acts"][:]).view(DTYPES[dtype])
    assert again[192:256].isnan().all()
    assert torch.equal(again[256:], got[256:])


def test_zarr_verifies_our_checksums(tmp_path):
    write(tmp_path / "s", torch.randn(300, 4), chunk_rows=128)
    file = tmp_path / "s" / SITE / "acts" / "c.1.0"
    data = bytearray(file.read_bytes())
    data[17] ^= 4
    file.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr_open(tmp_path / "s")[f"{SITE}/acts"][:]


def test_chunk_file_is_raw_rows_and_a_checksum_and_the_last_is_padded(tmp_path):
    opened = write(tmp_path / "s", numbered(300, 3), dtype="float32", chunk_rows=256)
    raw = (tmp_path / "s" / SITE / "acts" / "c.1.0").read_bytes()
    assert len(raw) == 256 * 3 * 4 + 4
    values = np.frombuffer(raw[:-4], "<f4").reshape(256, 3)
    assert np.array_equal(values[:44], opened.acts(SITE, 256, 300).numpy())
    assert np.isnan(values[44:]).all()


@quick
@given(data=st.data())
def test_rows_in_are_rows_out_and_sites_and_columns_stay_aligned(tmp_path_factory, data):
    n = data.draw(st.integers(1, 600))
    planned = data.draw(st.sampled_from([None, n, n + 37, max(1, n - 5)]))
    chunk_rows = data.draw(st.sampled_from([29, 64, 256]))
    memory = data.draw(st.sampled_from([1, 20_000, 2**30]))
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    step = data.draw(st.integers(50, 400))
    path = tmp_path_factory.mktemp("p") / "s"
    x, y = numbered(n, 4), -numbered(n, 3)
    with store.create(
        path, sites={"a": 4, "b": 3}, columns=("token_id",), dtype=dtype, rows=planned, chunk_rows=chunk_rows, memory=memory
    ) as writer:
        a = 0
        while a < n:
            b = min(n, a + step)
            writer.add({"a": x[a:b].double(), "b": y[a:b]}, {"token_id": torch.arange(a, b)})
            writer.add({"a": x[:0], "b": y[:0]}, {"token_id": np.arange(0)})
            a = b
        assert writer.rows == min(n, planned or n)
        assert writer.full == (planned is not None and planned <= n)
        opened = writer.finish()
    expected = min(n, planned or n)
    assert opened.rows == expected
    ids = opened.column("token_id").astype(np.int64)
    assert sorted(ids.tolist()) == list(range(expected))
    assert torch.equal(opened.acts("a", 0, expected), x[ids].to(DTYPES[dtype]))
    assert torch.equal(opened.acts("b", 0, expected), y[ids].to(DTYPES[dtype]))
    assert store.verify(path, full=True) == []
    assert torch.allclose(opened.sites["a"].mean, x[:expected].double().mean(0), rtol=1e-6)
    norms = x[:expected].double().norm(dim=1)
    site = opened.sites["a"]
    got = [site.mean_norm, site.rms_norm, site.min_norm, site.max_norm]
    want = [norms.mean(), (norms**2).mean().sqrt(), norms.min(), norms.max()]
    assert got == pytest.approx([float(v) for v in want], rel=1e-6)


def test_rows_are_shuffled_by_seed_and_not_by_batching(tmp_path):
    x = numbered(1000, 3)
    first = write(tmp_path / "a", x, seed=1, chunk_rows=128)
    with store.create(tmp_path / "b", sites={SITE: 3}, rows=1000, seed=1, chunk_rows=128) as writer:
        for a in range(0, 1000, 333):
            writer.add({SITE: x[a : a + 333]})
        second = writer.finish()
    other = write(tmp_path / "c", x, seed=2, chunk_rows=128)
    assert first.fingerprint == second.fingerprint != other.fingerprint
    order = row_numbers(first.acts(None, 0, 1000))
    assert (order[:128] > 500).sum() > 30


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_rows_are_dropped_everywhere_and_counted(tmp_path, dtype):
    x, y = torch.ones(10, 4), torch.ones(10, 2)
    x[2, 1], x[5, 3], y[7, 0] = float("nan"), float("inf"), float("-inf")
    x[8, 0] = 1e6  # finite, but not in float16
    expected = 6 if dtype == "float16" else 7
    with store.create(tmp_path / "s", sites={"a": 4, "b": 2}, columns=("position",), dtype=dtype, rows=20) as writer:
        assert writer.add({"a": x, "b": y}, {"position": np.arange(10)}) == expected
        assert writer.dropped == 10 - expected
        opened = writer.finish()
    assert opened.rows == expected
    assert opened.attributes["dropped_non_finite"] == opened.info()["dropped_non_finite"] == 10 - expected
    assert not {2, 5, 7} & set(opened.column("position").tolist())


def test_finite_rows_with_overflowing_squares_are_kept(tmp_path):
    x = torch.full((4, 3), 1e30)
    opened = write(tmp_path / "s", x, dtype="float32")
    assert opened.rows == 4
    assert opened.sites[SITE].max_norm == pytest.approx(3**0.5 * 1e30)
    assert torch.allclose(opened.sites[SITE].mean, x[0].double())


def test_bfloat16_rounds_to_nearest_even(tmp_path):
    x = torch.tensor([[1.00390625], [1.01171875], [1.0078125]])
    opened = write(tmp_path / "s", x)
    assert sorted(opened.acts(None, 0, 3).flatten().float().tolist()) == [1.0, 1.0078125, 1.015625]


def test_surplus_rows_are_ignored_and_a_short_source_is_fine(tmp_path):
    with store.create(tmp_path / "s", sites={SITE: 2}, rows=30) as writer:
        assert writer.remaining == 30
        assert writer.add({SITE: numbered(20, 2)}) == 20
        assert writer.add({SITE: numbered(20, 2, 20)}) == 10
        assert writer.full
        assert writer.add({SITE: numbered(20, 2, 40)}) == 0
        assert writer.offered == 30
        opened = writer.finish({"took": 1.5})
    assert opened.rows == 30
    assert opened.attributes["took"] == 1.5
    with store.create(tmp_path / "t", sites={SITE: 2}, rows=10_000) as writer:
        writer.add({SITE: numbered(600, 2)})
        short = writer.finish()
    assert short.rows == 600
    assert sorted(row_numbers(short.acts(None, 0, 600)).tolist()) == list(range(600))


def test_info_has_the_contracts_keys(tmp_path):
    opened = write(tmp_path / "s", torch.randn(50, 4), attributes={"model": "tiny", "dataset": "stdlib", "context": 128})
    info = json.loads(json.dumps(opened.info()))
    assert info["sites"][0] | {"name": SITE, "rows": 50, "d": 4, "dtype": "bfloat16"} == info["sites"][0]
    assert (info["model"], info["dataset"], info["context"], info["status"]) == ("tiny", "stdlib", 128, "complete")


def test_chunk_and_pool_sizes():
    assert default_chunk_rows(768 * 2, None) == 65536
    assert default_chunk_rows(2304 * 2, 10**9) == 16384
    assert default_chunk_rows(CHUNK_BYTES * 2, None) == 1
    assert default_chunk_rows(2, None) == 2**20
    assert default_chunk_rows(512, 1000) == 256
    for rows in (10_000, 100_000, 1_000_000):
        size = default_chunk_rows(512, rows)
        assert size == 256 or 11 <= rows / size <= 23
    assert default_pool_chunks(1536 + 16, 65536, None, 2**30) == 5
    assert default_pool_chunks(1536, 65536, None, 1) == 1
    assert default_pool_chunks(4, 256, None, 2**30) == 32
    assert default_pool_chunks(4, 256, 1000, 2**30) == 4


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a..b", "__x", "zarr.json", "a\\b", "a\nb", "x" * 300])
def test_names_that_could_escape_are_refused(name):
    with pytest.raises(StoreError):
        check_name(name, "site")


def plain(error: pytest.ExceptionInfo[StoreError]) -> str:
    """One plain sentence: no class names, no second line."""
    text = str(error.value)
    assert "\n" not in text
    assert "Error" not in text
    assert "Traceback" not in text
    assert text.endswith((".", ")"))
    return text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dtype": "int8"}, "bfloat16, float16, float32"),
        ({"sites": {}}, "at least one site"),
        ({"sites": {"a": 0}}, "at least 1"),
        ({"columns": ("a",)}, "different names"),
        ({"rows": 0}, "rows"),
        ({"seed": -1}, "seed"),
        ({"attributes": {"rows": 3}}, "'rows'"),
        ({"attributes": {"x": object()}}, "JSON"),
        ({"resume": True, "force": True}, "not both"),
    ],
)
def test_wrong_parameters_say_so_and_destroy_nothing(tmp_path, wrong, says):
    write(tmp_path / "s", torch.ones(5, 2))
    with pytest.raises(StoreError) as error:
        store.create(tmp_path / "s", **({"sites": {"a": 2}, "force": True} | wrong))
    assert says in plain(error)
    assert store.open(tmp_path / "s").rows == 5


def test_wrong_rows_say_so(tmp_path):
    with store.create(tmp_path / "s", sites={"a": 2}, columns=("c",), rows=9) as writer:
        good = {"a": torch.ones(3, 2)}
        for activations, columns in [
            ({"b": torch.ones(3, 2)}, {"c": np.arange(3)}),
            ({"a": torch.ones(3, 4)}, {"c": np.arange(3)}),
            ({"a": torch.ones(3, 2, dtype=torch.int64)}, {"c": np.arange(3)}),
            (good, {}),
            (good, {"c": np.arange(4)}),
            (good, {"c": np.array([-1, 0, 1])}),
            (good, {"c": np.array([0.5, 0, 1])}),
        ]:
            with pytest.raises(StoreError) as error:
                writer.add(activations, columns)
            plain(error)
        assert writer.rows == 0
        with pytest.raises(StoreError, match="No rows came"):
            writer.finish()


def test_an_existing_output_is_kept_unless_forced(tmp_path):
    path = tmp_path / "s"
    write(path, torch.ones(5, 2))
    with pytest.raises(StoreError, match=r"exists already; give another name or --force\.$"):
        store.create(path, sites={"a": 2})
    assert write(path, torch.ones(7, 2), force=True).rows == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_text("miaow")
    for options in ({"force": True}, {"resume": True}, {}):
        with pytest.raises(StoreError) as error:
            store.create(foreign, sites={"a": 2}, **options)
        plain(error)
    assert [entry.name for entry in foreign.iterdir()] == ["cat.jpg"]
    zarr.create_group(tmp_path / "plain.zarr")
    with pytest.raises(StoreError, match="recognisably"):
        store.create(tmp_path / "plain.zarr", sites={"a": 2}, force=True)


def test_force_through_a_link_replaces_what_it_points_to(tmp_path):
    write(tmp_path / "real", torch.ones(5, 2))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert write(tmp_path / "link", torch.ones(7, 2), force=True).rows == 7
    assert store.open(tmp_path / "real").rows == 7


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct writes")
@pytest.mark.parametrize("where", ["disk", "/dev/shm"])
@pytest.mark.parametrize("size", [2**20, 2**20 + 4096 + 12, 9 * 2**20 + 1, 5000])
@pytest.mark.parametrize("shift", [0, 64])
def test_what_is_written_past_the_page_cache_is_what_was_given(tmp_path, where, size, shift):
    folder = tmp_path
    if where == "/dev/shm":
        if not Path(where).is_dir():
            pytest.skip("no tmpfs here")
        folder = Path(tempfile.mkdtemp(dir=where))
    data = files.aligned(size + shift, np.dtype("u1"))[shift:]
    data[:] = np.random.default_rng(size).integers(0, 256, size)
    try:
        files.write_files([(folder / "a", [data.data, memoryview(b"tail")])])
        assert (folder / "a").read_bytes() == data.tobytes() + b"tail"
        assert [f.name for f in folder.iterdir()] == ["a"]
    finally:
        if folder != tmp_path:
            shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct writes")
def test_a_file_system_that_refuses_direct_writes_half_way_gets_buffered_ones(tmp_path, monkeypatch):
    data = files.aligned(20 * 2**20, np.dtype("u1"))
    data[:] = np.arange(len(data)) % 251
    real, direct = os.write, []

    def write(fd, part):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            direct.append(len(part))
            if len(direct) == 2:
                raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, part)

    monkeypatch.setattr(os, "write", write)
    files.write_files([(tmp_path / "a", [data.data])])
    assert direct == [files.DIRECT_BYTES] * 2
    assert (tmp_path / "a").read_bytes() == data.tobytes()
