"""copy and compressed archives: the same rows to the bit, readable by plain zarr, and damage is named, never decoded."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
import warnings
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from splinterp import store
from splinterp.cli import main
from splinterp.errors import StoreError
from splinterp.store import files, shards
from splinterp.store.files import json_crc
from splinterp.store.layout import COMPRESSION, Array, block_rows
from splinterp.store.shard_files import ShardFiles

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
COLUMNS = ("token_id", "position")


def seal(path):
    """Make a store's root agree with its other files again, as one who means harm would."""
    root = json.loads((path / "zarr.json").read_text())
    ours = root["attributes"]["splinterp"]
    if (path / "manifest.jsonl").exists():
        ours["manifest_crc32c"] = google_crc32c.value((path / "manifest.jsonl").read_bytes())
    names = [f"{folder}/zarr.json" for site in ours["sites"] for folder in (site, f"{site}/acts")] + [
        f"{c}/zarr.json" for c in ours["columns"]
    ]
    ours["metadata_crc32c"] = {name: google_crc32c.value((path / name).read_bytes()) for name in names}
    del ours["attributes_crc32c"]
    ours["attributes_crc32c"] = json_crc(ours)
    (path / "zarr.json").write_text(json.dumps(root))


def make(
    path: Path,
    rows: int,
    chunk_rows: int | None = 512,
    *,
    sites=None,
    dtype="bfloat16",
    columns=COLUMNS,
    planned: int | None = -1,
):
    """A store of normal rows with a tokenizer, whose source had a row that was not finite."""
    sites = sites or {"h": 6}
    generator = torch.Generator().manual_seed(rows)
    with store.create(
        path, sites=sites, dtype=dtype, columns=columns, chunk_rows=chunk_rows, rows=rows if planned == -1 else planned,
        attributes={"model": "tiny", "source": "import"},
    ) as writer:  # fmt: skip
        acts = {name: 3 * torch.randn(rows + 1, d, generator=generator) for name, d in sites.items()}
        acts[next(iter(sites))][rows // 2, 0] = float("nan")
        writer.add(acts, {name: np.arange(rows + 1) % (7 + i) for i, name in enumerate(columns)})
        (path / "tokenizer").mkdir()
        (path / "tokenizer" / "tokenizer.json").write_text("{}")
        return writer.finish({"took": 1.5})


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def zarr_open(path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zarr.open(path, mode="r")


def bits(x: torch.Tensor) -> np.ndarray:
    return x.contiguous().reshape(-1).view(torch.uint8).numpy().copy()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A store of two sites (one with blocks large enough for several threads) and its archive."""
    folder = tmp_path_factory.mktemp("pair")
    plain = make(folder / "plain", 5000, 1024, sites={"h": 6, "wide": 600})
    return plain, store.copy(plain.path, folder / "archive", compress=True)


@settings(
    max_examples=20,
    deadline=None,
    phases=set(Phase) - {Phase.shrink},
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_there_and_back_is_byte_identical_and_zarr_reads_it(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("p")
    rows = data.draw(st.integers(1, 700))
    plain = make(
        folder / "plain",
        rows,
        data.draw(st.sampled_from([None, 29, 100, 256, 512, 1000])),
        sites=data.draw(st.sampled_from([{"h": 6}, {"a": 1, "b": 33}])),
        dtype=data.draw(st.sampled_from(list(DTYPES))),
        columns=data.draw(st.sampled_from([(), COLUMNS])),
        planned=data.draw(st.sampled_from([None, rows, rows + 50])),
    )
    archive = store.copy(plain.path, folder / "archive", compress=True)
    assert store.verify(archive.path, full=True) == []
    assert archive.fingerprint == plain.fingerprint
    back = store.copy(archive.path, folder / "back")
    assert contents(back.path) == contents(plain.path)
    group = zarr_open(archive.path)
    for name in plain.sites:
        expected = plain.acts(name, 0, plain.rows)
        array = group[f"{name}/acts"]
        assert array.attrs["torch_dtype"] == plain.attributes["dtype"]
        assert array.shards[0] == plain.chunk_rows
        assert array.chunks[0] == block_rows(plain.chunk_rows)
        assert np.ascontiguousarray(array[:]).tobytes() == bits(expected).tobytes()
        assert np.array_equal(bits(archive.acts(name, 0, plain.rows)), bits(expected))
        assert torch.equal(archive.sites[name].mean, plain.sites[name].mean)
    for name in plain.columns:
        assert np.array_equal(group[name][:], plain.column(name))
        assert np.array_equal(archive.column(name), plain.column(name))
    a = data.draw(st.integers(0, plain.rows))
    b = data.draw(st.integers(a, plain.rows))
    assert np.array_equal(bits(archive.acts(next(iter(plain.sites)), a, b)), bits(plain.acts(next(iter(plain.sites)), a, b)))


def test_a_plain_copy_is_the_same_files(pair, tmp_path):
    plain, archive = pair
    calls = []
    copied = store.copy(plain.path, tmp_path / "copy", progress=lambda *done: calls.append(done))
    assert contents(copied.path) == contents(plain.path)
    assert calls[-1] == (5000, 5000)
    assert copied.note is None
    assert contents(store.copy(archive.path, tmp_path / "again", compress=True).path) == contents(archive.path)


def test_zarr_itself_would_write_the_same_shards(pair, tmp_path):
    """zarr may order blocks as it likes, so they are compared one by one."""
    plain, archive = pair
    for path in ("h/acts", "token_id"):
        array = zarr_open(plain.path)[path]
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "zarr.json").write_bytes((archive.path / path / "zarr.json").read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.open(tmp_path / path, mode="r+")[:] = array[:]
        name = "c.0" if path == "token_id" else "c.0.0"
        ours, theirs = ((root / path / name).read_bytes() for root in (archive.path, tmp_path))
        assert len(ours) == len(theirs)
        for shard in (ours, theirs):
            assert sorted(blocks_of(shard, 4)) == sorted(blocks_of(ours, 4))


def blocks_of(shard: bytes, blocks: int) -> list[bytes]:
    entries = struct.unpack(f"<{2 * blocks}Q", shard[-16 * blocks - 4 : -4])
    return [shard[at : at + size] for at, size in zip(entries[::2], entries[1::2], strict=True)]


@pytest.mark.parametrize("site", ["h", "wide"])
def test_batches_are_those_of_the_plain_store(pair, site):
    plain, archive = pair
    for options in (
        {},
        {"seed": 3, "epoch": 1},
        {"seed": 1, "rank": 1, "world": 3},
        {"split": "held_out"},
        {"split": "all", "shuffle": False},
        {"split": "all", "drop_last": True, "start": 2},
    ):
        for size in (100, 1024, 5000):
            expected = [bits(batch) for batch in plain.batches(site, size, **options)]
            got = [bits(batch) for batch in archive.batches(site, size, **options)]
            assert (
                len(got)
                == len(expected)
                == max(0, plain.n_batches(size, **without(options, "start")) - options.get("start", 0))
            )
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def without(options: dict, name: str) -> dict:
    return {key: value for key, value in options.items() if key != name}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_rows", [100, 300])
def test_batches_of_odd_chunks(tmp_path, dtype, chunk_rows):
    plain = make(tmp_path / "plain", 900, chunk_rows, dtype=dtype)
    archive = store.copy(plain.path, tmp_path / "archive", compress=True)
    expected = [bits(batch) for batch in plain.batches(None, 70, seed=2)]
    assert all(np.array_equal(bits(a), b) for a, b in zip(archive.batches(None, 70, seed=2), expected, strict=True))


def test_few_open_files_are_enough(pair, monkeypatch):
    from splinterp.store import shard_files

    plain, archive = pair
    monkeypatch.setattr(shard_files, "OPEN_FILES", 1)
    before = len(os.listdir("/proc/self/fd"))
    for site in plain.sites:
        expected = [bits(batch) for batch in plain.batches(site, 2000)]
        assert all(np.array_equal(bits(a), b) for a, b in zip(archive.batches(site, 2000), expected, strict=True))
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_says_that_it_is_compressed(pair):
    plain, archive = pair
    assert "copy" in archive.note
    facts = json.loads(json.dumps(archive.info()))
    assert facts["compression"] == COMPRESSION
    assert facts["bytes"] == sum(len(data) for name, data in contents(archive.path).items() if Path(name).name.startswith("c."))
    assert facts["plain_bytes"] == plain.info()["bytes"]
    assert facts["compression_ratio"] == pytest.approx(facts["plain_bytes"] / facts["bytes"], rel=1e-3)
    assert "compression" not in plain.info()
    assert archive.attributes["source"] == "import"


def test_rows_and_columns_that_are_not_there_say_so(pair):
    _, archive = pair
    for call in (
        lambda: archive.acts("h", 0, 5001),
        lambda: archive.acts("h", -1, 3),
        lambda: archive.column("token_id", 3, 6000),
    ):
        with pytest.raises(StoreError, match="has 5000 rows"):
            call()
    assert archive.acts("h", 5000, 5000).shape == (0, 6)


def test_stores_made_of_an_archive_are_plain(pair, tmp_path):
    plain, archive = pair
    other = make(tmp_path / "other", 300, sites={"h": 6, "wide": 600})
    for one, two in (
        (store.merge([archive.path, other.path], tmp_path / "m"), store.merge([plain.path, other.path], tmp_path / "n")),
        (store.subset(archive.path, tmp_path / "s", rows=400), store.subset(plain.path, tmp_path / "t", rows=400)),
    ):
        assert one.fingerprint == two.fingerprint
        assert "compression" not in one.attributes
        assert one.note is None


def test_zarr_shows_nan_for_a_missing_shard(tmp_path):
    make(tmp_path / "plain", 1000, 256)
    archive = store.copy(tmp_path / "plain", tmp_path / "archive", compress=True)
    whole = archive.acts(None, 0, 1000)
    (archive.path / "h" / "acts" / "c.1.0").unlink()
    got = torch.from_numpy(zarr_open(archive.path)["h/acts"][:]).view(torch.bfloat16)
    assert got[256:512].isnan().all()
    assert torch.equal(got[512:], whole[512:])


# Each spoils the shard of 2 blocks that it is given, and says what `batches` and `acts` must say of it.
def flip(at: int):
    def spoil(data: bytearray) -> bytearray:
        data[at] ^= 4
        return data

    return spoil


def reindexed(change):
    """The index changed by `change` (entries as a list of 4 numbers), with a right checksum."""

    def spoil(data: bytearray) -> bytearray:
        entries = list(struct.unpack("<4Q", data[-36:-4]))
        change(entries)
        index = struct.pack("<4Q", *(entry % 2**64 for entry in entries))
        return data[:-36] + index + google_crc32c.value(index).to_bytes(4, "little")

    return spoil


def reframed(change):
    """The first block's frame changed by `change`, with a right checksum."""

    def spoil(data: bytearray) -> bytearray:
        size = struct.unpack("<Q", data[-28:-20])[0]
        frame = bytearray(data[: size - 4])
        change(frame)
        return frame + google_crc32c.value(bytes(frame)).to_bytes(4, "little") + data[size:]

    return spoil


def put(at: int, value: int):
    return lambda frame: struct.pack_into("<I", frame, at, value)


def swap(entries: list[int]) -> None:
    entries[:] = entries[2:] + entries[:2]


SAME_SIZE = {
    "a bit of a block": (flip(60), "a block does not match its checksum"),
    "a bit of a block's header": (flip(5), "a block does not match its checksum"),
    "a bit of a block's checksum": (lambda data: flip(struct.unpack("<Q", data[-28:-20])[0] - 2)(data), "a block does not match"),
    "a bit of the index": (flip(-20), "its index does not match its checksum"),
    "a bit of the index's checksum": (flip(-2), "its index does not match its checksum"),
    "an index without blocks": (reindexed(lambda e: e.__setitem__(slice(None), [-1] * 4)), "impossible sizes"),
    "an index of huge blocks": (reindexed(lambda e: e.__setitem__(1, 2**62)), "impossible sizes"),
    "an index of blocks that wrap around": (reindexed(lambda e: e.__setitem__(3, 2**64 - 20)), "impossible sizes"),
    "an index that points elsewhere": (reindexed(lambda e: e.__setitem__(2, 2**63)), "does not fit its size"),
    "an index that swaps blocks": (reindexed(swap), "does not fit its size"),
    "a frame that says it is huge": (reframed(put(4, 2**31 - 1)), "wrong size"),
    "a frame that says it is tiny": (reframed(put(4, 1)), "wrong size"),
    "a frame that says it is longer": (reframed(put(12, 2**30)), "wrong size"),
    "a frame of nonsense": (reframed(lambda f: f.__setitem__(slice(16, 200), bytes([255]) * 184)), "cannot be decompressed"),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    make(folder / "plain", 2000, 512)
    return contents(store.copy(folder / "plain", folder / "archive", compress=True).path)


def put_back(path: Path, small: dict[str, bytes]) -> Path:
    for name, data in small.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("how", SAME_SIZE)
def test_damage_within_a_file_is_never_decoded(tmp_path, small, how):
    path = put_back(tmp_path / "archive", small)
    spoil, says = SAME_SIZE[how]
    file = path / "h" / "acts" / "c.2.0"
    before = file.read_bytes()
    file.write_bytes(spoil(bytearray(before)))
    assert file.stat().st_size == len(before)
    assert file.read_bytes() != before
    assert store.verify(path, full=False) == []
    found = store.verify(path, full=True)
    assert len(found) == 1
    assert found[0].startswith(f"{file} does not match its checksum")
    opened = store.open(path)
    for read in (
        lambda: list(opened.batches(None, 128, split="all")),
        lambda: list(opened.batches(None, 1024, split="all", shuffle=False)),
        lambda: opened.acts(None, 1024, 1536),
        lambda: store.copy(path, tmp_path / "copy", force=True),
    ):
        with pytest.raises(StoreError) as error:
            read()
        assert str(error.value).startswith(f"{file} is damaged: ")
        assert says in str(error.value)
        assert "\n" not in str(error.value)
    assert torch.equal(opened.acts(None, 0, 1024), opened.acts(None, 0, 1024))
    with pytest.raises(StoreError, match="unfinished"):
        store.open(tmp_path / "copy")


@pytest.mark.parametrize(
    "how", ["truncated", "too long", "missing", "does not belong", "of another array", "manifest", "metadata"]
)
def test_other_damage_is_named_by_open_and_verify(tmp_path, small, how):
    path = put_back(tmp_path / "archive", small)
    file = path / "h" / "acts" / "c.2.0"
    data = file.read_bytes()
    match how:
        case "truncated":
            file.write_bytes(data[:-1])
        case "too long":
            file.write_bytes(data + b"\0")
        case "missing":
            file.unlink()
        case "does not belong":
            file = path / "h" / "acts" / "c.9.0"
            file.write_bytes(data)
        case "of another array":
            file, how = path / "token_id" / "c.1", "instead of"
            file.write_bytes(data)
        case "manifest":
            file, how = path / "manifest.jsonl", "does not match its checksum"
            file.write_bytes(file.read_bytes().replace(b'"stored"', b'"storex"', 1))
        case "metadata":
            file, how = path / "h" / "acts" / "zarr.json", "its codecs"
            file.write_text(file.read_text().replace('"lz4"', '"zstd"'))
    for full in (False, True):
        found = store.verify(path, full=full)
        assert len(found) == 1
        assert found[0].startswith(str(file))
        assert how in found[0] or "damaged" in found[0]
    with pytest.raises(StoreError) as error:
        store.open(path)
    assert str(error.value).startswith(str(file))


def test_files_of_one_size_that_changed_places_are_found(tmp_path):
    """Each is sound in itself, and crc32c over the whole of it would be the same."""
    make(tmp_path / "plain", 1024, 256, sites={"h": 1})
    path = store.copy(tmp_path / "plain", tmp_path / "archive", compress=True).path
    by_size: dict[int, list[Path]] = {}
    for file in sorted(path.rglob("c.*")):
        by_size.setdefault(file.stat().st_size, []).append(file)
    one, two = next(
        (a, b) for same in by_size.values() for a in same for b in same if a < b and a.read_bytes() != b.read_bytes()
    )
    assert google_crc32c.value(one.read_bytes()) == google_crc32c.value(two.read_bytes())
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert store.verify(path, full=False) == []
    assert len(store.verify(path, full=True)) == 2
    with pytest.raises(StoreError, match="its rows do not match their checksum"):
        store.copy(path, tmp_path / "copy")


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_file_that_goes_while_reading_says_so(tmp_path, small, how):
    path = put_back(tmp_path / "archive", small)
    opened = store.open(path)
    for file in (path / "h" / "acts").glob("c.*"):
        file.unlink() if how == "removed" else file.write_bytes(b"")
    for read in (lambda: list(opened.batches(None, 100)), lambda: opened.acts(None, 0, 10)):
        with pytest.raises(StoreError, match="h/acts/c"):
            read()


def test_an_unfinished_copy_is_not_read(tmp_path, small):
    path = put_back(tmp_path / "archive", small)
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["splinterp"] |= {"status": "writing", "source": "copy"}
    (path / "zarr.json").write_text(json.dumps(root))
    (path / "manifest.jsonl").rename(path / "log.jsonl")
    seal(path)
    with pytest.raises(StoreError, match="unfinished; if the copy was interrupted"):
        store.open(path, unfinished=True)


@pytest.mark.parametrize("chunk_rows", [2**30, 10**9 + 1])
def test_metadata_that_lies_takes_no_memory(tmp_path, chunk_rows):
    make(tmp_path / "plain", 300, 512, columns=())
    path = store.copy(tmp_path / "plain", tmp_path / "archive", compress=True).path
    root, array = path / "zarr.json", path / "h" / "acts" / "zarr.json"
    root.write_text(root.read_text().replace('"chunk_rows": 512', f'"chunk_rows": {chunk_rows}'))
    array.write_text(json.dumps(Array("h/acts", 6, "bfloat16", compressed=True).metadata(300, chunk_rows)))
    seal(path)
    with pytest.raises(StoreError, match="cannot hold"):
        store.open(path)


def test_constant_rows_compress_and_open(tmp_path):
    with store.create(tmp_path / "plain", sites={"h": 600}, rows=5000, chunk_rows=2048) as writer:
        writer.add({"h": torch.zeros(5000, 600)})
        writer.finish()
    archive = store.copy(tmp_path / "plain", tmp_path / "archive", compress=True)
    assert archive.info()["compression_ratio"] > 200
    assert not archive.acts(None, 0, 5000).any()


def test_an_unknown_compression_is_refused(tmp_path, small):
    path = put_back(tmp_path / "archive", small)
    (path / "zarr.json").write_text((path / "zarr.json").read_text().replace(COMPRESSION, "middle-out"))
    with pytest.raises(StoreError, match=r"zarr\.json is damaged"):
        store.open(path)


@pytest.mark.parametrize("compress", [True, False])
def test_a_damaged_source_is_named_and_not_copied(tmp_path, compress):
    plain = make(tmp_path / "plain", 2000, 512)
    file = plain.path / "h" / "acts" / "c.1.0"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError) as error:
        store.copy(plain.path, tmp_path / "copy", compress=compress)
    assert str(error.value).startswith(f"{file} is damaged")
    with pytest.raises(StoreError, match="is unfinished"):
        store.open(tmp_path / "copy")
    data[100] ^= 1
    file.write_bytes(data)
    assert store.copy(plain.path, tmp_path / "copy", compress=compress, force=True).fingerprint == plain.fingerprint


@pytest.mark.parametrize("compress", [True, False])
def test_an_interrupted_copy_is_begun_again(pair, tmp_path, compress):
    plain, _ = pair

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.copy(plain.path, tmp_path / "copy", compress=compress, progress=interrupt)
    root = json.loads((tmp_path / "copy" / "zarr.json").read_text())["attributes"]["splinterp"]
    assert (root["status"], root["source"]) == ("writing", "copy")
    with pytest.raises(StoreError, match=r"splinterp copy \.\.\. --force"):
        store.open(tmp_path / "copy")
    with pytest.raises(StoreError, match="unfinished; give another name or --force"):
        store.copy(plain.path, tmp_path / "copy", compress=compress)
    made = store.copy(plain.path, tmp_path / "copy", compress=compress, force=True)
    assert made.fingerprint == plain.fingerprint
    assert store.verify(made.path, full=True) == []


def test_a_full_disk_is_a_sentence(pair, tmp_path, monkeypatch):
    plain, _ = pair
    real = files.write_all

    def full(fd: int, data: memoryview) -> None:
        if threading.current_thread().name.startswith("splinterp-copy"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, data)

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(
        StoreError, match=r"could not be written: No space left on device; mend that and copy again with --force"
    ):
        store.copy(plain.path, tmp_path / "copy", compress=True)
    assert not list((tmp_path / "copy").rglob("*.tmp"))


def test_what_cannot_be_copied_is_refused(pair, tmp_path):
    plain, archive = pair
    for src, dst in ((plain.path, plain.path), (archive.path, archive.path)):
        with pytest.raises(StoreError, match="another name"):
            store.copy(src, dst, force=True)
    with pytest.raises(StoreError, match="exists already"):
        store.copy(plain.path, archive.path)
    zarr.create_array(tmp_path / "foreign", shape=(5, 3), dtype="f4")[:] = 1
    with pytest.raises(StoreError, match="splinterp import"):
        store.copy(tmp_path / "foreign", tmp_path / "copy")
    with pytest.raises(StoreError, match="There is no store"):
        store.copy(tmp_path / "nothing", tmp_path / "copy")
    with store.create(tmp_path / "unfinished", sites={"a": 2}):
        pass
    with pytest.raises(StoreError, match="unfinished"):
        store.copy(tmp_path / "unfinished", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert store.verify(plain.path, full=True) == store.verify(archive.path, full=True) == []


def test_names_that_could_escape_are_not_copied(tmp_path):
    make(tmp_path / "plain", 300, columns=())
    root = tmp_path / "plain" / "zarr.json"
    root.write_text(root.read_text().replace('"h": 6', '"../h": 6'))
    manifest = tmp_path / "plain" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"h', '"../h'))
    (tmp_path / "plain" / "h").rename(tmp_path / "h")
    seal(tmp_path / "plain")
    with pytest.raises(StoreError, match="cannot be the name of a site"):
        store.copy(tmp_path / "plain", tmp_path / "copy", compress=True)


def test_blocks_and_indices_decode_only_to_what_was_encoded():
    rows = np.arange(3000, dtype="<u2").reshape(-1, 6)
    block, into = shards.encode_block(rows), bytearray(rows.nbytes)
    shards.decode_block(np.frombuffer(block, np.uint8), memoryview(into), Path("f"))
    assert bytes(into) == rows.tobytes()
    index = shards.encode_index([len(block), 40])
    assert len(index) == shards.index_bytes(2)
    ends = shards.decode_index(index, len(block) + 40 + len(index), rows.nbytes, Path("f"))
    assert ends.tolist() == [0, len(block), len(block) + 40]


def test_reading_touches_only_the_blocks_asked_for(pair):
    plain, archive = pair
    array = Array("h/acts", 6, "bfloat16", compressed=True)
    reader = archive.shard_files(array)
    decoded = []
    reader._decode = lambda jobs: decoded.extend(jobs) or ShardFiles._decode(reader, jobs)  # pyright: ignore[reportPrivateUsage]
    into = bytearray(300 * 12)
    reader.read(256, 512, memoryview(into))
    reader.read(600, 610, memoryview(into)[256 * 12 :])
    reader.read(610, 644, memoryview(into)[266 * 12 :])
    reader.settle()
    reader.close()
    assert len(decoded) == 2
    assert bytes(into) == bits(torch.cat([plain.acts("h", 256, 512), plain.acts("h", 600, 644)])).tobytes()


def test_from_the_command_line(tmp_path, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return code, *capsys.readouterr()

    plain, archive, back = (tmp_path / name for name in ("plain", "archive", "back"))
    make(plain, 3000, 256)
    code, out, err = run("copy", plain, archive, "--compress")
    assert code == 0, err
    assert "times smaller" in out
    assert "larger" in run("copy", archive, back)[1]
    assert contents(back) == contents(plain)
    assert "is itself to be read" in run("copy", archive, archive, "--force")[2]
    assert "exists already" in run("copy", plain, archive)[2]
    code, out, _ = run("info", archive)
    assert code == 0
    assert COMPRESSION in out
    assert "compression_ratio" in out
    assert json.loads(run("info", archive, "--json")[1])["fingerprint"] == store.open(plain).fingerprint
    assert run("verify", archive, "--full")[0] == 0
    for name in ("plain", "archive"):
        code, _, err = run("train", "--store", tmp_path / name, "--out", tmp_path / f"run-{name}", "--k", 2, "--method", "adam")
        assert code == 0, err
    weights = [(tmp_path / f"run-{name}" / "sae_weights.safetensors").read_bytes() for name in ("plain", "archive")]
    assert weights[0] == weights[1]
    assert run("eval", tmp_path / "run-archive", "--store", archive)[0] == 0
