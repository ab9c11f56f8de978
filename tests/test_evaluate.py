"""Figures against their definitions, and cross-entropies against a model run by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from splinterp.errors import SplinterpError
from splinterp.evaluate import cross_entropies, evaluate_rows, paired_gain
from splinterp.sae import SAE, SAEConfig, to_dense

D_IN, D_SAE = 10, 30


def random_sae(d_in: int = D_IN, seed: int = 0) -> SAE:
    g = torch.Generator().manual_seed(seed)
    shapes = ((d_in, D_SAE), (D_SAE,), (D_SAE, d_in), (d_in,))
    return SAE(SAEConfig("topk", d_in, D_SAE, 4), *(torch.randn(*s, generator=g) for s in shapes))


def identity_sae(d: int) -> SAE:
    """Reconstructs every row exactly: x = relu(x) − relu(−x)."""
    eye = torch.eye(d)
    return SAE(
        SAEConfig("standard", d, 2 * d), torch.cat([eye, -eye], 1), torch.zeros(2 * d), torch.cat([eye, -eye]), torch.zeros(d)
    )


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_figures_are_their_definitions_however_batched(offset):
    sae, x = random_sae(), torch.randn(300, D_IN) + offset
    z, x_hat = to_dense(sae.encode(x), D_SAE), sae(x).double()
    figures = evaluate_rows(sae, x.split(77))
    error = (x.double() - x_hat).square().sum()
    assert figures["fvu"] == pytest.approx(float(error / (x.double() - x.double().mean(0)).square().sum()), rel=1e-6)
    assert figures["explained_variance"] == pytest.approx(1 - figures["fvu"])
    assert figures["mse"] == pytest.approx(float(error / x.numel()), rel=1e-6)
    assert figures["l0"] == pytest.approx(float((z != 0).sum(1).double().mean()))
    assert figures["dead_fraction"] == pytest.approx(float((z == 0).all(0).double().mean()))
    assert figures["n_rows"] == 300


def test_the_mean_alone_has_an_fvu_of_one():
    x = torch.randn(1000, D_IN) + 5
    nothing = SAE(
        SAEConfig("standard", D_IN, 1), torch.zeros(D_IN, 1), torch.tensor([-1.0]), torch.zeros(1, D_IN), x.mean(0)
    )  # fmt: skip
    figures = evaluate_rows(nothing, [x])
    assert figures["fvu"] == pytest.approx(1, rel=1e-5)
    assert figures["l0"] == 0
    assert figures["dead_fraction"] == 1


def test_no_rows_is_a_sentence():
    with pytest.raises(SplinterpError, match="no rows"):
        evaluate_rows(random_sae(), [])


@pytest.fixture(scope="module")
def bridge_and_batches(gpt2_dir, jsonl):
    from splinterp.harvest.evaluation import evaluation_batches

    bridge, batches = evaluation_batches(str(gpt2_dir), str(jsonl), 200, context=16)
    return bridge, list(batches)


def test_evaluation_text_is_about_as_long_as_asked(bridge_and_batches):
    _, batches = bridge_and_batches
    assert 200 <= sum(ids.numel() for ids, _ in batches) < 200 + 16
    assert all((~mask[:, 0]).all() for _, mask in batches)  # BOS stays the model's own


def test_cross_entropies_of_a_perfect_sae_and_by_hand(bridge_and_batches, gpt2_dir):
    from transformers import AutoModelForCausalLM

    bridge, batches = bridge_and_batches
    hook, mean = "blocks.1.hook_resid_post", torch.randn(32)
    perfect = cross_entropies(bridge, hook, identity_sae(32), mean, batches)
    assert perfect.ce_spliced == pytest.approx(perfect.ce_clean, abs=1e-5)
    assert perfect.ce_recovered == pytest.approx(1, abs=1e-4)

    sae = random_sae(32)
    ours = cross_entropies(bridge, hook, sae, mean, batches)
    model = AutoModelForCausalLM.from_pretrained(gpt2_dir, attn_implementation="eager").eval()

    def by_hand(replace) -> float:
        total, n = 0.0, 0
        for ids, mask in batches:

            def splice(module, args, output, mask=mask):
                hidden = output[0] if isinstance(output, tuple) else output
                new = torch.where(mask[..., None], replace(hidden), hidden)
                return (new, *output[1:]) if isinstance(output, tuple) else new

            handle = model.transformer.h[1].register_forward_hook(splice)
            with torch.no_grad():
                logits = model(ids).logits
            handle.remove()
            losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            total, n = total + float(losses), n + ids[:, 1:].numel()
        return total / n

    assert ours.ce_clean == pytest.approx(by_hand(lambda h: h), abs=1e-4)
    assert ours.ce_spliced == pytest.approx(by_hand(lambda h: sae(h.flatten(0, 1)).view_as(h)), abs=1e-4)
    assert ours.ce_ablated == pytest.approx(by_hand(lambda h: mean.expand_as(h)), abs=1e-4)
    recovered = (ours.ce_ablated - ours.ce_spliced) / (ours.ce_ablated - ours.ce_clean)
    assert ours.ce_recovered == pytest.approx(recovered)


def test_a_gain_is_paired_row_by_row():
    before, x = random_sae(), torch.randn(500, D_IN, generator=torch.Generator().manual_seed(3))
    after = replace(before, W_dec=0.9 * before.W_dec)
    gains = ((before(x) - x).square().sum(1) - (after(x) - x).square().sum(1)).double()
    mean, error = paired_gain(before, after, x.split(64))
    assert mean == pytest.approx(float(gains.mean()), rel=1e-5)
    assert error == pytest.approx(float(gains.std()) / 500**0.5, rel=1e-5)
    assert paired_gain(before, before, [x]) == (0, 0)
    with pytest.raises(SplinterpError, match="too few rows"):
        paired_gain(before, after, [x[:1]])
