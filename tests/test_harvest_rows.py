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
from splinterp.harvest.config import HOOKS

CONTEXT = 24  # three times the sliding window of the Gemma-2 fixture


def reference(path: Path, ids: torch.Tensor, hook: str, dtype=torch.float32) -> list[torch.Tensor]:
    """Per layer [T, d]: what Hugging Face's own model has at `hook` for the ids [T], read by its modules' forward hooks."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, attn_implementation="eager", dtype=dtype).eval()
    gpt2 = hasattr(model, "transformer")
    blocks = model.transformer.h if gpt2 else model.model.layers
    found: list[torch.Tensor] = []

    def first(value):
        return value[0] if isinstance(value, tuple) else value

    def output(module, args, kwargs, result):
        found.append(first(result)[0])

    def before(module, args, kwargs, result):
        found.append((args[0] if args else kwargs["hidden_states"])[0])

    for block in blocks:
        module, read = {
            "resid_pre": (block, before),
            "resid_post": (block, output),
            "resid_mid": (block.ln_2 if gpt2 else block.pre_feedforward_layernorm, before),
            "attn_out": (block.attn if gpt2 else block.post_attention_layernorm, output),
            "mlp_out": (block.mlp if gpt2 else block.post_feedforward_layernorm, output),
        }[hook]
        module.register_forward_hook(read, with_kwargs=True)
    with torch.no_grad():
        states = model(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    if hook == "resid_post":  # the hooks above are read rightly; the last hidden state is after the final norm
        assert all(torch.equal(a[0], b) for a, b in zip(states[1:-1], found[:-1], strict=True))
        assert not torch.allclose(states[-1][0], found[-1])
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
        states = reference(model, ids, config.hook)
        for site, layer in zip(config.sites, config.layers, strict=True):
            expected = states[layer][columns["position"][here].astype(np.int64)]
            error = (rows[site][here] - expected).norm(dim=1) / expected.norm(dim=1)
            worst = max(worst, error.max().item())
    return worst


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 4e-3)])
def test_two_layers_in_one_pass_are_hugging_faces_hidden_states(tmp_path, model_dir, jsonl, tokenizer, dtype, bound):
    config = HarvestConfig(
        model=str(model_dir),
        layers=(1, 3),
        dataset=str(jsonl),
        tokens=200,
        context=CONTEXT,
        dtype=dtype,
        out=tmp_path / "s.zarr",
    )
    store = harvest(config)
    assert store.rows == 200
    bos = tokenizer.bos_token_id
    assert largest_error(config.out, model_dir, config, bos, bos) <= bound


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_at_every_layer(tmp_path, model_dir, jsonl, tokenizer, hook):
    config = HarvestConfig(
        model=str(model_dir), layers=(0, 1, 2, 3), hook=hook, dataset=str(jsonl), tokens=60, context=CONTEXT,
        dtype="float32", separator="eos", out=tmp_path / "s.zarr",
    )  # fmt: skip
    store = harvest(config)
    assert list(store.sites) == [f"blocks.{layer}.hook_{hook}" for layer in range(4)]
    assert largest_error(config.out, model_dir, config, tokenizer.bos_token_id, tokenizer.eos_token_id) <= 1e-5


def test_bfloat16_model_gives_hugging_faces_bfloat16(tmp_path, model_dir, jsonl, tokenizer):
    config = HarvestConfig(
        model=str(model_dir), layers=(2,), dataset=str(jsonl), tokens=CONTEXT - 1, context=CONTEXT, batch_size=1,
        model_dtype="bfloat16", separator="none", out=tmp_path / "s.zarr",
    )  # fmt: skip
    harvest(config)
    rows, columns = read_plainly(config.out, config.sites)
    (ids,) = contexts(columns, tokenizer.bos_token_id, None).values()
    expected = reference(model_dir, ids, "resid_post", torch.bfloat16)[2].float()
    order = np.argsort(columns["position"])
    assert torch.equal(rows[config.sites[0]][order], expected[1:])


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
