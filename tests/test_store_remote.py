"""Stores at URLs: the same bytes and batches as a local store, whatever is killed, cut, refused or cached on the way."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from splinterp import store
from splinterp.cli import main
from splinterp.errors import StoreError
from splinterp.store import places
from splinterp.store.cache import used_bytes
from splinterp.store.places import RemotePath, place
from splinterp.store.remote_writer import remove_store

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

ROWS = 1500
# Sixteen small chunks; two to a pool, so that a killed writer has some of them committed.
OPTIONS = {"sites": {"a": 3, "b": 5}, "columns": ("i",), "rows": ROWS, "chunk_rows": 100, "memory": 2 * 2 * 100 * 20, "seed": 5}
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server():
    """A bucket `tests` on loopback, found through the environment as any S3 store is."""
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_EC2_METADATA_DISABLED": "true"}).items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir("tests")
        yield f"http://{host}:{port}"
        fsspec.filesystem("s3").clear_instance_cache()
    running.stop()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPLINTERP_CACHE_BYTES", raising=False)


_count = iter(range(10**6))


@pytest.fixture(params=["s3", "memory"])
def url(request) -> str:
    return fresh(request, request.param)


@pytest.fixture
def s3(server) -> str:
    return f"s3://tests/run{next(_count)}/acts.zarr"


def fresh(request, scheme: str) -> str:
    return request.getfixturevalue("s3") if scheme == "s3" else f"memory://run{next(_count)}/acts.zarr"


def source(n: int = ROWS + 40) -> tuple[torch.Tensor, torch.Tensor]:
    i = torch.arange(n)
    x = torch.stack([i % 128, i // 128, torch.ones(n)], 1).float()
    x[::97, 2] = float("nan")
    return x, torch.stack([i % 128, i // 128, i % 7, i % 5, i % 3], 1).float()


def feed(writer, upto: int | None = None) -> None:
    x, y = source()
    for a in range(writer.resume_offered, len(x) if upto is None else upto, 130):
        writer.add({"a": x[a : a + 130], "b": y[a : a + 130]}, {"i": np.arange(a, min(a + 130, len(x)))})


def run(path, **options):
    with store.create(path, **(OPTIONS | options)) as writer:
        feed(writer)
        return writer.finish()


def contents(path) -> dict[str, bytes]:
    """Every file or object, by its path in the store, but the fence and the log that a writer killed at its very end leaves."""
    if isinstance(path, Path):
        return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != ".lock"}
    root = place(path)
    found = {str(one)[len(str(root)) + 1 :]: one.read_bytes() for one in root.everything_below()}
    return {name: data for name, data in found.items() if not name.startswith((".writer", ".log/"))}


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("local") / "acts.zarr"
    run(path)
    return path


@pytest.fixture(scope="module")
def reference(local) -> dict[str, bytes]:
    return contents(local)


@pytest.fixture
def requests(monkeypatch) -> list[str]:
    """The keys of every range that a reader asks for."""
    asked: list[str] = []
    real = places.cat_ranges

    def counted(paths, starts, ends):
        asked.extend(path.key for path in paths)
        return real(paths, starts, ends)

    monkeypatch.setattr("splinterp.store.remote.cat_ranges", counted)
    return asked


def sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert text.endswith((".", ")"))
    return text


def all_batches(opened, size=300, **options):
    return [x.clone() for x in opened.batches("a", size, **options)]


# What is written


def test_the_objects_are_the_files_of_a_local_store(url, reference):
    run(url)
    assert contents(url) == reference
    names = {str(path) for path in place(url).everything_below()}
    assert not [name for name in names if "/.log/" in name or name.endswith(".writer")]
    assert store.verify(url, full=True) == []


def test_plain_zarr_reads_it_from_s3(s3, local):
    places.copy_files(local, place(s3))
    opened = store.open(s3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open(s3, mode="r")
    for site in ("a", "b"):
        got = torch.from_numpy(group[f"{site}/acts"][:]).view(torch.bfloat16)
        assert torch.equal(got, opened.acts(site, 0, ROWS))
    assert np.array_equal(group["i"][:], opened.column("i"))


def committed(url: str) -> bool:
    """Whether chunk 0 counts."""
    return (place(url) / ".log" / "0.json").exists()


class Killed(BaseException):
    """Not an Exception: nothing in the writer may turn it into something else."""


@pytest.mark.parametrize("after", [*range(14), 20, 30, 45, 60, 61, 62, 63, 64, 65, 66, 67, 68])
def test_stopped_after_any_put_it_never_reads_as_complete_and_resumes_to_the_same_bytes(request, monkeypatch, reference, after):
    url, real, left = fresh(request, "memory"), RemotePath.write_bytes, [after]

    def failing(self, data):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "write_bytes", failing)
        with pytest.raises(Killed):
            run(url)
    with pytest.raises(StoreError):
        store.open(url)
    if committed(url):
        part = store.open(url, unfinished=True)
        assert part.status == "writing"
        x, numbers = source()[0].bfloat16(), part.column("i").astype(np.int64)
        assert torch.equal(part.acts("a", 0, part.rows), x[numbers])
    run(url, resume=True)
    assert contents(url) == reference


WRITER = """
import sys
sys.path[:0] = [sys.argv[2]]
import torch
torch.set_num_threads(1)
import test_store_remote as t
try:
    t.run(sys.argv[1], resume=True)
