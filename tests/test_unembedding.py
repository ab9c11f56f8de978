"""From directions in the residual stream to tokens: against the formulas of the final norms, and the model's own logits."""

from __future__ import annotations

import pytest
import torch
from splinterp.errors import ModelError
from splinterp.harvest.unembedding import load_unembedding


def standardised(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_effects_are_the_norms_scale_and_the_unembedding(request, name):
    from transformers import AutoModelForCausalLM

    path = request.getfixturevalue(f"{name}_dir")
    found = load_unembedding(str(path))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    v = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    if name == "gpt2":
        scaled = (v - v.mean(1, keepdim=True)) * model.transformer.ln_f.weight
    else:
        scaled = v * (1 + model.model.norm.weight)
    direct = standardised(scaled @ model.get_output_embeddings().weight.T).detach()
    assert torch.allclose(found.effects(v), direct, atol=1e-4)
    assert torch.allclose(found.effects(1e-4 * v), direct, atol=1e-4)  # however small a decoder row is
    assert found.effects(torch.zeros(1, 32)).tolist() == [[0.0] * 384]
    assert found.texts([65, 0])[1] == "<|bos|>"


def test_a_small_step_along_a_direction_moves_the_logits_as_told(gpt2_dir):
    """Of GPT-2's architecture from a row whose norm is not linear: the order of the tokens is kept where the step leaves mean and size as they are."""
    found = load_unembedding(str(gpt2_dir))
    g = torch.Generator().manual_seed(1)
    x, v = torch.randn(1, 32, generator=g), torch.randn(1, 32, generator=g)
    x, v = x - x.mean(), v - v.mean()
    v -= x * (v @ x.T) / (x @ x.T)
    with torch.inference_mode():
        moved = found._head(found.norm(x + 1e-2 * v)) - found._head(found.norm(x))
    assert torch.corrcoef(torch.cat([moved, found.effects(v)]))[0, 1] > 0.999


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="There is no model directory"):
        load_unembedding(str(tmp_path / "none"))
