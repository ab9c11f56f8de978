"""From a name to a model: aliases, gated repositories, code that a model brings along, files that do not belong together."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from splinterp.errors import ModelError
from splinterp.harvest import HarvestConfig, first, harvest, plan
from splinterp.harvest import model as models


@pytest.fixture
def config(gpt2_dir, jsonl, tmp_path) -> HarvestConfig:
    return HarvestConfig(
        model=str(gpt2_dir), layers=(1,), dataset=str(jsonl), tokens=200, context=24, batch_size=4, out=tmp_path / "s.zarr"
    )


@pytest.fixture
def copied(config, gpt2_dir, tmp_path):
    """A copy of the model, changed, as a configuration that harvests it."""

    def copied(weights=None, **settings) -> HarvestConfig:
        path = tmp_path / "model"
        shutil.copytree(gpt2_dir, path)
        content = json.loads((path / "config.json").read_text()) | settings
        (path / "config.json").write_text(json.dumps(content))
        if weights is not None:
            changed = weights(safetensors.torch.load_file(path / "model.safetensors"))
            safetensors.torch.save_file(changed, path / "model.safetensors", metadata={"format": "pt"})
        return dataclasses.replace(config, model=str(path))

    return copied


def refusal(config: HarvestConfig, **options) -> str:
    """The sentence of a harvest that leaves nothing behind."""
    with pytest.raises(ModelError) as caught:
        harvest(config, **options)
    assert not config.out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "repository"),
    [("gemma-2-2b", "google/gemma-2-2b"), ("pythia-70m", "EleutherAI/pythia-70m"), ("org/their-own", "org/their-own")],
)
def test_aliases_and_commits(monkeypatch, name, repository):
    monkeypatch.setattr(models, "hub_commit", lambda *_: "c0ffee")
    found = models.find_checkpoint(name)
    assert (found.name, found.path, found.revision) == (repository, repository, "c0ffee")
    assert found.options == {"trust_remote_code": False, "revision": "c0ffee", "local_files_only": False}


def test_what_is_cached_serves_without_a_network(monkeypatch):
    monkeypatch.setattr(models, "hub_commit", lambda *_: None)
    assert models.find_checkpoint("gpt2", revision="v1").options == {
        "trust_remote_code": False,
        "revision": "v1",
        "local_files_only": True,
    }


@pytest.mark.parametrize("where", ["repo_info", "auth_check"])
def test_a_gated_repository_is_told_with_its_licence_and_token(config, monkeypatch, where):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def gated(*_, **__):
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: SimpleNamespace(gated="manual", sha="c0ffee"))
    monkeypatch.setattr(huggingface_hub.HfApi, where, gated)
    said = refusal(dataclasses.replace(config, model="gemma-2-2b"))
    assert "The model google/gemma-2-2b is open only to those who accepted its licence" in said
    assert "https://huggingface.co/google/gemma-2-2b, then set HF_TOKEN" in said


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "code was run"


@pytest.fixture
def with_code(copied, marker):
    def with_code(**settings) -> HarvestConfig:
        config = copied(auto_map={"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}, **settings)
        (Path(config.model) / "mine.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
        return config

    return with_code


def test_a_model_that_needs_its_own_code_is_refused_and_the_code_is_not_run(with_code, marker):
    said = refusal(with_code(model_type="mine", architectures=["Model"]))
    assert "needs Python code of its own; read it, and if you trust it give --trust-remote-code" in said
    assert not marker.exists()


def test_a_model_that_does_without_it_is_harvested_without(with_code, marker):
    assert harvest(with_code()).rows == 200
    assert not marker.exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"vocab_size": 500}, r"transformer\.wte\.weight is \[384, 32\] and should be \[500, 32\]"),
        ({"n_embd": 64}, r"is \[96\] and should be \[192\]; the files belong to different models"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, r"lack lm_head\.weight.* belong to another architecture"),
        ({"n_head": 5}, r"must be divisible by num_heads"),
        ({"n_head": 0}, r"config\.json of .* describes no model that transformers can build: ZeroDivisionError"),
        ({"activation_function": "none"}, r"describes no model that transformers can build: KeyError\('none'\)"),
        ({"n_layer": "four"}, r"no config\.json that transformers understands: Validation error for field 'n_layer'"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_the_weights(copied, settings, sentence):
    with pytest.raises(ModelError, match=sentence):
        harvest(copied(**settings))


@pytest.mark.parametrize("kept", [0, 500, -100])
def test_damaged_weights(copied, kept):
    config = copied()
    weights = Path(config.model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "cannot be loaded (only safetensors are, never pickles): Error while deserializing" in refusal(config)


def test_a_shard_that_is_missing(copied):
    config = copied()
    (Path(config.model) / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "model-00001-of-00002.safetensors"}}
    (Path(config.model) / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in refusal(config)


def test_a_tokenizer_of_another_model(copied):
    config = copied(
        lambda weights: weights | {"transformer.wte.weight": weights["transformer.wte.weight"][:100]}, vocab_size=100
    )
    assert "but the model knows only 100 tokens: they do not belong together" in refusal(config)


def test_an_architecture_that_transformer_lens_does_not_know(copied, monkeypatch):
    from transformer_lens.model_bridge import TransformerBridge

    def unknown(*_, **__):
        raise ValueError("Unsupported architecture. Available architectures: " + "AnyForCausalLM, " * 200)

    config = copied()
    monkeypatch.setattr(TransformerBridge, "boot_transformers", unknown)
    said = refusal(config)
    assert f"TransformerLens cannot run {config.model} in float32 (Unsupported architecture" in said
    assert len(said) < 600


@pytest.fixture
def large(copied):
    """Activations of about 1e6 behind the second block's MLP; no weight beyond float16."""

    def scaled(weights):
        name = "transformer.h.1.mlp.c_proj.weight"
        return weights | {name: weights[name] * (1e6 / weights[name].norm())}

    return copied(scaled)


