"""SAEs: encode and decode, conventions folded exactly, files both ways with SAELens."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from splinterp.errors import SAEError
from splinterp.sae import SAE, SAEConfig, decode, load_sae, save_sae, select_topk, to_dense

D_IN, D_SAE, K = 16, 48, 5


def random_sae(architecture: str, seed: int = 0, **options) -> SAE:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    k = K if "topk" in architecture else None
    config = SAEConfig(
        architecture, D_IN, D_SAE, k, metadata={"model_name": "tiny", "hook_name": "blocks.2.hook_resid_post"}, **options
    )  # type: ignore[arg-type]
    threshold = torch.rand(D_SAE, generator=generator) if architecture == "jumprelu" else None
    return SAE(config, randn(D_IN, D_SAE), randn(D_SAE), randn(D_SAE, D_IN), randn(D_IN), threshold)


def rows(n: int = 200) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(1))


def dense(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    return to_dense(sae.encode(x), D_SAE)


def test_topk_takes_the_k_largest_and_then_relu():
    pre = torch.tensor([[3.0, -1.0, 2.0, -5.0], [-1.0, -2.0, -3.0, 0.5]])
    z = to_dense(select_topk(pre, 2), 4)
    assert z.tolist() == [[3, 0, 2, 0], [0, 0, 0, 0.5]]


def test_sparse_and_dense_decoding_agree_and_have_the_same_gradients():
    sae = random_sae("topk")
    codes = sae.encode(rows())
    W1, W2 = (sae.W_dec.clone().double().requires_grad_() for _ in range(2))
    values = codes.values.double().requires_grad_()
    sparse = decode(codes._replace(values=values), W1, sae.b_dec.double())
    z = torch.zeros(200, D_SAE, dtype=torch.float64).scatter(1, codes.indices, values)
    full = decode(z, W2, sae.b_dec.double())
    assert torch.allclose(sparse, full)
    weight = torch.randn_like(sparse)
    g1, g_sparse = torch.autograd.grad((sparse * weight).sum(), [W1, values], retain_graph=True)
    g2, g_full = torch.autograd.grad((full * weight).sum(), [W2, values])
    assert torch.allclose(g1, g2)
    assert torch.allclose(g_sparse, g_full)


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "standard", "jumprelu"])
def test_folding_a_normalisation_keeps_codes_and_moves_reconstructions_to_raw_units(architecture):
    sae, x = random_sae(architecture), rows()
    mean, scale = torch.randn(D_IN), 3.7
    folded = sae.fold_normalisation(mean, scale)
    raw = x * scale + mean
    assert torch.allclose(dense(folded, raw), dense(sae, x), atol=1e-4)
    assert torch.allclose(folded(raw), sae(x) * scale + mean, atol=1e-3)


@pytest.mark.parametrize("b_dec_in", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_plain_conventions_are_the_same_sae(b_dec_in, rescale):
    sae, x = random_sae("topk", apply_b_dec_to_input=b_dec_in, rescale_acts_by_decoder_norm=rescale), rows()
    assert torch.allclose(dense(sae.plain(), x), dense(sae, x), atol=1e-4)
    assert torch.allclose(sae.plain()(x), sae(x), atol=1e-4)


def test_another_decoder_leaves_the_codes_alone():
    sae, x = random_sae("topk", apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=True), rows()
    other = sae.with_decoder(torch.randn(D_SAE, D_IN), torch.randn(D_IN))
    assert torch.allclose(dense(other, x), dense(sae, x), atol=1e-4)


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "standard", "jumprelu"])
def test_files_round_trip(architecture, tmp_path):
    sae = random_sae(architecture)
    save_sae(sae, tmp_path / "sae")
    again = load_sae(tmp_path / "sae")
    assert torch.equal(again(rows()), sae(rows()))
    assert again.config.metadata["hook_name"] == "blocks.2.hook_resid_post"


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "standard", "jumprelu"])
def test_saelens_loads_what_we_save(architecture, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    sae, x = random_sae(architecture), rows()
    save_sae(sae, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    assert (theirs.encode(x) - dense(sae, x)).abs().max() <= 1e-5
    assert (theirs(x) - sae(x)).abs().max() <= 1e-5
    assert theirs.cfg.metadata.model_name == "tiny"
    assert theirs.cfg.metadata.hook_name == "blocks.2.hook_resid_post"


@pytest.mark.parametrize(
    ("architecture", "rescale"),
    [("topk", False), ("topk", True), ("abstopk", True), ("standard", False), ("jumprelu", False), ("gated", False)],
)
@pytest.mark.parametrize("b_dec_in", [False, True])
def test_we_load_what_saelens_saves(architecture, b_dec_in, rescale, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    extra = {"k": K, "rescale_acts_by_decoder_norm": rescale} if "topk" in architecture else {}
    kinds = {
        "topk": "TopKSAE", "abstopk": "AbsTopKSAE", "standard": "StandardSAE", "jumprelu": "JumpReLUSAE", "gated": "GatedSAE"
    }  # fmt: skip
    kind = getattr(sae_lens, kinds[architecture])
    config = getattr(sae_lens, kinds[architecture] + "Config")(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=b_dec_in, **extra)
    theirs, x = kind(config), rows()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    theirs.save_model(str(tmp_path))
    ours = load_sae(tmp_path)
    assert (theirs.encode(x) - dense(ours, x)).abs().max() <= 1e-5
    assert (theirs(x) - ours(x)).abs().max() <= 1e-4


def test_saelens_files_of_before_version_6_are_read_as_saelens_reads_them(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    sae, x = random_sae("topk"), rows()
    save_sae(sae, tmp_path)
    save_file(load_file(tmp_path / "sae_weights.safetensors"), tmp_path / "sae_weights.safetensors")  # as SAELens writes it
    old = {
        "architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False,
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": "none", "finetuning_scaling_factor": False,
        "hook_name": "blocks.1.hook_resid_post", "model_name": "gpt2", "hook_layer": 1, "context_size": 64, "prepend_bos": True,
        "dataset_path": "text", "sae_lens_training_version": None,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    ours, theirs = load_sae(tmp_path), sae_lens.SAE.load_from_disk(str(tmp_path))
    assert (theirs.encode(x) - dense(ours, x)).abs().max() <= 1e-5
    assert ours.config.metadata["hook_name"] == "blocks.1.hook_resid_post"
    (tmp_path / "cfg.json").write_text(json.dumps(old | {"activation_fn_str": "tanh-relu"}))
    with pytest.raises(SAEError, match="tanh-relu"):
        load_sae(tmp_path)


def test_a_hook_z_sae_takes_flat_rows_and_stays_one(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    config = sae_lens.TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, reshape_activations="hook_z")
    theirs = sae_lens.TopKSAE(config)
    theirs.save_model(str(tmp_path / "theirs"))
    ours, x = load_sae(tmp_path / "theirs"), rows()
    heads = x.view(len(x), 4, D_IN // 4)
    assert (theirs(heads).flatten(1) - ours(x)).abs().max() <= 1e-5
    save_sae(ours, tmp_path / "ours")
    assert (sae_lens.SAE.load_from_disk(str(tmp_path / "ours"))(heads).flatten(1) - ours(x)).abs().max() <= 1e-5


def test_mistakes_have_their_sentences(tmp_path):
    with pytest.raises(SAEError, match="no SAE at"):
        load_sae(tmp_path / "nowhere")
    with pytest.raises(SAEError, match="is not an SAE"):
        load_sae(tmp_path)
    with pytest.raises(SAEError, match="k=49 must be between 1 and the number of latents, 48"):
        SAEConfig("topk", D_IN, D_SAE, 49)
    sae = random_sae("topk")
    save_sae(sae, tmp_path / "a")
    cfg = tmp_path / "a" / "cfg.json"
    cfg.write_text(json.dumps(json.loads(cfg.read_text()) | {"d_sae": 47, "k": 3}))
    with pytest.raises(SAEError, match="does not fit"):
        load_sae(tmp_path / "a")
    cfg.write_text("{")
    with pytest.raises(SAEError, match="damaged"):
        load_sae(tmp_path / "a")
    save_sae(sae, tmp_path / "b")
    (tmp_path / "b" / "sae_weights.safetensors").write_bytes(b"\x80\x04 no tensors")
    with pytest.raises(SAEError, match="damaged"):
        load_sae(tmp_path / "b")
    save_sae(sae, tmp_path / "c")
    cfg = tmp_path / "c" / "cfg.json"
    cfg.write_text(json.dumps(json.loads(cfg.read_text()) | {"architecture": "temporal"}))
    with pytest.raises(SAEError, match="'temporal' is not supported"):
        load_sae(tmp_path / "c")
    cfg.write_text(json.dumps(json.loads(cfg.read_text()) | {"architecture": "topk", "normalize_activations": "layer_norm"}))
    with pytest.raises(SAEError, match="layer_norm"):
        load_sae(tmp_path / "c")


@pytest.mark.parametrize("architecture", ["BatchTopK", "MatryoshkaBatchTopK"])
def test_we_load_what_saelens_trained_with_batchtopk(architecture, tmp_path):
    """SAELens, too, saves them as jumprelu, with the threshold that training has learnt."""
    sae_lens = pytest.importorskip("sae_lens")
    extra = {"matryoshka_widths": [D_SAE // 2, D_SAE]} if architecture.startswith("M") else {}
    config = getattr(sae_lens, f"{architecture}TrainingSAEConfig")(d_in=D_IN, d_sae=D_SAE, k=K, **extra)
    trained, x = getattr(sae_lens, f"{architecture}TrainingSAE")(config), rows()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        trained.topk_threshold.fill_(0.7)
    trained.save_inference_model(str(tmp_path))
    theirs, ours = sae_lens.SAE.load_from_disk(str(tmp_path)), load_sae(tmp_path)
    assert ours.config.architecture == "jumprelu"
    assert (theirs.encode(x) - dense(ours, x)).abs().max() <= 1e-5
    assert (theirs(x) - ours(x)).abs().max() <= 1e-4


def test_saes_can_be_compared_and_kept_in_sets():
    """Each is itself: their weights are not looked at."""
    sae, other = random_sae("topk"), random_sae("topk")
    assert sae != other
    assert sae in [other, sae]
    assert len({sae, other, sae}) == 2
