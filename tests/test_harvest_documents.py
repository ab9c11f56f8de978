"""Tokenised documents, one document a row, skipped tokens, mixtures: what they leave in a store."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splinterp.errors import ModelError, SplinterpError, StoreError, TextError
from splinterp.harvest import HarvestConfig, harvest
from splinterp.harvest.arrange import arranged
from splinterp.harvest.evaluation import evaluation_batches

BOS, CONTEXT = 0, 24
SITE = "blocks.1.hook_resid_post"
token_lists = st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=30)


@pytest.fixture
def config(gpt2_dir, jsonl, tmp_path) -> HarvestConfig:
    return HarvestConfig(
        model=str(gpt2_dir), layers=(1,), dataset=str(jsonl), tokens=10**6, context=CONTEXT, batch_size=4, dtype="float32",
        out=tmp_path / "s.zarr",
    )  # fmt: skip


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("[!.]*")) if file.is_file()}


def read(store) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """All rows of a store, float32 [N, d], and its columns."""
    return store.acts(SITE, 0, store.rows).float(), {name: store.column(name) for name in store.columns}


def interrupt_after(batches: int):
    left = iter(range(batches - 1))

    def progress(rows, figures):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return progress


def batches_of(documents, packing="document", **changes):
    settings = {"context": 8, "bos": BOS, "separator": BOS, "batch_size": 3, "keep_bos": False, "skip": (), "tokens": 10**9}
    return list(arranged(((i, np.array(ids, np.int64)) for i, ids in enumerate(documents)), packing, **settings | changes))


@given(token_lists, st.integers(2, 9), st.integers(1, 4), st.sampled_from([(), (2, 5)]), st.sampled_from([1, 20, 10**9]))
@settings(max_examples=200, deadline=None)
def test_a_row_is_bos_and_the_beginning_of_one_document(documents, context, batch_size, skip, tokens):
    expected = {}
    for i, ids in enumerate(documents):
        row = [BOS, *ids[ids[:1] == [BOS] :]][:context]
        if len(row) > 1:
            expected[i] = row
    rows, kept = {}, {}
    for batch in batches_of(documents, context=context, batch_size=batch_size, skip=skip, tokens=tokens):
        assert len(batch.ids) <= batch_size
        for ids, document, keep in zip(batch.ids, batch.document, batch.keep, strict=True):
            assert len(set(document.tolist())) == 1
            rows[int(document[0])] = ids.tolist()
            kept[int(document[0])] = ids[keep].tolist()
    left = {i: [token for token in row[1:] if token not in skip] for i, row in expected.items()}
    assert {i: ids for i, ids in kept.items() if ids} == {i: ids for i, ids in left.items() if ids}
    assert all(rows[i] == expected[i] for i in rows)


@given(token_lists, st.sampled_from([10, 10**9]))
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_does_not_depend_on_the_batch_size(documents, tokens):
    def order(batch_size):
        return [s for batch in batches_of(documents, batch_size=batch_size, tokens=tokens) for s in batch.sequence.tolist()]

    assert order(1) == order(2) == order(100)


def test_rows_of_one_length_are_batched_and_enough_is_the_beginning_of_the_text():
    documents = [[1] * (1 + i % 3) for i in range(30)]
    assert [len(batch.ids) for batch in batches_of(documents, batch_size=10)] == [10, 10, 10]
    first = batches_of(documents, tokens=12)  # 1 + 2 + 3 + 1 + 2 + 3
    assert sorted(s for batch in first[:3] for s in batch.sequence.tolist()) == list(range(6))


def test_a_document_row_is_the_document_run_alone(config, gpt2_dir, tokenizer, texts):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gpt2_dir, attn_implementation="eager").eval()
    store = harvest(dataclasses.replace(config, packing="document"))
    rows, columns = read(store)
    assert store.attributes["packing"] == "document"
    for index, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: CONTEXT - 1]
        here = columns["document"] == index
        assert here.sum() == len(ids)
        if not ids:
            continue
        order = np.argsort(columns["position"][here])
        assert columns["token_id"][here][order].tolist() == ids
        assert columns["position"][here][order].tolist() == list(range(1, len(ids) + 1))
        with torch.no_grad():
            alone = model(torch.tensor([[tokenizer.bos_token_id, *ids]]), output_hidden_states=True).hidden_states[2][0, 1:]
        torch.testing.assert_close(rows[torch.from_numpy(here)][order], alone, rtol=1e-5, atol=1e-5)


def test_tokenised_documents_are_the_text_bit_for_bit(config, tokenizer, texts, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    harvest(config)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    with_bos = [[tokenizer.bos_token_id, *row] for row in ids]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps({"ids": row}) + "\n" for row in ids))
    pq.write_table(pa.table({"ids": ids}), tmp_path / "ids.parquet")
    pq.write_table(pa.table({"ids": with_bos}), tmp_path / "bos.parquet")
    text = {name: data for name, data in tree(config.out).items() if not name.endswith("zarr.json")}
    for name in ("ids.jsonl", "ids.parquet", "bos.parquet"):
        for packing in ("packed", "document"):
            out = tmp_path / f"{name}.{packing}.zarr"
            done = harvest(
                dataclasses.replace(config, dataset=str(tmp_path / name), tokens_column="ids", packing=packing, out=out)
            )
            assert done.attributes["tokens_column"] == "ids"
            if packing == "packed":
                assert {name: data for name, data in tree(out).items() if not name.endswith("zarr.json")} == text


def test_an_array_and_a_text_make_a_mixture(config, jsonl, tmp_path):
    np.save(tmp_path / "ids.npy", np.full((20, 10), 7, np.uint16))
    datasets = (f"{tmp_path / 'ids.npy'}::3", f"{jsonl}::1")
    done = harvest(dataclasses.replace(config, dataset=datasets, packing="document", tokens=100))
    assert done.attributes["dataset"] == [f"{tmp_path / 'ids.npy'}::3.0", f"{jsonl}::1.0"]
    assert (done.column("token_id") == 7).sum() > 30


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_skipped_tokens_are_absent_and_all_else_is_there(config, tmp_path, packing):
    config = dataclasses.replace(config, packing=packing)
    rows, columns = read(harvest(config))
    common = tuple(int(token) for token in np.argsort(-np.bincount(columns["token_id"]))[:2])
    less = dataclasses.replace(config, skip_tokens=common[::-1], out=tmp_path / "less.zarr")
    store = harvest(less)
    assert store.attributes["skipped_token_ids"] == sorted(common)
    left_rows, left = read(store)

    def by_place(rows, columns, keep):
        places = zip(columns["sequence"][keep], columns["position"][keep], rows[torch.from_numpy(keep)], strict=True)
        return {(int(s), int(p)): row.tolist() for s, p, row in places}

    keep = ~np.isin(columns["token_id"], common)
    assert 0 < keep.sum() < len(keep)
    assert by_place(left_rows, left, np.ones(len(left["position"]), bool)) == by_place(rows, columns, keep)


def test_special_tokens_are_skipped_on_request(config, tokenizer, tmp_path):
    special = sorted(tokenizer.all_special_ids)
    np.save(tmp_path / "ids.npy", np.array([[9, special[0], 8, special[1]]] * 5))
    done = harvest(dataclasses.replace(config, dataset=str(tmp_path / "ids.npy"), skip_special=True))
    assert sorted(set(done.column("token_id").tolist())) == [8, 9]
    assert done.attributes["skipped_token_ids"] == special


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"skip_tokens": (5000,)}, ModelError, r"has the tokens 0\.\.383; asked to skip 5000"),
        ({"skip_tokens": (-1,)}, ModelError, "asked to skip -1"),
        ({"skip_tokens": tuple(range(384))}, TextError, "holds no text to harvest: .* or made of skipped tokens"),
        ({"packing": "padded"}, SplinterpError, "There is no packing 'padded'; choose one of packed, document"),
        ({"keep_bos": True, "skip_special": True}, SplinterpError, "cannot be both kept and skipped"),
    ],
)
def test_mistakes(config, change, error, sentence):
    with pytest.raises(error, match=sentence):
        harvest(dataclasses.replace(config, **change))
    assert not config.out.exists()


def test_a_resumed_mixture_of_documents_is_the_uninterrupted_one(config, jsonl, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"other {i} " * (i % 7)}) + "\n" for i in range(80)))
    config = dataclasses.replace(
        config, dataset=(f"{jsonl}::0.4", f"{other}::0.6"), packing="document", tokens=900, memory=1, skip_tokens=(7,)
    )
    harvest(config)
    broken = dataclasses.replace(config, out=tmp_path / "broken.zarr")
    with pytest.raises(SplinterpError, match="--resume"):
        harvest(broken, interrupt_after(8))
    resumed = dataclasses.replace(broken, resume=True)
    for change in (
        {"packing": "packed"}, {"skip_tokens": ()}, {"dataset": (f"{jsonl}::0.5", f"{other}::0.6")}, {"dataset": str(jsonl)},
        {"skip_special": True},
    ):  # fmt: skip
        with pytest.raises(StoreError, match="was begun with"):
            harvest(dataclasses.replace(resumed, **change))
    harvest(dataclasses.replace(resumed, batch_size=4))
    assert tree(broken.out) == tree(config.out)


def test_a_tokens_column_cannot_change_on_resuming(config, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"a": [i % 9 + 2] * 20, "b": [3] * 20}) + "\n" for i in range(99)))
    config = dataclasses.replace(config, dataset=str(path), tokens_column="a", tokens=900, memory=1)
    with pytest.raises(SplinterpError, match="--resume"):
        harvest(config, interrupt_after(5))
    with pytest.raises(StoreError, match="was begun with tokens_column = a, not b"):
        harvest(dataclasses.replace(config, tokens_column="b", resume=True))


def test_evaluation_sees_what_was_harvested(config, gpt2_dir, jsonl):
    _, stream = evaluation_batches(
        str(gpt2_dir),
        [f"{jsonl}::1", f"{jsonl}::2"],
        200,
        context=CONTEXT,
        packing="document",
        skipped_token_ids=[5],
        device="cpu",
    )
    batches = list(stream)
    assert sum(ids.numel() for ids, _ in batches) >= 200
    for ids, mask in batches:
        assert not mask[:, 0].any()
        assert not mask[ids == 5].any()
