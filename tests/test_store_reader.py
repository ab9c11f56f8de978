"""Reading: every row exactly once an epoch over all ranks, the held-out and validation rows never, the same for the same seed."""

from __future__ import annotations

import threading
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store.batches import BLOCK, plan_epoch, split_blocks, split_rows

SITE = "hook"


def make(path, rows: int, chunk_rows: int, dtype: str = "float32"):
    x = torch.stack([torch.arange(rows).float(), torch.ones(rows)], 1)
    with store.create(path, sites={SITE: 2}, rows=rows, dtype=dtype, chunk_rows=chunk_rows, columns=("i",)) as writer:
        writer.add({SITE: x}, {"i": torch.arange(rows)})
        return writer.finish()


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    return make(tmp_path_factory.mktemp("big") / "s", 20_100, 1000)


def numbers(batches) -> list[int]:
    return [int(i) for batch in batches for i in batch[:, 0].clone()]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_plans_cover_every_row_once(data):
    rows = data.draw(st.integers(1, 30_000))
    batch_size = data.draw(st.integers(20, 5000))
    world = data.draw(st.integers(1, 5))
    seed, epoch = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    shuffle = data.draw(st.booleans())
    seen = []
    for split in ("train", "validation", "held_out"):
        for rank in range(world):
            plan = plan_epoch(rows, batch_size, seed=seed, epoch=epoch, split=split, rank=rank, world=world, shuffle=shuffle)
            for batch in range(plan.n_batches):
                spans = plan.spans(batch)
                size = sum(b - a for a, b in spans)
                assert size == batch_size or (batch == plan.n_batches - 1 and 0 < size < batch_size)
                seen += [i for a, b in spans for i in range(a, b)]
    assert sorted(seen) == list(range(rows))


