"""SAEs in place in a model: by hand, beside SAELens's own evaluation, several at once, and gone without a trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import splinterp
import torch
from splinterp.errors import SplinterpError
from splinterp.sae import SAE, SAEConfig, save_sae

D, D_SAE = 32, 48
FIRST = "blocks.1.hook_resid_post"


def random_sae(hook: str | None, architecture: str = "topk", seed: int = 0, d: int = D) -> SAE:
    g = torch.Generator().manual_seed(seed)
    shapes = ((d, D_SAE), (D_SAE,), (D_SAE, d), (d,))
    metadata = {} if hook is None else {"hook_name": hook, "model_name": "tiny", "context_size": 16, "prepend_bos": True}
    config = SAEConfig(architecture, d, D_SAE, 4 if architecture == "topk" else None, metadata=metadata)  # type: ignore[arg-type]
    weights = [0.3 * torch.randn(*s, generator=g) for s in shapes]
    return SAE(config, *weights, threshold=torch.rand(D_SAE, generator=g) if architecture == "jumprelu" else None)


def identity(hook: str, d: int = D) -> SAE:
    """Reconstructs every row: x = relu(x) − relu(−x)."""
    eye = torch.eye(d)
    config = SAEConfig("standard", d, 2 * d, metadata={"hook_name": hook})
    return SAE(config, torch.cat([eye, -eye], 1), torch.zeros(2 * d), torch.cat([eye, -eye]), torch.zeros(d))


@pytest.fixture(scope="module", params=["gpt2", "gemma2"])
def bridge(request, jsonl):
    from splinterp.harvest.evaluation import evaluation_batches

    return evaluation_batches(str(request.getfixturevalue(f"{request.param}_dir")), str(jsonl), 10, context=16)[0]


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, 300, (3, 16), generator=torch.Generator().manual_seed(0))


def loss_of(model, ids) -> float:
    with torch.no_grad():
        logits = model(ids, return_type="logits")
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


@pytest.mark.parametrize(
    "hooks", [[FIRST], [FIRST, "blocks.0.attn.hook_z"], [FIRST, "blocks.2.hook_mlp_out", "blocks.3.hook_resid_pre"]]
)
def test_an_identity_changes_nothing(bridge, ids, hooks):
    with torch.no_grad():
        clean = bridge(ids, return_type="logits")
        with splinterp.splice(bridge, [identity(hook, _width(bridge, ids, hook)) for hook in hooks]):
            spliced = bridge(ids, return_type="logits")
    assert (spliced - clean).abs().max() <= 1e-5 * clean.abs().max()


def _width(bridge, ids, hook: str) -> int:
    with torch.no_grad():
        _, cache = bridge.run_with_cache(ids)
    return cache[hook].flatten(2).shape[2]


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
def test_cross_entropy_is_what_saelens_finds(bridge, ids, architecture, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.evals import get_recons_loss
    from sae_lens.training.activation_scaler import ActivationScaler

    save_sae(random_sae(FIRST, architecture), tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    for ignored in ([], [int(ids[0, 3])]):
        with torch.no_grad():
            found = get_recons_loss(
                theirs, bridge, ActivationScaler(), ids, compute_kl=False, compute_ce_loss=True, ignore_tokens=ignored
            )
        where = None if not ignored else ~torch.isin(ids, torch.tensor(ignored))
        spliced = splinterp.splice(bridge, tmp_path, where=where)
        assert loss_of(spliced, ids) == pytest.approx(float(found["ce_loss_with_sae"].mean()), abs=1e-4)
        assert abs(loss_of(spliced, ids) - loss_of(bridge, ids)) > 1e-3


def test_saelens_own_bridge_agrees_with_several_saes(gpt2_dir, ids, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from splinterp.harvest.facts import model_facts
    from splinterp.harvest.model import find_checkpoint, load_bridge, load_config
    from splinterp.harvest.tokens import load_tokenizer

    checkpoint = find_checkpoint(str(gpt2_dir))
    config = load_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint.name, checkpoint.path, **checkpoint.options)
    bridge = load_bridge(checkpoint, config, tokenizer, model_facts(config).n_layers, torch.device("cpu"), torch.float32)
    saes = [random_sae(FIRST), random_sae("blocks.3.hook_resid_post", seed=1)]
    ours = loss_of(splinterp.splice(bridge, saes), ids)
    theirs = []
    for i, sae in enumerate(saes):
        save_sae(sae, tmp_path / str(i))
        theirs.append(sae_lens.SAE.load_from_disk(str(tmp_path / str(i))))
    bridge.__class__ = SAETransformerBridge  # as SAELens makes one
    bridge._acts_to_saes, bridge._transcoder_output_hooks = {}, {}
    with bridge.saes(theirs):
        assert loss_of(bridge, ids) == pytest.approx(ours, abs=1e-4)


def test_the_block_leaves_no_trace_and_other_hooks_stay(bridge, ids):
    clean = loss_of(bridge, ids)
    seen = []
    point = bridge.hook_dict[FIRST]
    point.add_hook(lambda acts, hook: seen.append(acts.shape))
    before = len(point.fwd_hooks)
    spliced = splinterp.splice(bridge, random_sae(FIRST))
    with spliced:
        assert loss_of(bridge, ids) == loss_of(spliced, ids) != clean
    with pytest.raises(TypeError), spliced:
        bridge(nonsense=True)
    seen.clear()
    assert loss_of(bridge, ids) == clean
    assert len(point.fwd_hooks) == before
    assert len(seen) == 1
    point.remove_hooks()


def test_rows_are_replaced_where_it_is_said(bridge, ids):
    sae = random_sae(FIRST)
    where = torch.zeros(3, 16, dtype=torch.bool)
    where[1] = True
    with torch.no_grad():
        clean = bridge(ids, return_type="logits")
        spliced = splinterp.splice(bridge, sae, where=where)(ids, return_type="logits")
        everywhere = splinterp.splice(bridge, sae)(ids, return_type="logits")
    assert torch.allclose(spliced[[0, 2]], clean[[0, 2]], atol=1e-5)
    assert torch.allclose(spliced[1], everywhere[1], atol=1e-4)
    assert not torch.allclose(spliced[1], clean[1], atol=1e-2)


def test_gradients_pass_through(bridge, ids):
    sae = random_sae(FIRST)
    W_dec = sae.W_dec.clone().requires_grad_()
    splinterp.splice(bridge, replace(sae, W_dec=W_dec))(ids, return_type="loss").backward()
    assert W_dec.grad is not None
    assert W_dec.grad.abs().sum() > 0


def test_mistakes_have_their_sentences(bridge, ids):
    for saes, told in (
        (random_sae(None), "does not say which hook"),
        ([random_sae(FIRST), random_sae(FIRST, seed=1)], "Two SAEs belong"),
        (random_sae("blocks.9.hook_resid_post"), "has no hook blocks.9"),
        ([], "no SAE to put in place"),
    ):
        with pytest.raises(SplinterpError, match=told):
            splinterp.splice(bridge, saes)
    with pytest.raises(SplinterpError, match="32 wide and the SAE's 8"):
        splinterp.splice(bridge, {FIRST: random_sae(None, d=8)})(ids)
    spliced = splinterp.splice(bridge, random_sae(FIRST), where=torch.ones(2, 16, dtype=torch.bool))
    with pytest.raises(SplinterpError, match="`where` is"):
        spliced(ids)
    with spliced, pytest.raises(SplinterpError, match="in place already"), spliced:
        pass