except t.StoreError as error:
    assert "is complete" in str(error), error
"""


def writer_process(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, url, str(Path(__file__).parent)], stderr=subprocess.PIPE)


def test_killed_and_resumed_is_byte_identical(s3, reference):
    rng, kills = random.Random(7), 0
    for _ in range(4):
        process = writer_process(s3)
        while process.poll() is None and not place(s3).exists():
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stderr.close()
        if (
            not place(s3).exists()
            or json.loads((place(s3) / "zarr.json").read_bytes())["attributes"]["splinterp"]["status"] != "writing"
        ):
            continue
        with pytest.raises(StoreError):
            store.open(s3)
    process = writer_process(s3)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0, error
    assert kills >= 1
    assert contents(s3) == reference
    assert store.verify(s3, full=True) == []


def test_a_second_writer_is_refused_and_one_that_resumes_fences_the_first(url, reference):
    with store.create(url, **OPTIONS) as first:
        feed(first, 520)
        with pytest.raises(StoreError) as refused:
            store.create(url, **OPTIONS)
        assert "unfinished; go on with --resume" in sentence(refused)
        with pytest.raises(StoreError) as refused:
            store.create(url, **(OPTIONS | {"seed": 6}), resume=True)
        assert "seed = 5, not 6" in sentence(refused)
        first.add({"a": torch.ones(1, 3), "b": torch.ones(1, 5)}, {"i": np.arange(1)})  # neither has stopped the first
    with store.create(url, **OPTIONS, resume=True) as first, store.create(url, **OPTIONS, resume=True) as second:
        with pytest.raises(StoreError) as fenced:
            feed(first) or first.finish()
        assert "taken over by another writer" in sentence(fenced)
        feed(second)
        second.finish()
    assert contents(url) == reference


def test_of_two_that_begin_a_store_one_wins(url):
    (place(url) / ".writer").create(b"somebody")
    with pytest.raises(StoreError) as refused:
        store.create(url, **OPTIONS)
    assert "being written by another process" in sentence(refused)
    assert run(url, force=True).rows == ROWS


def test_removal_leaves_neighbours_of_a_longer_name_alone(s3):
    for key in ("zarr.json", "a/c.0", ".writer"):
        (place(s3) / key).write_bytes(b'{"attributes": {"splinterp": {"status": "complete"}}}')
    (place(f"{s3}-other") / "zarr.json").write_bytes(b"mine")
    remove_store(place(s3))  # pyright: ignore[reportArgumentType]
    assert not place(s3).exists()
    assert (place(f"{s3}-other") / "zarr.json").read_bytes() == b"mine"


def test_where_nothing_can_be_created_conditionally_a_look_comes_first(request, monkeypatch):
    url = fresh(request, "memory")
    fs = place(url).fs
    real = fs.pipe_file

    def unable(key, data, mode="overwrite"):
        if mode == "create":
            raise NotImplementedError
        real(key, data)

    monkeypatch.setattr(fs, "pipe_file", unable)
    with store.create(url, **OPTIONS):
        pass
    with pytest.raises(FileExistsError):
        (place(url) / ".writer").create(b"another")
    assert run(url, resume=True).rows == ROWS


def test_force_replaces_a_store_and_nothing_else(request, reference):
    url = fresh(request, "memory")
    run(url, seed=6)
    with pytest.raises(StoreError, match="exists already"):
        run(url)
    with pytest.raises(StoreError) as refused:
        run(url, resume=True)
    assert "is complete" in sentence(refused)
    assert not (place(url) / ".writer").exists()
    other = place(f"{url}-other")
    (other / "notes.txt").write_bytes(b"mine")
    run(url, force=True)
    assert contents(url) == reference
    with pytest.raises(StoreError) as refused:
        run(str(other), force=True)
    assert "not recognisably a splinterp store" in sentence(refused)
    assert (other / "notes.txt").read_bytes() == b"mine"


@pytest.mark.parametrize("after", [0, 1, 5, 20, 50])
def test_a_removal_that_stopped_never_reads_as_complete_and_can_be_repeated(request, monkeypatch, reference, after):
    url, real, left = fresh(request, "memory"), RemotePath.unlink, [after]
    run(url, seed=6)

    def failing(self, missing_ok=False):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        real(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "unlink", failing)
        with pytest.raises(Killed):
            run(url, force=True)
    with pytest.raises(StoreError):
        store.open(url)
    run(url, force=True)
    assert contents(url) == reference


def test_an_object_that_arrives_cut_stops_the_writer(request, monkeypatch):
    url = fresh(request, "memory")
    fs = place(url).fs
    real = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda key, data, **kw: real(key, data[:-1] if "/c." in key else data, **kw))
    with pytest.raises(StoreError) as error:
        run(url)
    assert "bytes arrived instead of" in sentence(error)


# What is read


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_batches_are_those_of_the_local_store(tmp_path_factory, local, data):
    url, bound = f"memory://run{next(_count)}/s", data.draw(st.sampled_from([0, 9000, 40_000, 2**30]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLINTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
        places.copy_files(local, place(url))
        here, there = store.open(local), store.open(url, cache_bytes=bound)
        world = data.draw(st.integers(1, 3))
        options = {
            "seed": data.draw(st.integers(0, 3)), "split": data.draw(st.sampled_from(["train", "held_out", "all"])), "world": world,
            "rank": data.draw(st.integers(0, world - 1)), "shuffle": data.draw(st.booleans()), "start": data.draw(st.integers(0, 2)),
        }  # fmt: skip
        size = data.draw(st.integers(1, 700))
        for epoch in range(2):
            for site in ("a", "b"):
                one = [x.clone() for x in here.batches(site, size, epoch=epoch, **options)]
                other = [x.clone() for x in there.batches(site, size, epoch=epoch, **options)]
                assert len(one) == len(other)
                assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
        a = data.draw(st.integers(0, ROWS))
        b = data.draw(st.integers(a, ROWS))
        assert torch.equal(here.acts("b", a, b), there.acts("b", a, b))
        assert np.array_equal(here.column("i", a, b), there.column("i", a, b))


def test_over_s3_it_is_the_same_store(s3, local):
    places.copy_files(local, place(s3))
    here, there = store.open(local), store.open(s3)
    assert (here.fingerprint, here.rows, here.columns) == (there.fingerprint, there.rows, there.columns)
    assert torch.equal(here.sites["a"].mean, there.sites["a"].mean)
    for epoch in range(2):
        assert all(
            torch.equal(x, y) for x, y in zip(all_batches(here, epoch=epoch), all_batches(there, epoch=epoch), strict=True)
        )
    with pytest.raises(StoreError, match="has 1500 rows"):
        there.acts("a", 0, ROWS + 1)


def test_the_second_epoch_asks_for_no_chunk_and_another_process_neither(s3, local, requests):
    places.copy_files(local, place(s3))
    opened = store.open(s3)
    first = all_batches(opened, split="all")
    assert requests
    del requests[:]
    all_batches(opened, epoch=1, split="all")
    again = all_batches(store.open(s3), split="all")
    assert requests == []
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_the_cache_keeps_to_its_bound_and_older_stores_make_room(request, tmp_path, requests):
    first, second = fresh(request, "memory"), fresh(request, "memory")
    run(first)
    run(second, seed=6)
    bound = 100_000
    all_batches(store.open(first, cache_bytes=bound), split="all")
    assert 0 < used_bytes(tmp_path / "cache") <= bound
    kept = {folder.name for folder in (tmp_path / "cache").iterdir()}
    tight = used_bytes(tmp_path / "cache")
    opened = store.open(second, cache_bytes=tight)
    all_batches(opened, split="all")
    assert not kept & {folder.name for folder in (tmp_path / "cache").iterdir()}
    assert used_bytes(tmp_path / "cache") <= tight
    little = store.open(second, cache_bytes=0)
    del requests[:]
    all_batches(little, split="all")
    all_batches(store.open(first, cache_bytes=1), split="all")
    assert requests


def test_a_damaged_block_of_the_cache_is_fetched_again(request, tmp_path, requests):
    url = fresh(request, "memory")
    opened = run(url)
    before = all_batches(opened, split="all")
    file = next((tmp_path / "cache").glob("*/a/acts/c.3.0"))
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    next((tmp_path / "cache").glob("*/a/acts/c.5.0.index")).write_bytes(b"\1")
    del requests[:]
    after = all_batches(store.open(url), split="all")
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert sorted(key.rpartition("/")[2] for key in requests) == ["c.3.0", "c.5.0"]


def test_the_cache_that_cannot_be_written_says_so(request, tmp_path, monkeypatch):
    url = fresh(request, "memory")
    run(url)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPLINTERP_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError) as error:
        store.open(url)
    assert "$SPLINTERP_CACHE" in sentence(error)


def test_a_range_that_fails_at_first_is_asked_for_again(request, monkeypatch):
    url = fresh(request, "memory")
    opened = run(url)
    fs = place(url).fs
    real, failures = fs.cat_ranges, [OSError("reset by peer"), OSError("slow down")]
    monkeypatch.setattr(places, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(
        fs, "cat_ranges", lambda keys, *a, **kw: [failures.pop()] * len(keys) if failures else real(keys, *a, **kw)
    )
    assert opened.acts("a", 0, 300).shape == (300, 3)
    failures += [OSError("reset by peer")] * 3
    with pytest.raises(StoreError) as error:
        opened.acts("a", 900, 1200)
    assert "reset by peer" in sentence(error)


@pytest.mark.parametrize(
    ("key", "how", "says"),
    [("a/acts/c.4.0", "gone", "missing"), ("a/acts/c.4.0", "cut", "truncated"), ("i/c.2", "gone", "missing"), ("manifest.jsonl", "gone", "missing"), ("b/zarr.json", "gone", "missing")],
)  # fmt: skip
def test_what_is_missing_or_cut_is_named_at_open(request, local, key, how, says):
    url = fresh(request, "s3" if (key, how) == ("a/acts/c.4.0", "cut") else "memory")
    places.copy_files(local, place(url))
    one = place(url) / key
    data = one.read_bytes()
    one.unlink()
    if how == "cut":
        one.write_bytes(data[:-9])
    with pytest.raises(StoreError) as error:
        store.open(url)
    assert key in sentence(error)
    assert says in str(error.value)
    assert len(store.verify(url, full=True)) == 1


def test_a_flipped_bit_is_named_by_verify_full(url, local):
    places.copy_files(local, place(url))
    one = place(url) / "b/acts/c.7.0"
    data = bytearray(one.read_bytes())
    data[77] ^= 8
    one.write_bytes(bytes(data))
    assert store.verify(url, full=False) == []
    found = store.verify(url, full=True)
    assert len(found) == 1
    assert f"{url}/b/acts/c.7.0 is damaged" in found[0]


def test_merge_and_subset_go_from_and_to_urls(request, tmp_path):
    url = fresh(request, "memory")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    one, two = url + "-1", url + "-2"
    for path, seed in ((one, 1), (two, 2)):
        with store.create(path, **(OPTIONS | {"seed": seed})) as writer:
            places.copy_files(tmp_path / "tokenizer", place(path) / "tokenizer")
            feed(writer)
            writer.finish()
    merged = store.merge([one, two], url)
    assert merged.rows == 2 * ROWS
    assert (merged.local("tokenizer") / "tokenizer.json").read_text() == "{}"
    part = store.subset(url, url + "-some", rows=100)
    assert part.rows == 100
    assert (part.local("tokenizer") / "tokenizer.json").is_file()
    assert not store.open(url + "-some").local("nothing").is_dir()
    with pytest.raises(StoreError, match="itself to be read"):
        store.subset(url, url, rows=10, force=True)


# What is refused


def test_a_file_url_is_a_local_path(tmp_path):
    assert place(f"file://{tmp_path}/s") == tmp_path / "s"
    assert place(tmp_path / "s") == place(str(tmp_path / "s")) == tmp_path / "s"
    assert str(place("memory://a/b/")) == "memory://a/b"
    with pytest.raises(StoreError) as error:
        store.open(Path("s3://bucket/acts.zarr"))
    assert "give it as a string" in sentence(error)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://", "memory://", "nosuch://a/b"])
def test_urls_that_name_no_store_say_so(url):
    with pytest.raises(StoreError) as error:
        store.open(url)
    assert url in sentence(error)


def test_without_the_extra_its_name_is_said(monkeypatch):
    def missing(*_args, **_kw):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(StoreError) as error:
        store.open("s3://bucket/acts.zarr")
    assert 'pip install "splinterp[remote]"' in sentence(error)


def told_by(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 1
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    assert "\n" not in said
    return said


def test_what_the_server_refuses_is_one_sentence(server, s3, tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "x.npy", np.ones((40, 4), np.float32))
    rows = str(tmp_path / "x.npy")
    assert "There is no store at s3://tests/none" in told_by(capsys, "info", "s3://tests/none")
    assert "There is no store at" in told_by(capsys, "info", "s3://no-such-bucket/x")
    assert "bucket does not exist" in told_by(capsys, "import", rows, "--out", "s3://no-such-bucket/x")
    assert "copy it to a local file" in told_by(capsys, "import", "s3://tests/x.npy", "--out", str(tmp_path / "s"))
    fs = fsspec.filesystem("s3", use_listings_cache=False)

    def refused(*_args, **_kw):
        raise PermissionError("Access Denied")

    with monkeypatch.context() as patch:
        for name in ("info", "pipe_file", "cat_file", "ls", "find"):
            patch.setattr(fs, name, refused)
        for command in (("info", s3), ("verify", s3), ("import", rows, "--out", s3), ("import", rows, "--out", s3, "--force")):
            assert "access was refused (Access Denied)" in told_by(capsys, *command)


@pytest.mark.parametrize(
    ("change", "says"), [({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect"), ({"keys": ""}, "credentials")]
)
def test_no_network_and_no_credentials_are_one_sentence(server, tmp_path, capsys, monkeypatch, change, says):
    if "keys" in change:
        for name in KEYS:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", change["AWS_ENDPOINT_URL"])
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        assert says in told_by(capsys, "info", "s3://tests/x")
    finally:
        fsspec.filesystem("s3").clear_instance_cache()


def test_the_command_line_end_to_end(s3, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32))

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        assert not end.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    assert s3 in said("import", str(tmp_path / "x.npy"), "--out", s3)
    assert json.loads(said("info", s3, "--json"))["rows"] == 3000
    assert "every checksum" in said("verify", "--full", s3)
    said(
        "train",
        "--store",
        s3,
        "--out",
        str(tmp_path / "run"),
        "--latents",
        "16",
        "--k",
        "4",
        "--batch-size",
        "256",
        "--tokens",
        "1024",
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())
    assert json.loads(said("eval", str(tmp_path / "run"), "--store", s3, "--json"))["fvu"] > 0


def test_harvest_to_s3_and_resume(s3, tmp_path, gpt2_dir, jsonl):
    from splinterp.harvest import HarvestConfig, harvest
    from splinterp.report.contexts import load_tokenizer

    settings = {
        "model": str(gpt2_dir),
        "layers": (1,),
        "dataset": str(jsonl),
        "tokens": 2000,
        "context": 32,
        "device": "cpu",
        "memory": 1,
    }
    here = harvest(HarvestConfig(out=tmp_path / "s", **settings))

    def stop(done, _figures):
        if done >= 1000:
            raise KeyboardInterrupt

    from splinterp.errors import Interrupted

    with pytest.raises(Interrupted, match=r"--resume"):
        harvest(HarvestConfig(out=s3, **settings), stop)  # pyright: ignore[reportArgumentType]
    there = harvest(HarvestConfig(out=s3, resume=True, **settings))  # pyright: ignore[reportArgumentType]
    assert there.fingerprint == here.fingerprint
    assert contents(s3) == contents(tmp_path / "s")
    assert load_tokenizer(there).get_vocab_size() > 0


def test_a_copy_goes_to_a_url_and_comes_back_the_same(url, local, reference, tmp_path, cli):
    there = store.copy(local, url)
    assert there.fingerprint == store.open(local).fingerprint
    assert contents(url) == reference
    store.copy(url, tmp_path / "back.zarr")
    assert contents(tmp_path / "back.zarr") == reference
    for src, dst in ((local, f"{url}-again"), (f"{url}-again", tmp_path / "again.zarr")):
        code, _, err = cli("copy", str(src), str(dst))
        assert code == 0, err
    assert contents(tmp_path / "again.zarr") == reference
    with pytest.raises(StoreError, match="archive is read from a local disk alone"):
        store.copy(local, f"{url}-archive", compress=True)
    assert not place(f"{url}-archive").exists()


def test_a_damaged_block_is_not_handed_out(url, local):
    store.copy(local, url)
    key = place(url) / "a" / "acts" / "c.3.0"
    data = bytearray(key.read_bytes())
    data[20] ^= 1
    key.write_bytes(bytes(data))
    opened = store.open(url)
    with pytest.raises(StoreError, match=r"c\.3\.0 is damaged: its rows from 0 on"):
        all_batches(opened, split="all")
    assert opened.column("i").shape == (opened.rows,)


def test_ranks_do_not_write_to_urls(url):
    with pytest.raises(StoreError, match="cannot be written by ranks"):
        store.create_rank(url, 0, 2, sites={"a": 3})
