"""What can go wrong: kills at any moment, full disks, damage, two writers. Nothing committed is lost, nothing is doubled."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store import files, manifest

SITE = "hook"
ROWS = 3000
OPTIONS = {"sites": {SITE: 3}, "columns": ("i",), "rows": ROWS, "chunk_rows": 100, "memory": 2 * 4 * 100 * 10, "seed": 5}


def source(n: int = ROWS) -> torch.Tensor:
    i = torch.arange(n)
    x = torch.stack([i % 128, i // 128, torch.ones(n)], 1).float()
    x[::97, 2] = float("nan")
    return x


def feed(writer, x: torch.Tensor, upto: int | None = None) -> None:
    for a in range(writer.resume_offered, len(x) if upto is None else upto, 130):
        b = min(a + 130, len(x))
        writer.add({SITE: x[a:b]}, {"i": np.arange(a, b)})


def run(path: Path, x: torch.Tensor, **options):
    with store.create(path, **(OPTIONS | options)) as writer:
        feed(writer, x)
        return writer.finish()


def contents(path: Path) -> dict[str, bytes]:
    """Every file but the lock's, which a writer killed after its last rename leaves behind."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file() and f.name != ".lock"}


def differing(path: Path, reference: dict[str, bytes]) -> list[str]:
    found = contents(path)
    return sorted(name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name))


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("reference") / "s"
    run(path, source(3500))
    return contents(path)


def test_the_reference_itself(reference):
    assert sum(name.startswith("hook/acts/c.") for name in reference) == 30
    assert not [name for name in reference if Path(name).name.startswith(".")]


# The parent forks before torch has done anything, so children start in milliseconds and can be killed by the dozen.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
import torch, numpy
torch.set_num_threads(1)
from splinterp import store
from splinterp.store import writer
import test_store_crash as t

def child(path):
    # As if each run were slow, or only some moments of it: the pool is kept after every batch, sometimes, or never.
    writer.SPILL_SECONDS = [0, whole / 20, 300][os.getpid() % 3]
    t.run(path, t.source(3500), resume=True, **json.loads(sys.argv[5]))
    os._exit(0)

def spawn(path):
    pid = os.fork()
    if pid == 0:
        try:
            child(path)
        except BaseException as error:
            print(error, file=sys.stderr)
            # Killed after the last rename, before the exit: finished is finished.
            os._exit(0 if "is complete" in str(error) else 3)
    return pid

