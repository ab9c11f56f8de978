"""A store as SAELens's cached activations: SAELens reads its rows, and so do we."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store.export_saelens import export_saelens

ROWS, CONTEXT = 1000, 7


def written(path, dtype: str, columns=("token_id",), sites=None):
    sites = sites or {"blocks.1.hook_resid_post": 6}
    with store.create(path, sites=sites, dtype=dtype, columns=columns, rows=ROWS, attributes={"context": CONTEXT}) as writer:
        rows = {name: torch.randn(ROWS, d) for name, d in sites.items()}
        writer.add(rows, {name: np.arange(ROWS) + 10 for name in columns})
        return writer.finish()


def pairs(x: torch.Tensor, ids) -> list[tuple]:
    return sorted((int(i), *row) for i, row in zip(ids, x.double().tolist(), strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_exported_comes_back(tmp_path, dtype):
    sites = {"blocks.1.hook_resid_post": 6, "blocks.2.hook_resid_post": 3}
    opened, seen = written(tmp_path / "s", dtype, sites=sites), []
    assert export_saelens(opened, tmp_path / "cached", progress=lambda *told: seen.append(told)) == 994
    assert seen[-1] == (994, 994)
    again = store.import_files([tmp_path / "cached"], tmp_path / "again")
    assert again.rows == 994
    assert {name: site.dtype for name, site in again.sites.items()} == dict.fromkeys(
        sites, "float32" if dtype == "bfloat16" else dtype
    )
    for name in sites:
        ours = pairs(opened.acts(name, 0, 994), opened.column("token_id", 0, 994))
        assert pairs(again.acts(name, 0, 994), again.column("token_id")) == ours


def test_saelens_reads_it(tmp_path):
    activations_store = pytest.importorskip("sae_lens.training.activations_store")
    opened = written(tmp_path / "s", "float32")
    export_saelens(opened, tmp_path / "cached", context=10, split="train")
    theirs = activations_store.ActivationsStore(
        model=None, dataset=None, streaming=False, hook_name="blocks.1.hook_resid_post", hook_head_index=None, context_size=10, d_in=6,
        n_batches_in_buffer=2, total_training_tokens=100, store_batch_size_prompts=5, train_batch_size_tokens=50, prepend_bos=False,
        normalize_activations="none", device=torch.device("cpu"), dtype="float32", cached_activations_path=str(tmp_path / "cached"),
    )  # fmt: skip
    x, ids = theirs.get_raw_llm_batch()
    assert torch.equal(x, next(opened.batches(None, 50, split="train", shuffle=False)))
    known = {tuple(row): i for row, i in zip(opened.acts(None, 0, ROWS).tolist(), opened.column("token_id"), strict=True)}
    assert [known[tuple(row)] for row in x.tolist()] == ids.tolist()


def test_mistakes_have_their_sentences(tmp_path):
    opened = written(tmp_path / "s", "float32", columns=())
    with pytest.raises(StoreError, match="fewer than a context of 5000"):
        export_saelens(opened, tmp_path / "out", context=5000)
    assert export_saelens(opened, tmp_path / "out") == 994
    with pytest.raises(StoreError, match="exists already"):
        export_saelens(opened, tmp_path / "out")
    assert export_saelens(opened, tmp_path / "out", context=500, force=True) == 1000
    assert store.import_files([tmp_path / "out"], tmp_path / "again").columns == ("position", "sequence")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(StoreError, match="exists already"):
        export_saelens(opened, tmp_path / "mine", force=True)
