"""The rows in a store, read by plain zarr, are Hugging Face's own hidden states of the tokens that the columns name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from splinterp.errors import ModelError
from splinterp.harvest import HarvestConfig, harvest

CONTEXT = 24  # three times the sliding window of the Gemma-2 fixture


def reference(path: Path, ids: torch.Tensor) -> list[torch.Tensor]:
    """Per layer [T, d]: what Hugging Face's own blocks give for the ids [T], read by forward hooks."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, attn_implementation="eager").eval()
    found: list[torch.Tensor] = []
    for block in model.transformer.h if hasattr(model, "transformer") else model.model.layers:
        block.register_forward_hook(
            lambda module, args, result: found.append((result[0] if isinstance(result, tuple) else result)[0])
        )
    with torch.no_grad():
        model(ids[None], use_cache=False)
    return found


def read_plainly(path: Path, sites: tuple[str, ...]):
    """(rows by site as float32 [N, d], columns) of a store, by zarr alone."""
    group = zarr.open(str(path), mode="r")
    rows = {}
    for site in sites:
        array = group[f"{site}/acts"]
        values = torch.from_numpy(array[:])
        rows[site] = values.view(getattr(torch, array.attrs["torch_dtype"])).float()
    return rows, {name: group[name][:] for name in ("token_id", "position", "document", "sequence")}


def contexts(columns, bos: int, separator: int | None):
    """{sequence: ids [T]}: what the model saw, the left-out BOS and separators filled in."""
    found = {}
    for sequence in np.unique(columns["sequence"]):
        here = columns["sequence"] == sequence
        ids = np.full(int(columns["position"][here].max()) + 1, bos if separator is None else separator, np.int64)
        ids[0] = bos
        ids[columns["position"][here]] = columns["token_id"][here]
        found[int(sequence)] = torch.from_numpy(ids)
    return found


def largest_error(store_path: Path, model: Path, config: HarvestConfig, bos: int, separator: int | None) -> float:
    """The largest relative error of a row against the reference."""
    rows, columns = read_plainly(store_path, config.sites)
    worst = 0.0
    for sequence, ids in contexts(columns, bos, separator).items():
        here = columns["sequence"] == sequence
        states = reference(model, ids)
        for site, layer in zip(config.sites, config.layers, strict=True):
            expected = states[layer][columns["position"][here].astype(np.int64)]
            error = (rows[site][here] - expected).norm(dim=1) / expected.norm(dim=1)
            worst = max(worst, error.max().item())
    return worst


@pytest.mark.parametrize(
    ("dtype", "separator", "bound"), [("float32", "bos", 1e-5), ("float32", "eos", 1e-5), ("bfloat16", "bos", 4e-3)]
)
def test_two_layers_in_one_pass_are_hugging_faces_hidden_states(tmp_path, model_dir, jsonl, tokenizer, dtype, separator, bound):
    config = HarvestConfig(
        model=str(model_dir),
        layers=(1, 3),
        dataset=str(jsonl),
        tokens=200,
        context=CONTEXT,
        dtype=dtype,
        separator=separator,
        out=tmp_path / "s.zarr",
    )
    store = harvest(config)
    assert store.rows == 200
    between = tokenizer.bos_token_id if separator == "bos" else tokenizer.eos_token_id
    assert largest_error(config.out, model_dir, config, tokenizer.bos_token_id, between) <= bound


def test_columns_lead_back_to_the_text(tmp_path, gpt2_dir, jsonl, texts, tokenizer):
    out = tmp_path / "s.zarr"
    config = HarvestConfig(model=str(gpt2_dir), layers=(0,), dataset=str(jsonl), tokens=10**6, context=CONTEXT, out=out)
    store = harvest(config)
    _, columns = read_plainly(out, config.sites)
    order = np.lexsort((columns["position"], columns["sequence"]))
    for index, text in enumerate(texts):
        ids = columns["token_id"][order][columns["document"][order] == index]
        assert tokenizer.decode(ids) == text
    # Once, and no more than the text has.
    assert store.attributes["short"] is True
    assert store.rows == sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert len(set(zip(columns["sequence"], columns["position"], strict=True))) == store.rows
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(out / "tokenizer").get_vocab() == tokenizer.get_vocab()


def test_bos_rows_are_kept_on_request(tmp_path, gpt2_dir, tokenizer):
    (tmp_path / "a.txt").write_text("short")
    n = len(tokenizer("short", add_special_tokens=False)["input_ids"])
    config = HarvestConfig(
        model=str(gpt2_dir), layers=(0,), dataset=str(tmp_path / "a.txt"), tokens=100, keep_bos=True, context=CONTEXT,
        dtype="float32", out=tmp_path / "s.zarr",
    )  # fmt: skip
    assert harvest(config).rows == n + 1
    _, columns = read_plainly(config.out, config.sites)
    assert columns["token_id"][columns["position"] == 0].tolist() == [tokenizer.bos_token_id]
    assert largest_error(config.out, gpt2_dir, config, tokenizer.bos_token_id, None) <= 1e-5


def test_the_attributes_say_where_the_rows_came_from(tmp_path, gpt2_dir, jsonl, tokenizer):
    out = tmp_path / "s.zarr"
    store = harvest(HarvestConfig(model=str(gpt2_dir), layers=(2, 0), dataset=str(jsonl), tokens=30, context=CONTEXT, out=out))
    expected = {
        "model": str(gpt2_dir), "architecture": "GPT2LMHeadModel", "revision": None, "hook": "resid_post", "layers": [0, 2],
        "dtype": "bfloat16", "model_dtype": "float32", "seed": 0, "context": CONTEXT, "dataset": str(jsonl), "split": "train",
        "text_column": "text", "prepend_bos": True, "bos_token_id": tokenizer.bos_token_id, "separator": "bos",
        "separator_token_id": tokenizer.bos_token_id, "keep_bos": False, "short": False, "status": "complete",
    }  # fmt: skip
    assert {key: store.attributes.get(key) for key in expected} == expected
    assert set(store.attributes["versions"]) == {"splinterp", "torch", "transformers", "transformer_lens"}
    assert len(store.attributes["dataset_fingerprint"]) == 16


def test_weights_that_are_missing_are_not_made_up(tmp_path, gpt2_dir, jsonl):
    import safetensors.torch

    broken = tmp_path / "model"
    broken.mkdir()
    for file in gpt2_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    safetensors.torch.save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack transformer\.h\.1\.mlp\.c_fc\.weight"):
        harvest(HarvestConfig(model=str(broken), layers=(2,), dataset=str(jsonl), tokens=30, context=8, out=tmp_path / "s"))
    # In a block that is not needed, it does not matter.
    assert harvest(
        HarvestConfig(model=str(broken), layers=(0,), dataset=str(jsonl), tokens=30, context=8, out=tmp_path / "s")
    ).rows
    assert json.loads((broken / "config.json").read_text())["n_layer"] == 4