@given(rows=st.integers(1, 3_000_000))
def test_a_fortieth_is_for_validation_of_whole_blocks_and_capped(rows):
    blocks = -(-rows // BLOCK)
    validation, rest = split_blocks(rows, "validation"), (split_blocks(rows, "train"), split_blocks(rows, "held_out"))
    assert len(validation) == (0 if blocks < 8 else max(1, min(blocks // 40, 64)))
    assert split_rows(rows, "validation") == BLOCK * len(validation)  # none of them is the store's last, short one
    assert sorted(i for part in (validation, *rest) for i in part) == list(range(blocks))


def test_held_out_rows_are_those_of_stores_before_there_were_validation_rows():
    """Figures of runs on one store stay comparable."""
    order = np.random.default_rng([20240607, 100]).permutation(100)
    assert split_blocks(100 * BLOCK, "held_out").tolist() == sorted(order[:5])


def test_held_out_is_a_twentieth_and_capped():
    assert split_rows(100, "held_out") == 0
    assert split_rows(100, "train") == 100
    assert split_rows(2 * BLOCK, "held_out") == BLOCK
    assert len(split_blocks(100 * BLOCK, "held_out")) == 5
    assert split_rows(10**8, "held_out") <= 65536
    assert sum(split_rows(10**8, split) for split in ("train", "validation", "held_out")) == 10**8
    with pytest.raises(StoreError, match="train, validation, held_out, all"):
        split_rows(10, "test")  # pyright: ignore[reportArgumentType]


def test_an_epoch_over_all_ranks_is_every_train_row_once_and_no_other(big):
    held = numbers(big.batches(None, 777, split="held_out"))
    validation = numbers(big.batches(None, 777, split="validation"))
    for epoch in range(2):
        train = [i for rank in range(3) for i in numbers(big.batches(SITE, 777, rank=rank, world=3, epoch=epoch))]
        assert sorted(train + validation + held) == list(range(20_100))
        assert len(train) == big.split_rows("train")
    assert len(held) == big.split_rows("held_out")
    assert len(validation) == big.split_rows("validation") == big.info()["splits"]["validation"] > 0
    assert numbers(big.batches(None, 5, split="held_out", shuffle=False)) == numbers(
        big.batches(None, 900, split="held_out", shuffle=False, seed=3)
    )


def test_deterministic_in_seed_and_epoch(big):
    base = numbers(big.batches(None, 500, seed=1, epoch=2))
    assert base == numbers(big.batches(None, 500, seed=1, epoch=2))
    assert base == numbers(big.batches(None, 333, seed=1, epoch=2))
    assert base != numbers(big.batches(None, 500, seed=1, epoch=3))
    assert base != numbers(big.batches(None, 500, seed=2, epoch=2))


@pytest.mark.parametrize("start", [0, 1, 7, 38, 39, 1000])
def test_start_equals_skipping(big, start):
    whole = [batch.clone() for batch in big.batches(None, 500, seed=4)]
    rest = [batch.clone() for batch in big.batches(None, 500, seed=4, start=start)]
    assert len(rest) == max(0, len(whole) - start)
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))
    assert big.n_batches(500, seed=4) == len(whole)


def test_drop_last_and_store_order(big):
    sizes = [len(batch) for batch in big.batches(None, 1000, split="all", drop_last=True)]
    assert sizes == [1000] * 20
    assert big.n_batches(1000, split="all", drop_last=True) == 20
    got = torch.cat([batch.clone() for batch in big.batches(None, 999, split="all", shuffle=False)])
    assert torch.equal(got, big.acts(None, 0, 20_100))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_batches_come_in_the_storage_dtype(tmp_path, dtype):
    opened = make(tmp_path / "s", 1000, 300, dtype)
    batch = next(iter(opened.batches(None, 64)))
    assert batch.dtype == opened.acts(None, 0, 1).dtype == getattr(torch, dtype)
    assert batch.shape == (64, 2)


def readers() -> int:
    return sum(thread.name == "splinterp-reader" for thread in threading.enumerate())


def test_walking_away_stops_the_thread(big):
    batches = big.batches(None, 100)
    next(batches)
    assert readers() == 1
    batches.close()
    assert readers() == 0
    for _ in big.batches(None, 100):
        break
    deadline = time.monotonic() + 5
    while readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert readers() == 0
    unused = big.batches(None, 100)
    del unused
    assert readers() == 0


def test_acts_within_a_chunk_is_a_view_and_across_chunks_a_copy(big):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a, b = big.acts(None, 10, 20), big.acts(None, 15, 30)
        across = big.acts(None, 990, 1010)
    assert a[5].data_ptr() == b[0].data_ptr()
    assert torch.equal(across[:10], big.acts(None, 990, 1000))
    assert across.shape == (20, 2)
    assert big.acts(None, 20_100, 20_100).shape == (0, 2)
    assert big.acts(None, 7, 7).shape == (0, 2)
    assert (big.column("i", 980, 1020) == big.acts(None, 980, 1020)[:, 0].numpy()).all()


def test_writing_to_a_view_never_reaches_the_file(tmp_path):
    opened = make(tmp_path / "s", 500, 256)
    opened.acts(None, 0, 10).fill_(7)
    assert store.verify(tmp_path / "s", full=True) == []


def test_rows_and_names_that_are_not_there_say_so(big, tmp_path):
    for call in (
        lambda: big.acts(None, 0, 20_101),
        lambda: big.acts(None, -1, 5),
        lambda: big.acts("nope", 0, 5),
        lambda: big.column("nope"),
        lambda: big.batches("nope", 5),
        lambda: big.batches(None, 0),
        lambda: big.batches(None, 5, rank=2, world=2),
        lambda: big.batches(None, 5, start=-1),
        lambda: big.batches(None, 5, seed=-1),
    ):
        with pytest.raises(StoreError) as error:
            call()
        assert "\n" not in str(error.value)
    with store.create(tmp_path / "two", sites={"a": 2, "b": 2}, rows=3) as writer:
        writer.add({"a": torch.ones(3, 2), "b": torch.ones(3, 2)})
        two = writer.finish()
    with pytest.raises(StoreError, match="a, b"):
        two.site(None)
    with pytest.raises(StoreError, match="has no site 'c'; it has a, b"):
        two.site("c")


@pytest.mark.parametrize("how", ["cut", "removed"])
def test_a_chunk_that_vanishes_while_reading_says_so(tmp_path, how):
    opened = make(tmp_path / "s", 3000, 256)
    for file in (tmp_path / "s" / SITE / "acts").glob("c.*"):
        file.unlink() if how == "removed" else file.write_bytes(b"")
    with pytest.raises(StoreError, match="acts"):
        list(opened.batches(None, 100))
    with pytest.raises(StoreError, match="acts"):
        opened.acts(None, 0, 10)
    assert readers() == 0
