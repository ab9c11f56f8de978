"""Other architectures than GPT-2 and Gemma 2: rows are Hugging Face's own, or the harvest is refused in a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from splinterp.errors import ModelError
from splinterp.harvest import HarvestConfig, harvest
from splinterp.harvest.hooks import HOOKS, site_name

CONTEXT, LAYERS, LAYER = 20, 4, 2  # the fourth block is not loaded
PARALLEL = "neox phi gptj falcon".split()  # noqa: SIM905

sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": 64}
grouped = sizes | {"intermediate_size": 48, "num_key_value_heads": 2}
windowed = {"head_dim": 16, "sliding_window": 8}
gpt = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4}
# Class of the configuration, its settings, and the hooks that the architecture lacks.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "llama": ("LlamaConfig", grouped | {"head_dim": 16}, set()),
    "mistral": ("MistralConfig", grouped | {"sliding_window": 8}, set()),
    "qwen2": ("Qwen2Config", grouped, set()),
    "qwen3": ("Qwen3Config", grouped | {"head_dim": 16}, set()),
    "gemma": ("GemmaConfig", grouped | {"head_dim": 16}, set()),
    "gemma3": ("Gemma3TextConfig", grouped | windowed, set()),
    "gemma4": ("Gemma4TextConfig", grouped | windowed | {"vocab_size_per_layer_input": 384, "hidden_size_per_layer_input": 8}, {"attn_z"}),  # blocks of two widths
    "olmo": ("OlmoConfig", grouped, set()),
    "olmo2": ("Olmo2Config", grouped, set()),
    "olmo3": ("Olmo3Config", grouped | {"sliding_window": 8}, set()),
    "phi3": ("Phi3Config", grouped, set()),
    "gptneo": ("GPTNeoConfig", {"hidden_size": 32, "num_layers": LAYERS, "num_heads": 4, "window_size": 8,
                                "attention_types": [[["global", "local"], 2]], "max_position_embeddings": 64}, set()),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": LAYERS, "n_head": 4}, set()),
    "opt": ("OPTConfig", sizes | {"ffn_dim": 48, "word_embed_proj_dim": 32}, {"mlp_in"}),  # its MLP is no module of its own
    "neox": ("GPTNeoXConfig", sizes | {"intermediate_size": 48}, {"resid_mid"}),
    "phi": ("PhiConfig", sizes | {"intermediate_size": 48}, {"resid_mid"}),
    "gptj": ("GPTJConfig", gpt | {"n_positions": 64, "rotary_dim": 4}, {"resid_mid"}),
    "falcon": ("FalconConfig", sizes, {"resid_mid"}),
    "mixtral": ("MixtralConfig", grouped | {"num_local_experts": 4}, {"mlp_post"}),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": LAYERS, "state_size": 4}, HOOKS.keys() - {"resid_pre", "resid_post"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory, saved):
    """A small random model of an architecture, as a directory; made once."""
    import transformers

    folder = tmp_path_factory.mktemp("architectures")

    def make(name: str, config: str, settings: dict[str, Any]) -> Path:
        path = folder / name
        if not path.exists():
            special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": 384}
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings, **special))
            saved(model, path)
        return path

    return make


def reference(path: Path, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What goes into and out of block 2 of Hugging Face's model for the ids [T], and into its MLP and the output projections."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    found: dict[str, torch.Tensor] = {}

    def into(module: torch.nn.Module, hook: str) -> None:
        def read(module, args, kwargs):
            found[hook] = (args[0] if args else kwargs["hidden_states"]).reshape(len(ids), -1)

        module.register_forward_pre_hook(read, with_kwargs=True)

    def read_output(module, args, result):
        found["resid_post"] = (result[0] if isinstance(result, tuple) else result).reshape(len(ids), -1)

    def child(module: Any, *names: str) -> Any:
        return next((getattr(module, name) for name in names if isinstance(getattr(module, name, None), torch.nn.Module)), None)

    inner = child(model, "transformer", "gpt_neox", "model", "backbone")
    block = child(child(inner, "decoder") or inner, "h", "layers")[LAYER]
    attention = child(block, "self_attn", "attn", "attention", "self_attention")
    attention = child(attention, "attention") or attention  # GPT-Neo's
    mlp = child(block, "mlp")
    into(block, "resid_pre")
    block.register_forward_hook(read_output)
    for hook, module in (
        ("attn_z", child(attention, "o_proj", "out_proj", "dense", "c_proj")),
        ("mlp_in", mlp or child(block, "fc1")),
        ("mlp_post", child(mlp or block, "down_proj", "c_proj", "dense_4h_to_h", "fc_out", "fc2")),
    ):
        if module is not None:
            into(module, hook)
    with torch.no_grad():
        model(ids[None], use_cache=False)
    return found


def rows_and_ids(path: Path, jsonl: Path, out: Path, hooks: tuple[str, ...], **options: Any):
    """By hook the rows [T - 1, d] of one packed row, in the order of the text; its ids [T], BOS included."""
    config = HarvestConfig(
        model=str(path), layers=(LAYER,), hooks=hooks, dataset=str(jsonl), tokens=CONTEXT - 1, context=CONTEXT, batch_size=1,
        dtype="float32", separator="none", out=out, **options,
    )  # fmt: skip
    store = harvest(config)
    order = np.argsort(store.column("position"))
    ids = torch.tensor([0, *store.column("token_id")[order].tolist()])
    return {hook: store.acts(site_name(LAYER, hook), 0, store.rows)[order] for hook in config.hooks}, ids


def refused_or_right(path: Path, jsonl: Path, out: Path, hook: str, **options: Any) -> tuple[str | None, torch.Tensor]:
    """The sentence of a refusal that leaves nothing behind; or None, and the rows."""
    try:
        return None, rows_and_ids(path, jsonl, out, (hook,), **options)[0][hook]
    except ModelError as error:
        refused = str(error)
    assert "\n" not in refused
    assert not out.exists()
    return refused, torch.empty(0)


def distance(rows: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error of a row [n, d], in units of its norm."""
    return ((rows - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_are_hugging_faces_own_and_missing_hooks_are_told(made, jsonl, tmp_path, name):
    config, settings, lacking = ARCHITECTURES[name]
    path = made(name, config, settings)
    rows, ids = rows_and_ids(path, jsonl, tmp_path / "s.zarr", tuple(HOOKS.keys() - lacking))
    expected = reference(path, ids)
    compared = rows.keys() & expected.keys()
    assert compared == {"resid_pre", "attn_z", "mlp_in", "mlp_post", "resid_post"} - lacking
    for hook in compared:
        assert distance(rows[hook], expected[hook][1:]) <= 1e-5, hook
    if name in PARALLEL:
        assert distance(rows["resid_pre"] + rows["attn_out"] + rows["mlp_out"], rows["resid_post"]) <= 1e-6
    elif name != "mamba":
        assert distance(rows["resid_pre"] + rows["attn_out"], rows["resid_mid"]) <= 1e-6
        if name != "gemma4":  # which adds a part of the layer's own, and scales the whole
            assert distance(rows["resid_mid"] + rows["mlp_out"], rows["resid_post"]) <= 1e-6
    for hook in lacking:
        refused, rows = refused_or_right(path, jsonl, tmp_path / "none.zarr", hook)
        if refused is None:  # OPT's with TransformerLens 4.3
            assert distance(rows, expected[hook][1:]) <= 1e-5, hook
        else:
            assert re.search(rf"(has no hook|runs without passing) .*{HOOKS[hook].name}|differ in the width of {hook}", refused)


@pytest.mark.parametrize(
    ("name", "config", "settings", "dtype"),
    [
        ("cohere", "CohereConfig", grouped, "float32"),  # TransformerLens 3.9 rotates positions otherwise
        ("qwen3_5", "Qwen3_5TextConfig", grouped | {"head_dim": 16}, "float32"),  # and fails over this one
        ("olmo", "OlmoConfig", grouped, "bfloat16"),  # and over this one but in float32
    ],
)
def test_what_transformer_lens_gets_wrong_is_refused(made, jsonl, tmp_path, name, config, settings, dtype):
    path = made(name, config, settings)
    refused, rows = refused_or_right(path, jsonl, tmp_path / "s.zarr", "resid_post", model_dtype=dtype)
    if refused is None:  # a version that has mended it
        _, ids = rows_and_ids(path, jsonl, tmp_path / "again.zarr", ("resid_post",), model_dtype=dtype)
        assert distance(rows, reference(path, ids)["resid_post"][1:]) <= (1e-5 if dtype == "float32" else 0.1)
    else:
        assert re.match(rf"TransformerLens (cannot run {path} in|\S* does not compute what the model {path} does) ", refused)


def test_a_bridge_that_differs_is_refused():
    from splinterp.harvest.faithful import check_faithful

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 16, 100, generator=generator)
    noise = torch.randn(1, 16, 100, generator=generator)
    check_faithful("m", logits, logits + 1e-4 * noise, torch.float32)
    check_faithful("m", logits, logits + 1e-2 * noise, torch.bfloat16)
    check_faithful("m", logits + float("nan"), logits, torch.float16)  # what overflows is told when rows are looked at
    for found, dtype in (
        (logits + 0.01 * noise, torch.float32),
        (logits + 0.1 * noise, torch.bfloat16),
        (logits + float("nan"), torch.float32),
    ):
        with pytest.raises(ModelError, match=r"does not compute what the model m does \(its logits differ by"):
            check_faithful("m", logits, found, dtype)
