"""RowDataset: the store's batches for loops built on a DataLoader; and batches that arrive on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from splinterp import store
from splinterp.errors import StoreError
from torch.utils.data import DataLoader

ROWS = 256 * 23 + 17


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset") / "s"
    with store.create(path, sites={"hook": 3}, dtype="float32", rows=ROWS, chunk_rows=1024) as writer:
        writer.add({"hook": torch.arange(ROWS).float()[:, None].repeat(1, 3)})
        writer.finish()
    return path


def firsts(batches) -> list[list[float]]:
    return [batch[:, 0].tolist() for batch in batches]


def test_the_batches_are_those_of_the_store(path):
    opened = store.open(path)
    dataset = store.RowDataset(opened, batch_size=300, seed=3)
    loader = DataLoader(dataset, batch_size=None)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert firsts(loader) == firsts(opened.batches("hook", 300, seed=3, epoch=epoch))
    assert len(loader) == opened.n_batches(300, seed=3, epoch=1)


def test_every_tensor_is_its_own(path):
    batches = list(store.RowDataset(path, batch_size=256))
    assert len({batch.data_ptr() for batch in batches}) == len(batches)


def test_workers_and_ranks_share_an_epoch(path):
    seen = []
    for rank in range(2):
        dataset = store.RowDataset(path, batch_size=200, rank=rank, world=2)
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
        seen += [value for batch in firsts(loader) for value in batch]
    expected = [value for batch in firsts(store.open(path).batches("hook", 512)) for value in batch]
    assert sorted(seen) == sorted(expected)


def test_an_epoch_is_taken_up_where_it_was_left(path):
    whole = firsts(store.RowDataset(path, batch_size=200, seed=1))
    dataset = store.RowDataset(path, batch_size=200, seed=1)
    iterator = iter(dataset)
    begun = [next(iterator)[:, 0].tolist() for _ in range(7)]
    state = dataset.state_dict()
    iterator.close()
    again = store.RowDataset(path, batch_size=200, seed=1)
    again.load_state_dict(state)
    assert begun + firsts(again) == whole
    assert firsts(again) == whole  # and the next time from the beginning


def test_parameters_are_looked_at_early(path):
    with pytest.raises(StoreError, match="batch size must be at least 1"):
        store.RowDataset(path, batch_size=0)
    with pytest.raises(StoreError, match="no site 'other'"):
        store.RowDataset(path, "other", batch_size=5)
    with pytest.raises(StoreError, match="Rank 2 is not one of 2"):
        store.RowDataset(path, batch_size=5, rank=2, world=2)
    with pytest.raises(StoreError, match="both rank and world"):
        store.RowDataset(path, batch_size=5, rank=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_are_the_same_and_stay(path):
    opened = store.open(path)
    there = []
    work = torch.randn(2048, 2048, device="cuda")
    for batch in opened.batches("hook", 300, seed=2, device=torch.device("cuda")):
        for _ in range(20):  # a busy stream: a copy that waited for it, or a buffer used too early, would show
            work = torch.nn.functional.normalize(work @ work)
        there.append(batch)
    here = [batch.clone() for batch in opened.batches("hook", 300, seed=2)]
    assert all(np.array_equal(a.cpu().numpy(), b.numpy()) for a, b in zip(there, here, strict=True))