root, runs, rng = Path(sys.argv[1]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
start, whole = time.monotonic(), 1
os.waitpid(spawn(root / "timing"), 0)
whole, kills = time.monotonic() - start, 0
for k in range(runs):
    path = root / f"s{k}"
    while True:
        pid = spawn(path)
        time.sleep(rng.uniform(0, 0.9 * whole))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status
        kills += 1
        if rng.random() < 0.4:
            assert os.waitstatus_to_exitcode(os.waitpid(spawn(path), 0)[1]) == 0
            break
print(kills)
"""


@pytest.mark.parametrize(("options", "stores"), [({}, 8), ({"max_norms": {SITE: 120.0}}, 4)])
def test_killed_and_resumed_is_byte_identical(tmp_path, options, stores):
    run(tmp_path / "whole", source(3500), **options)
    reference = contents(tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), str(Path(__file__).parent), str(stores), "7", json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    for k in range(stores):
        assert differing(tmp_path / f"s{k}", reference) == []
        assert store.verify(tmp_path / f"s{k}", full=True) == []


@pytest.mark.parametrize("upto", [0, 130, 520, 1300, 2990])
def test_interrupted_and_resumed_is_byte_identical(tmp_path, reference, upto):
    x = source(3500)
    with pytest.raises(KeyboardInterrupt), store.create(tmp_path / "s", **OPTIONS) as writer:  # noqa: PT012
        feed(writer, x, upto)
        raise KeyboardInterrupt
    with pytest.raises(StoreError, match=r"unfinished; .*go on with `splinterp harvest \.\.\. --resume`"):
        store.open(tmp_path / "s")
    assert any("unfinished" in problem for problem in store.verify(tmp_path / "s", full=True))
    if upto >= 1300:
        part = store.open(tmp_path / "s", unfinished=True)
        assert 0 < part.rows <= upto
        assert part.status == "writing"
    with store.create(tmp_path / "s", **OPTIONS, resume=True) as writer:
        # Ctrl-C costs nothing: the rows that waited in the pool are kept too.
        assert writer.resume_offered == writer.kept + writer.dropped == -(-upto // 130) * 130
        assert writer.offered - writer.dropped == writer.rows
        feed(writer, x)
        writer.finish()
    assert contents(tmp_path / "s") == reference


def test_rows_that_wait_in_the_pool_are_told_where_there_are_no_others(tmp_path):
    told = []
    with store.create(tmp_path / "s", **OPTIONS | {"memory": 2**20}) as writer:
        feed(writer, source(), 1300)
    pool = tmp_path / "s" / "pool"
    for damage in (b"", b"x"):
        pool.write_bytes(pool.read_bytes() + damage)
        with pytest.raises(StoreError, match="go on with `splinterp harvest") as caught:
            store.open(tmp_path / "s", unfinished=True)
        told.append(str(caught.value))
    assert "holds no rows yet, beside 1,286 kept for a resume: " in told[0]
    assert "holds no rows yet: " in told[1]


def test_info_tells_the_rows_that_wait_beside_those_in_chunks(tmp_path):
    """Together they are what an interrupted harvest says it has stored."""
    with store.create(tmp_path / "s", **OPTIONS) as writer:
        feed(writer, source(), 1300)
    facts = store.open(tmp_path / "s", unfinished=True).info()
    assert facts["rows"] > 0 < facts["rows_kept_for_resume"]
    assert facts["rows"] + facts["rows_kept_for_resume"] == writer.kept


@pytest.mark.parametrize("how", ["cut", "flipped bit", "foreign", "lying header", "of an earlier time"])
def test_a_damaged_pool_file_costs_time_and_nothing_else(tmp_path, reference, how):
    pool, x = tmp_path / "s" / "pool", source(3500)
    with store.create(tmp_path / "s", **OPTIONS) as writer:
        feed(writer, x, 500)
    early = pool.read_bytes()
    with store.create(tmp_path / "s", **OPTIONS, resume=True) as writer:
        assert writer.resume_offered == 520
        feed(writer, x, 2000)
    data = bytearray(pool.read_bytes())
    match how:
        case "cut":
            data = data[:-1]
        case "flipped bit":
            data[len(data) // 2] ^= 1
        case "foreign":
            data = b"hello"
        case "lying header":
            data = data.replace(b'"fill": 9', b'"fill": 8').replace(b'"fill": ', b'"fill": 99999999999', 1)
        case "of an earlier time":
            data = early
    pool.write_bytes(data)
    with store.create(tmp_path / "s", **OPTIONS, resume=True) as writer:
        assert writer.resume_offered < 2080
        feed(writer, x)
        writer.finish()
    assert contents(tmp_path / "s") == reference


def test_a_slow_writer_keeps_its_pool_from_time_to_time(tmp_path, reference, monkeypatch):
    monkeypatch.setattr("splinterp.store.writer.SPILL_SECONDS", 0.0)
    path, x = tmp_path / "s", source(3500)
    writer = store.create(path, **OPTIONS)
    for a in (0, 30, 60):
        writer.add({SITE: x[a : a + 30]}, {"i": np.arange(a, a + 30)})
    kept = contents(path)
    writer.close()
    # As a kill would have left it, without `close`: nothing of the last whole batch is missing.
    for name, data in kept.items():
        (path / name).write_bytes(data)
    with store.create(path, **OPTIONS, resume=True) as writer:
        assert writer.resume_offered == 90
        feed(writer, x)
        writer.finish()
    assert contents(path) == reference


def test_a_writer_begins_no_thread_amidst_its_work(tmp_path, monkeypatch):
    """One that is begun when no memory is left may never say so: a harvest waited for it for ever."""
    writer = store.create(tmp_path / "acts.zarr", sites={"h": 3}, chunk_rows=256, memory=1)

    def start(self) -> None:
        raise AssertionError("a thread is begun")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for _ in range(20):
            writer.add({"h": torch.randn(100, 3)}, {})
        assert writer.finish().rows == 2000


def test_resume_begins_where_there_is_nothing(tmp_path, reference):
    run(tmp_path / "s", source(3500), resume=True)
    assert contents(tmp_path / "s") == reference
    with pytest.raises(StoreError, match="complete; there is nothing to resume"):
        run(tmp_path / "s", source(3500), resume=True)


def test_resume_with_other_settings_names_what_differs(tmp_path):
    with store.create(tmp_path / "s", **OPTIONS, attributes={"model": "tiny"}) as writer:
        feed(writer, source(), 500)
    for change, says in [
        ({"seed": 6}, "seed = 5, not 6"),
        ({"dtype": "float32"}, "dtype = bfloat16, not float32"),
        ({"rows": 99}, "planned_rows = 3000, not 99"),
        ({"sites": {SITE: 4}}, "sites"),
        ({"columns": ()}, "columns"),
        ({"attributes": {"model": "gpt2"}}, "model = tiny, not gpt2"),
    ]:
        with pytest.raises(StoreError) as error:
            store.create(tmp_path / "s", **({**OPTIONS, "attributes": {"model": "tiny"}} | change), resume=True)
        assert says in str(error.value)
    # Another memory budget is no difference: the pool keeps the size it began with.
    store.create(tmp_path / "s", **(OPTIONS | {"memory": 2**30}), attributes={"model": "tiny"}, resume=True).close()


def test_a_changed_source_replaces_half_a_generation_and_loses_nothing(tmp_path):
    """A resumed source may differ in its last bits, or be shorter: what counted before must not be mixed with it."""
    x = source(3500)
    with store.create(tmp_path / "s", **OPTIONS) as writer:
        feed(writer, x, 1600)
    log = tmp_path / "s" / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(line for line in lines if json.loads(line)["chunk"] % 4 or json.loads(line)["chunk"] < 4))
    y = x.clone()
    y[:, 0] += 200
    with store.create(tmp_path / "s", **OPTIONS, resume=True) as writer:
        skip = writer.resume_offered
        assert 0 < skip < 500
        feed(writer, y[:1000])
        opened = writer.finish()
    ids = torch.from_numpy(opened.column("i").astype(np.int64))
    expected = [i for i in range(1000) if i % 97]
    assert sorted(ids.tolist()) == expected
    mixed = torch.cat([x[:skip], y[skip:]])
    assert torch.equal(opened.acts(None, 0, opened.rows).float(), mixed[ids].bfloat16().float())
    assert store.verify(tmp_path / "s", full=True) == []


def test_a_torn_last_line_is_ignored_and_cut_off(tmp_path, reference):
    x = source(3500)
    with store.create(tmp_path / "s", **OPTIONS) as writer:
        feed(writer, x, 2000)
    log = tmp_path / "s" / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-40])
    run(tmp_path / "s", x, resume=True)
    assert contents(tmp_path / "s") == reference


def test_a_damaged_middle_line_is_refused(tmp_path):
    with store.create(tmp_path / "s", **OPTIONS) as writer:
        feed(writer, source(), 2000)
    log = tmp_path / "s" / "log.jsonl"
    log.write_bytes(b"{]" + log.read_bytes()[2:])
    with pytest.raises(StoreError, match="damaged in line 1"):
        store.create(tmp_path / "s", **OPTIONS, resume=True)
    with pytest.raises(StoreError, match="damaged in line 1"):
        store.open(tmp_path / "s", unfinished=True)


def test_a_committed_chunk_that_has_gone_is_written_again(tmp_path, reference):
    x = source(3500)
    with store.create(tmp_path / "s", **OPTIONS) as writer:
        feed(writer, x, 2000)
    (tmp_path / "s" / SITE / "acts" / "c.1.0").unlink()
    run(tmp_path / "s", x, resume=True)
    assert contents(tmp_path / "s") == reference


def test_a_second_writer_is_refused(tmp_path):
    with store.create(tmp_path / "s", **OPTIONS) as writer:
        for options in ({"resume": True}, {"force": True}):
            with pytest.raises(StoreError, match="being written by another process"):
                store.create(tmp_path / "s", **OPTIONS, **options)
        with pytest.raises(StoreError, match="exists already"):
            store.create(tmp_path / "s", **OPTIONS)
        feed(writer, source())
        assert writer.finish().rows == 2969
    with pytest.raises(StoreError, match="closed"):
        writer.add({SITE: torch.ones(1, 3)}, {"i": np.arange(1)})


@pytest.mark.parametrize("where", ["chunk", "log"])
def test_a_full_disk_is_a_sentence_and_resume_works_after_space_is_made(tmp_path, reference, monkeypatch, where):
    x = source(3500)
    real, module, budget = files.write_all, files if where == "chunk" else manifest, [9]
    guard = threading.Lock()

    def full(fd: int, data: memoryview) -> None:
        with guard:
            budget[0] -= threading.current_thread().name.startswith("splinterp-store")
        if budget[0] < 0:
            real(fd, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, data)

    monkeypatch.setattr(module, "write_all", full)
    with store.create(tmp_path / "s", **OPTIONS) as writer:
        with pytest.raises(StoreError) as error:  # noqa: PT012
            feed(writer, x)
            writer.finish()
        with pytest.raises(StoreError, match="No space left on device"):
            writer.finish()
    assert "could not be written: No space left on device. The rows stored so far are kept" in str(error.value)
    monkeypatch.undo()
    assert not list((tmp_path / "s").rglob("*.tmp"))
    run(tmp_path / "s", x, resume=True)
    assert contents(tmp_path / "s") == reference


def damage(path: Path, how: str) -> str:
    """Spoil one thing; returns the file that must be named."""
    chunk, root = path / SITE / "acts" / "c.2.0", path / "zarr.json"
    match how:
        case "flipped bit":
            data = bytearray(chunk.read_bytes())
            data[100] ^= 1
            chunk.write_bytes(data)
        case "swapped chunk":
            chunk.write_bytes((path / SITE / "acts" / "c.3.0").read_bytes())
        case "truncated chunk":
            os.truncate(chunk, 50)
        case "long chunk":
            os.truncate(chunk, 5000)
        case "deleted chunk":
            chunk.unlink()
        case "deleted column chunk":
            (path / "i" / "c.2").unlink()
            return str(path / "i" / "c.2")
        case "damaged root":
            root.write_text(root.read_text()[:100])
            return str(root)
        case "changed root":
            root.write_text(root.read_text().replace('"rows": 300', '"rows": 299'))
            return str(root)
        case "nonsense root":
            root.write_text(root.read_text().replace('"status": "complete"', '"status": "splendid"'))
            return str(root)
        case "changed attribute":
            root.write_text(root.read_text().replace('"seed": 0', '"seed": 1'))
            return str(root)
        case "changed mean":
            site = path / SITE / "zarr.json"
            site.write_text(site.read_text().replace('"mean_norm": ', '"mean_norm": 1'))
            return str(site)
        case "damaged array":
            (path / SITE / "acts" / "zarr.json").write_text("{")
            return str(path / SITE / "acts" / "zarr.json")
        case "wrong shape":
            array = path / SITE / "acts" / "zarr.json"
            array.write_text(json.dumps(json.loads(array.read_text()) | {"shape": [301, 3]}))
            return str(array)
        case "damaged manifest":
            (path / "manifest.jsonl").write_bytes((path / "manifest.jsonl").read_bytes().replace(b"100", b"101", 1))
            return str(path / "manifest.jsonl")
        case "missing manifest":
            (path / "manifest.jsonl").unlink()
            return str(path / "manifest.jsonl")
        case "missing site":
            (path / SITE / "zarr.json").unlink()
            return str(path / SITE / "zarr.json")
        case "foreign file":
            (path / SITE / "acts" / "notes.txt").write_text("hello")
            return str(path / SITE / "acts" / "notes.txt")
        case "foreign chunk":
            (path / SITE / "acts" / "c.7.0").write_bytes(chunk.read_bytes())
            return str(path / SITE / "acts" / "c.7.0")
    return str(chunk)


SEEN_BY_FULL = ["flipped bit", "swapped chunk"]
SEEN_AT_OPEN = [
    "truncated chunk", "long chunk", "deleted chunk", "deleted column chunk", "damaged root", "changed root", "nonsense root",
    "changed attribute", "changed mean", "damaged array", "wrong shape", "damaged manifest", "missing manifest", "missing site", "foreign file", "foreign chunk",
]  # fmt: skip


@pytest.mark.parametrize("how", SEEN_BY_FULL + SEEN_AT_OPEN)
def test_damage_is_named_by_verify_and_refused_by_open(tmp_path, how):
    path = tmp_path / "s"
    x = source(400)[torch.arange(400) % 97 != 0][:300]
    with store.create(path, sites={SITE: 3}, columns=("i",), rows=300, chunk_rows=100) as writer:
        writer.add({SITE: torch.cat([x, x])}, {"i": np.arange(2 * len(x))})
        writer.finish()
    if how == "swapped chunk":  # needs a fourth chunk
        with store.create(path, sites={SITE: 3}, columns=("i",), rows=400, chunk_rows=100, force=True) as writer:
            writer.add({SITE: torch.cat([x, x])}, {"i": np.arange(2 * len(x))})
            writer.finish()
    calls = []
    assert store.verify(path, full=True, progress=lambda *done: calls.append(done)) == []
    assert calls[-1][0] == calls[-1][1] == len(calls)
    name = damage(path, how)
    found = store.verify(path, full=True)
    assert len(found) == 1
    assert name in found[0]
    assert "\n" not in found[0]
    if how in SEEN_BY_FULL:
        assert store.verify(path, full=False) == []
        # Too dear to look for when a store is opened; but no damaged row is ever handed out as a sound one.
        opened = store.open(path)
        for shuffle in (True, False):
            with pytest.raises(StoreError, match="do not match their checksum") as error:
                list(opened.batches(None, 30, split="all", shuffle=shuffle))
            assert name in str(error.value)
    else:
        assert store.verify(path, full=False) == found
        with pytest.raises(StoreError) as error:
            store.open(path)
        assert name in str(error.value)
        assert "Error" not in str(error.value)


FULL = """
import sys, json
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from splinterp import store
from splinterp.errors import StoreError
import test_store_crash as t
disk = Path(sys.argv[1])
filler, path, x, said = disk / "filler", disk / "s", t.source(3500), []
for free in (0, 5, 20, 60):
    filler.write_bytes(bytes(1))
    try:  # everything but so many KiB
        with filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        pass
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - free * 1024))
    try:
        t.run(path, x, resume=path.exists())
        said.append("finished")
        break
    except StoreError as error:
        said.append(str(error))
    problems = store.verify(path, full=True) if (path / "zarr.json").exists() else []
    assert all("unfinished" in problem for problem in problems), problems
