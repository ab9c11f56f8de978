"""One store written by several ranks: every row once, whoever ends last, whenever somebody is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store.layout import LOG, POOL

SITES = {"a": 3, "b": 2}
OPTIONS = {"sites": SITES, "columns": ("i",), "dtype": "float32", "chunk_rows": 64, "memory": 2 * 64 * 50 * 2}


def rows_of(first: int, n: int) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    i = torch.arange(first, first + n)
    return {"a": torch.stack([i, i * 2, i % 7], 1).float(), "b": torch.stack([i, -i], 1).float()}, {"i": i.numpy()}


def write(path: Path, rank: int, world: int, n: int, **options) -> None:
    writer = store.create_rank(path, rank, world, **(OPTIONS | options))
    if writer is not None:
        with writer:
            for a in range(writer.resume_offered, n, 50):
                acts, columns = rows_of(rank * 10_000 + a, min(50, n - a))
                writer.add(acts, columns)
            writer.finish({"documents": n})


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def check(joined: store.Store, sizes: list[int]) -> None:
    expected = np.concatenate([np.arange(r * 10_000, r * 10_000 + n) for r, n in enumerate(sizes)])
    i = joined.column("i").astype(np.int64)
    assert np.array_equal(np.sort(i), expected)
    for name, values in rows_of(0, 0)[0].items():
        x = joined.acts(name, 0, joined.rows)
        assert x[:, 0].equal(torch.from_numpy(i).float()), values
        assert torch.allclose(joined.sites[name].mean, x.double().mean(0))
        assert joined.sites[name].rms_norm == pytest.approx(float(x.double().square().sum(1).mean().sqrt()))
    assert store.verify(joined.path, full=True) == []
    assert not [f for f in joined.path.rglob("*") if f.name.startswith(".")]
    seen = torch.cat([batch.clone() for batch in joined.batches("a", 100, split="all")])
    assert np.array_equal(np.sort(seen[:, 0].numpy()), expected)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4))
def test_every_row_of_every_rank_once(sizes, tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "s"
    for rank, n in enumerate(sizes):
        write(path, rank, len(sizes), n)
        if rank + 1 < len(sizes):
            assert store.join(path) is None
            with pytest.raises(StoreError, match="unfinished"):
                store.open(path)
    joined = store.join(path)
    check(joined, sizes)
    assert joined.attributes["ranks"] == len(sizes)
    assert joined.attributes["documents"] == sizes[0]
    assert store.join(path).fingerprint == joined.fingerprint


def test_planned_rows_are_shared_evenly(tmp_path):
    for rank in range(3):
        write(tmp_path / "s", rank, 3, 1000, rows=1000)
    check(store.join(tmp_path / "s"), [333, 333, 334])


RANK = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import torch
torch.set_num_threads(1)
from splinterp import store
import test_store_ranks as t
path, rank = Path(sys.argv[2]), int(sys.argv[3])
t.write(path, rank, 3, 500 + rank, resume=True)
store.join(path)
"""


def test_ranks_at_once_and_the_last_one_joins(tmp_path):
    command = [sys.executable, "-c", RANK, str(Path(__file__).parent), str(tmp_path / "s")]
    running = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(3)]
    for process in running:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    check(store.open(tmp_path / "s"), [500, 501, 502])


def test_killed_ranks_and_joins_give_the_same_store(tmp_path):
    sizes = [150, 290, 64]
    for rank, n in enumerate(sizes):
        write(tmp_path / "whole", rank, 3, n)
    expected = contents(store.join(tmp_path / "whole").path)
    moments = np.random.default_rng(0)
    for k in range(6):
        path, kills = tmp_path / f"s{k}", 0
        while True:
            pid = os.fork()
            if pid == 0:
                torch.set_num_threads(1)
                try:
                    for rank, n in enumerate(sizes):
                        write(path, rank, 3, n, resume=True)
                    store.join(path)
                except StoreError as error:
                    os._exit(0 if "is complete" in str(error) else 3)
                finally:
                    os._exit(0 if path.exists() and store.join(path) else 4)
            time.sleep(float(moments.uniform(0, 0.15)) + 0.05 * kills)
            os.kill(pid, signal.SIGKILL)
            if (status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) == 0:
                break
            assert status == -signal.SIGKILL
            kills += 1
        store.join(path)
        assert contents(path) == expected


def test_a_join_clears_up_after_one_that_was_killed_right_after_its_last_word(tmp_path):
    for rank, n in enumerate([150, 64]):
        write(tmp_path / "s", rank, 2, n)
    path = store.join(tmp_path / "s").path
    expected = contents(path)
    for name in (LOG, POOL):
        (path / name).write_bytes(b"left")
    store.join(path)
    assert contents(path) == expected


def test_what_ranks_are_told(tmp_path):
    write(tmp_path / "s", 0, 2, 100)
    with pytest.raises(StoreError, match="exists already and is unfinished; go on with --resume"):
        store.create_rank(tmp_path / "s", 0, 2, **OPTIONS)
    with pytest.raises(StoreError, match="was begun with ranks = 2, not 3"):
        store.create_rank(tmp_path / "s", 1, 3, **OPTIONS)
    with pytest.raises(StoreError, match="was begun with seed = 0, not 1"):
        store.create_rank(tmp_path / "s", 1, 2, **OPTIONS, seed=1)
    with pytest.raises(StoreError, match="was begun with ranks = 2, not None"):
        store.create(tmp_path / "s", **OPTIONS, resume=True)
    with pytest.raises(StoreError, match="Rank 2 is not one of 2 ranks"):
        store.create_rank(tmp_path / "s", 2, 2, **OPTIONS)
    with pytest.raises(StoreError, match="too few for 3 ranks"):
        store.create_rank(tmp_path / "t", 0, 3, **OPTIONS, rows=2)
    writer = store.create_rank(tmp_path / "s", 1, 2, **OPTIONS)
    with pytest.raises(StoreError, match="being written by another process"):
        store.create(tmp_path / "s", **OPTIONS, force=True)
    writer.close()
    assert store.create_rank(tmp_path / "s", 0, 2, **OPTIONS, resume=True) is None
    write(tmp_path / "s", 1, 2, 100, resume=True)
    tail = tmp_path / "s" / ".ranks" / "1" / "a" / "acts" / "c.1.0"
    sound = tail.read_bytes()
    tail.write_bytes(b"\1" + sound[1:])
    with pytest.raises(StoreError, match=r"c\.1\.0 is damaged"):
        store.join(tmp_path / "s")
    tail.write_bytes(sound)
    check(store.join(tmp_path / "s"), [100, 100])
    with pytest.raises(StoreError, match="is complete; there is nothing to resume"):
        store.create_rank(tmp_path / "s", 0, 2, **OPTIONS, resume=True)
    with store.create(tmp_path / "plain", **OPTIONS) as writer:
        writer.add(*rows_of(0, 10))
    with pytest.raises(StoreError, match="not written by ranks"):
        store.join(tmp_path / "plain")
