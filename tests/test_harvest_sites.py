"""Every site is the tensor that its name promises: read by forward hooks on Hugging Face's own modules, in the same store and order."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from splinterp.errors import ModelError
from splinterp.harvest import HarvestConfig, harvest, plan
from splinterp.harvest.hooks import HOOKS, site_name

CONTEXT = 24  # three times the sliding window of the Gemma-2 fixture
LAYERS = 4
WIDTHS = {"gpt2": {"attn_z": 32, "mlp_post": 128}, "gemma2": {"attn_z": 64, "mlp_post": 64}}  # of all others: 32


@pytest.fixture
def config(model_dir, jsonl, tmp_path) -> HarvestConfig:
    return HarvestConfig(
        model=str(model_dir), layers=tuple(range(LAYERS)), hooks=tuple(HOOKS), dataset=str(jsonl), tokens=CONTEXT - 1,
        context=CONTEXT, batch_size=1, dtype="float32", separator="none", out=tmp_path / "s.zarr",
    )  # fmt: skip


def reference(path: Path, ids: torch.Tensor, dtype: torch.dtype, **changes) -> dict[str, torch.Tensor]:
    """By site [T, d]: what goes into and out of the modules of Hugging Face's own model for the ids [T]."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, config=AutoConfig.from_pretrained(path, **changes), attn_implementation="eager", dtype=dtype
    ).eval()
    found: dict[str, torch.Tensor] = {}

    def into(module: torch.nn.Module, site: str) -> None:
        def read(module, args, kwargs):
            found[site] = (args[0] if args else kwargs["hidden_states"])[0]

        module.register_forward_pre_hook(read, with_kwargs=True)

    def out_of(module: torch.nn.Module, site: str) -> None:
        def read(module, args, result):
            found[site] = (result[0] if isinstance(result, tuple) else result)[0]

        module.register_forward_hook(read)

    gpt2 = hasattr(model, "transformer")
    for layer, block in enumerate(model.transformer.h if gpt2 else model.model.layers):
        attention, mlp = (block.attn, block.mlp) if gpt2 else (block.self_attn, block.mlp)
        into(block, site_name(layer, "resid_pre"))
        into(attention.c_proj if gpt2 else attention.o_proj, site_name(layer, "attn_z"))
        # Gemma 2 norms what attention and MLP give before it is added.
        out_of(attention if gpt2 else block.post_attention_layernorm, site_name(layer, "attn_out"))
        into(block.ln_2 if gpt2 else block.pre_feedforward_layernorm, site_name(layer, "resid_mid"))
        into(mlp, site_name(layer, "mlp_in"))
        into(mlp.c_proj if gpt2 else mlp.down_proj, site_name(layer, "mlp_post"))
        out_of(mlp if gpt2 else block.post_feedforward_layernorm, site_name(layer, "mlp_out"))
        out_of(block, site_name(layer, "resid_post"))
    with torch.no_grad():
        states = model(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    # The hooks read rightly; the last hidden state is behind the final norm, so it is not the last resid_post.
    for layer in range(LAYERS - 1):
        assert torch.equal(states[layer + 1][0], found[site_name(layer, "resid_post")])
    assert not torch.allclose(states[-1][0], found[site_name(LAYERS - 1, "resid_post")])
    return {site: rows.float() for site, rows in found.items()}


def rows_and_ids(config: HarvestConfig, tokenizer) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Harvest one packed row: by site its rows [T - 1, d] as float32, in the order of the text; its ids [T], BOS included."""
    store = harvest(config)
    order = np.argsort(store.column("position"))
    assert store.column("position")[order].tolist() == list(range(1, config.context))
    ids = [tokenizer.bos_token_id, *store.column("token_id")[order].tolist()]
    return {site: store.acts(site, 0, store.rows)[order].float() for site in store.sites}, torch.tensor(ids)


def error(rows: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error of a row [n, d], in units of its norm."""
    return ((rows - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


def test_every_site_in_one_pass_is_hugging_faces_tensor(config, model_dir, tokenizer):
    rows, ids = rows_and_ids(config, tokenizer)
    expected = reference(model_dir, ids, torch.float32)
    assert list(rows) == list(config.sites)
    assert len(rows) == LAYERS * len(HOOKS)
    widths = WIDTHS[model_dir.name]
    for layer, hook in itertools.product(range(LAYERS), HOOKS):
        site = site_name(layer, hook)
        assert rows[site].shape == (CONTEXT - 1, widths.get(hook, 32))
        assert error(rows[site], expected[site][1:]) <= 1e-5, site
    assert plan(dataclasses.replace(config, force=True)).sites == {site: x.shape[1] for site, x in rows.items()}


def test_the_stream_is_the_sum_of_what_is_added_to_it(config, tokenizer):
    rows, _ = rows_and_ids(config, tokenizer)
    for layer in range(LAYERS):
        at = {hook: rows[site_name(layer, hook)] for hook in HOOKS}
        assert error(at["resid_pre"] + at["attn_out"], at["resid_mid"]) <= 1e-6
        assert error(at["resid_mid"] + at["mlp_out"], at["resid_post"]) <= 1e-6
        if layer:
            assert torch.equal(at["resid_pre"], rows[site_name(layer - 1, "resid_post")])


def test_a_transcoders_pair_is_what_the_mlp_takes_and_gives(config, model_dir, tokenizer):
    from transformers import AutoModelForCausalLM

    rows, _ = rows_and_ids(dataclasses.replace(config, hooks=("mlp_out", "mlp_in"), layers=(2,)), tokenizer)
    assert list(rows) == ["blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out"]
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    gpt2 = hasattr(model, "transformer")
    block = model.transformer.h[2] if gpt2 else model.model.layers[2]
    with torch.no_grad():
        given = block.mlp(rows["blocks.2.mlp.hook_in"])
        given = given if gpt2 else block.post_feedforward_layernorm(given)
    assert error(rows["blocks.2.hook_mlp_out"], given) <= 1e-5


def test_bfloat16_is_hugging_faces_own_and_float32_within_its_rounding(config, model_dir, tokenizer):
    rows, ids = rows_and_ids(dataclasses.replace(config, model_dtype="bfloat16", dtype="bfloat16"), tokenizer)
    # GPT-2's tanh GELU is run as one kernel, which rounds once; Hugging Face's own takes eight steps.
    fused = {"activation_function": "gelu_pytorch_tanh"} if model_dir.name == "gpt2" else {}
    expected = reference(model_dir, ids, torch.bfloat16, **fused)
    exact = reference(model_dir, ids, torch.float32)
    for site, x in rows.items():
        layer = int(site.split(".")[1])
        if model_dir.name == "gemma2":
            assert torch.equal(x, expected[site][1:]), site
        else:  # TransformerLens's LayerNorm is not torch's one kernel: elements rounded the other way, which the blocks behind carry on
            assert error(x, expected[site][1:]) <= 2 * 2**-8 * (10 * (layer + 1)) ** 0.5, site
        # Some ten roundings a block, which add up like a random walk; and a block works with what the one before has rounded.
        assert error(x, exact[site][1:]) <= 4 * 2**-8 * (10 * (layer + 1)) ** 0.5, site


def test_rows_of_a_bfloat16_store_are_the_float32_rows_rounded(config, tokenizer, tmp_path):
    rows, _ = rows_and_ids(config, tokenizer)
    rounded, _ = rows_and_ids(dataclasses.replace(config, dtype="bfloat16", out=tmp_path / "b.zarr"), tokenizer)
    for site, x in rows.items():
        assert torch.equal(rounded[site], x.bfloat16().float())


@pytest.mark.parametrize("change", [{"attn_logit_softcapping": None}, {"sliding_window": 64}])
def test_the_reference_would_show_a_missing_cap_or_window(gemma2_dir, change):
    ids = torch.arange(2, 2 + CONTEXT)
    as_it_is, without = (reference(gemma2_dir, ids, torch.float32, **changes) for changes in ({}, change))
    site = site_name(LAYERS - 1, "resid_post")
    assert error(without[site][-1:], as_it_is[site][-1:]) > 1e-3


def test_hooks_are_kept_in_order_and_told_to_the_store(config):
    some = dataclasses.replace(config, hooks=("resid_post", "mlp_in", "resid_post"), layers=(3, 1))
    assert some.hooks == ("mlp_in", "resid_post")
    assert some.sites == tuple(f"blocks.{layer}.{name}" for layer in (1, 3) for name in ("mlp.hook_in", "hook_resid_post"))
    assert harvest(some).attributes["hook"] == ["mlp_in", "resid_post"]
    one = dataclasses.replace(some, hooks=("mlp_in",), force=True)
    assert harvest(one).attributes["hook"] == "mlp_in"
    with pytest.raises(ModelError, match="No hook to harvest at"):
        dataclasses.replace(config, hooks=())


def test_cross_entropies_at_sites_of_other_widths(config, model_dir, jsonl):
    """An SAE that gives back what it gets changes nothing, wherever it is put."""
    from splinterp.errors import SplinterpError
    from splinterp.evaluate import cross_entropies
    from splinterp.harvest.evaluation import evaluation_batches
    from splinterp.sae import SAE, SAEConfig

    bridge, stream = evaluation_batches(str(model_dir), str(jsonl), 100, context=16)
    batches = list(stream)
    for hook in HOOKS:
        d = WIDTHS[model_dir.name].get(hook, 32)
        both = torch.cat([torch.eye(d), -torch.eye(d)], dim=1)  # x = relu(x) - relu(-x)
        sae = SAE(SAEConfig("standard", d, 2 * d), both, torch.zeros(2 * d), both.T.contiguous(), torch.zeros(d))
        found = cross_entropies(bridge, site_name(1, hook), sae, torch.zeros(d), batches)
        assert found.ce_spliced == pytest.approx(found.ce_clean, abs=1e-5), hook
        assert found.ce_ablated != pytest.approx(found.ce_clean, abs=1e-5), hook
    small = SAE(SAEConfig("standard", 32, 1), torch.zeros(32, 1), torch.zeros(1), torch.zeros(1, 32), torch.zeros(32))
    with pytest.raises(SplinterpError, match=f"rows are {WIDTHS[model_dir.name]['mlp_post']} wide and the SAE's 32"):
        cross_entropies(bridge, site_name(1, "mlp_post"), small, torch.zeros(32), batches)