filler.unlink()
if said[-1] != "finished":
    t.run(path, x, resume=True)
assert store.verify(path, full=True) == []
print(json.dumps([said, {name: data.hex() for name, data in t.contents(path).items()}]))
"""


def test_a_really_full_disk(tmp_path, reference):
    # A user's own mount namespace, so that no right is needed to mount a file system of 400 KiB.
    command = 'mount -t tmpfs -o size=400k tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody mount a small file system")
    done = subprocess.run(
        [*unshare, "sh", "-c", command, "sh", str(tmp_path), sys.executable, FULL, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, found = json.loads(done.stdout)
    assert said[0] != "finished"
    assert all("No space left on device" in sentence for sentence in said if sentence != "finished")
    assert {name: bytes.fromhex(data) for name, data in found.items()} == reference


def test_what_is_no_store_is_refused_with_a_sentence(tmp_path):
    import zarr

    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    zarr.create_group(tmp_path / "group")
    zarr.create_array(tmp_path / "array", shape=(3,), dtype="f4")
    for name, says in [
        ("nothing", "There is no store at"),
        ("folder", "is not a store: it holds no zarr.json"),
        ("file", "is not a store"),
        ("group", "not a splinterp store"),
        ("array", "does not describe a Zarr v3 group"),
    ]:
        with pytest.raises(StoreError) as error:
            store.open(tmp_path / name)
        assert says in str(error.value)
        assert str(tmp_path / name) in str(error.value)


def test_a_newer_format_is_refused(tmp_path):
    with store.create(tmp_path / "s", sites={SITE: 3}, rows=4) as writer:
        writer.add({SITE: torch.ones(4, 3)})
        writer.finish()
    root = tmp_path / "s" / "zarr.json"
    root.write_text(root.read_text().replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(StoreError, match="newer"):
        store.open(tmp_path / "s")