def test_a_store_of_float16(large, tmp_path):
    said = refusal(dataclasses.replace(large, dtype="float16"))
    assert "of the first 87 rows of" in said
    assert (
        "at blocks.1.hook_resid_post are not finite: the store's dtype, float16, ends at 65504; give --dtype bfloat16" in said
    )
    done = harvest(dataclasses.replace(large, dtype="bfloat16"))
    assert (done.rows, done.attributes["dropped_non_finite"]) == (200, 0)
    assert done.acts("blocks.1.hook_resid_post", 0, 200).float().norm(dim=1).max() > 65504
    # Where they are small yet, the same store can hold them.
    before = dataclasses.replace(large, dtype="float16", layers=(0,), out=tmp_path / "before.zarr")
    assert harvest(before).attributes["dropped_non_finite"] == 0


@pytest.mark.parametrize(("dtype", "also"), [("float16", " and --dtype bfloat16."), ("float32", "float32.")])
def test_a_model_in_float16(large, dtype, also):
    said = refusal(dataclasses.replace(large, model_dtype="float16", dtype=dtype))
    assert "at blocks.1.hook_resid_post are not finite: the model's dtype, float16, ends at 65504; give --model-dtype" in said
    assert said.endswith(also)


@pytest.mark.parametrize(
    ("dtype", "advice"), [("float32", "its weights are damaged"), ("bfloat16", "give --model-dtype float32")]
)
def test_weights_that_are_not_finite(copied, dtype, advice):
    name = "transformer.h.0.mlp.c_fc.bias"
    config = copied(lambda weights: weights | {name: torch.full_like(weights[name], float("nan"))})
    said = refusal(dataclasses.replace(config, model_dtype=dtype, dtype="float16"))
    assert (
        f"87 of the first 87 rows of {config.model} at blocks.1.hook_resid_post are not finite: the model computes them so in {dtype}"
        in said
    )
    assert advice in said


@pytest.mark.parametrize(
    ("bad", "rows", "refused"), [(1, 1, False), (1, 5, False), (2, 5, True), (5, 100, False), (6, 100, True)]
)
def test_a_few_rows_are_no_reason(config, bad, rows, refused):
    x = torch.ones(rows, 32)
    x[:bad, 3] = float("inf")
    todo, found = plan(dataclasses.replace(config, dtype="float16")), {"blocks.1.hook_resid_post": x}
    if refused:
        with pytest.raises(ModelError, match=f"{bad} of the first {rows} rows"):
            first.check_first_rows(found, todo)
    else:
        first.check_first_rows(found, todo)


def test_a_dry_run_says_so_too(large):
    from splinterp.harvest import probe

    with pytest.raises(ModelError, match="the store's dtype, float16, ends at 65504"):
        probe(plan(dataclasses.replace(large, dtype="float16")))


def test_rows_of_another_width_than_planned(config):
    planned = dataclasses.replace(plan(config), sites={"blocks.1.hook_resid_post": 33})
    assert "at blocks.1.hook_resid_post are 32 wide, and not 33" in refusal(config, planned=planned)
