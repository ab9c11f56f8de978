"""The forward pass: one for all sites, stopped after the last, with TransformerLens's traps shut, and safe when memory runs out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from splinterp.devices import suitable_threads
from splinterp.errors import ModelError
from splinterp.harvest.forward import SiteReader, auto_batch_size
from splinterp.harvest.hooks import HOOKS, site_name
from splinterp.harvest.model import find_checkpoint, load_bridge, load_config
from splinterp.harvest.tokens import load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def load(model_dir):
    """Load the first `blocks` blocks of the model under test as a fresh bridge."""

    def load(blocks: int = 4):
        checkpoint = find_checkpoint(str(model_dir))
        tokenizer = load_tokenizer(checkpoint.name, checkpoint.path, **checkpoint.options)
        return load_bridge(checkpoint, load_config(checkpoint), tokenizer, blocks, CPU, torch.float32)

    return load


def reader(bridge, *sites: str, batch_size: int = 8) -> SiteReader:
    return SiteReader(bridge, sites, name="m", dtype=torch.float32, batch_size=batch_size)


def some_ids(rows: int = 8, length: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(2, 300, (rows, length))


def everything(ids: np.ndarray) -> np.ndarray:
    return np.ones(ids.shape, bool)


def calls_of(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def parts(bridge):
    model = bridge.original_model
    gpt2 = hasattr(model, "transformer")
    embedding = model.transformer.wte if gpt2 else model.model.embed_tokens
    final_norm = model.transformer.ln_f if gpt2 else model.model.norm
    return embedding, final_norm, model.lm_head


def test_one_pass_for_all_sites_stopped_after_the_last(load):
    bridge = load()
    embedding, final_norm, head = parts(bridge)
    passes, blocks = calls_of(embedding), [calls_of(block) for block in bridge.blocks]
    mlps, rest = [calls_of(bridge.blocks[i].mlp) for i in (1, 2)], [calls_of(final_norm), calls_of(head)]
    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.2.hook_resid_mid"]
    ids = some_ids()
    rows = reader(bridge, *sites).read(ids, everything(ids))
    assert {site: tuple(x.shape) for site, x in rows.items()} == dict.fromkeys(sites, (96, 32))
    assert passes == [1]
    assert [len(calls) for calls in blocks] == [1, 1, 0, 0]  # block 2 was left in its middle, block 3 never entered
    assert mlps == [[1], []]
    assert rest == [[], []]


def test_every_site_ends_the_pass_in_its_block_whatever_the_others(load):
    bridge, ids = load(), some_ids()
    embedding, _, _ = parts(bridge)
    passes, beyond = calls_of(embedding), calls_of(bridge.blocks[2].ln1)
    alone = {}
    for hook in HOOKS:
        alone |= reader(bridge, site_name(1, hook)).read(ids, everything(ids))
        bridge.reset_hooks()
    assert len(passes) == len(HOOKS)
    for pair in itertools.permutations(HOOKS, 2):
        rows = reader(bridge, *(site_name(1, hook) for hook in pair)).read(ids[:1], everything(ids[:1]))
        assert [len(x) for x in rows.values()] == [12, 12]
        bridge.reset_hooks()
    together = reader(bridge, *alone).read(ids, everything(ids))
    assert len(passes) == len(HOOKS) ** 2 + 1
    assert beyond == []
    assert all(torch.equal(together[site], x) for site, x in alone.items())


def test_only_the_blocks_needed_are_loaded(load):
    bridge = load(blocks=2)
    assert len(bridge.blocks) == 2
    ids = some_ids()
    (whole,) = reader(load(), "blocks.1.hook_resid_post").read(ids, everything(ids)).values()
    (cut,) = reader(bridge, "blocks.1.hook_resid_post").read(ids, everything(ids)).values()
    assert torch.equal(whole, cut)


def test_only_kept_tokens_in_the_order_of_the_batch(load):
    bridge, ids = load(), some_ids()
    keep = np.random.default_rng(1).random(ids.shape) < 0.5
    sites = reader(bridge, "blocks.1.hook_resid_post")
    (kept,), (whole,) = sites.read(ids, keep).values(), sites.read(ids, everything(ids)).values()
    assert torch.equal(kept, whole[torch.from_numpy(keep.ravel())])


def test_traps_no_weight_is_folded_or_centred(load, model_dir):
    import safetensors.torch

    bridge = load()
    saved = safetensors.torch.load_file(model_dir / "model.safetensors")
    held = list(bridge.original_model.parameters())
    norms = [value for name, value in saved.items() if "norm" in name or "ln_" in name]
    assert len(norms) > 8
    for value in norms:
        assert any(torch.equal(value, parameter) for parameter in held if parameter.shape == value.shape)
    ids = some_ids()
    (rows,) = reader(bridge, "blocks.3.hook_resid_post").read(ids, everything(ids)).values()
    assert (rows.mean(1).abs() > 1e-3 * rows.norm(dim=1)).any()  # centred rows would have means of rounding size


def test_traps_the_model_sees_the_ids_as_packed_without_a_second_bos(load):
    bridge, ids = load(), some_ids()
    seen = []
    parts(bridge)[0].register_forward_hook(lambda module, args, result: seen.append(args[0]))
    reader(bridge, "blocks.0.hook_resid_pre").read(ids, everything(ids))
    assert torch.equal(seen[0], torch.from_numpy(ids))


def test_traps_attention_patterns_are_not_kept(load):
    bridge, ids = load(), some_ids()
    reader(bridge, "blocks.3.hook_resid_post").read(ids, everything(ids))
    assert all(getattr(block.attn, "_pattern", None) is None for block in bridge.blocks)


def test_traps_the_tokenizer_is_not_loaded_again(load, monkeypatch):
    import transformers

    load()  # everything imported
    loads = []
    real = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: loads.append(a) or real(*a, **k))
    load()
    assert len(loads) == 1


def test_an_unknown_hook_is_refused(load):
    with pytest.raises(
        ModelError, match=r"m has no hook blocks\.1\.hook_nonsense; of its kind it has resid_pre, attn_z, attn_out, resid_mid"
    ):
        reader(load(), "blocks.1.hook_nonsense")


def test_a_hook_that_never_fires_is_an_error(load):
    bridge, ids = load(), some_ids()
    # A hook point that exists, but only fires in a mode that is off.
    sites = SiteReader(bridge, ["blocks.1.hook_resid_post"], name="m", dtype=torch.float32, batch_size=8)
    sites._sites = (*sites._sites, "blocks.1.hook_mlp_in")
    with pytest.raises(ModelError, match=r"m runs without passing blocks\.1\.hook_mlp_in"):
        sites.read(ids, everything(ids))


def out_of_memory_beyond(bridge, rows: int, error: Exception, monkeypatch) -> list[int]:
    tried: list[int] = []
    real = bridge.forward

    def forward(ids, **options):
        tried.append(len(ids))
        if len(ids) > rows:
            raise error
        return real(ids, **options)

    monkeypatch.setattr(bridge, "forward", forward)
    return tried


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")],
)
def test_out_of_memory_halves_the_batch_and_loses_nothing(load, monkeypatch, error):
    ids = some_ids(rows=11)
    keep = np.random.default_rng(1).random(ids.shape) < 0.7
    site = "blocks.2.hook_resid_post"
    (expected,) = reader(load(), site, batch_size=2).read(ids, keep).values()
    bridge = load()
    tried = out_of_memory_beyond(bridge, 2, error, monkeypatch)
    told: list[str] = []
    sites = SiteReader(bridge, [site], name="m", dtype=torch.float32, batch_size=11, tell=told.append)
    (rows,) = sites.read(ids, keep).values()
    assert torch.equal(rows, expected)
    assert len(told) == 1
    assert "does not hold 11 packed rows a forward pass: it goes on with 2" in told[0]
    assert tried == [11, 5, 2, 2, 2, 2, 2, 1]
    assert sites.batch_size == 2  # and later batches begin there


def test_a_row_too_large_for_memory(load, monkeypatch):
    bridge, ids = load(), some_ids()
    out_of_memory_beyond(bridge, 0, torch.OutOfMemoryError("out of memory"), monkeypatch)
    with pytest.raises(ModelError, match="Not even one row of 12 tokens"):
        reader(bridge, "blocks.0.hook_resid_post").read(ids, everything(ids))


def test_other_errors_are_not_taken_for_a_lack_of_memory(load, monkeypatch):
    bridge, ids = load(), some_ids()
    out_of_memory_beyond(bridge, 0, RuntimeError("shapes do not match"), monkeypatch)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        reader(bridge, "blocks.0.hook_resid_post").read(ids, everything(ids))


def test_automatic_batch_size():
    assert auto_batch_size(128, 6, CPU, torch.float32) == 32
    assert auto_batch_size(100_000, 8, CPU, torch.float32) == 1
    cuda = torch.device("cuda")
    assert auto_batch_size(1024, 8, cuda, torch.bfloat16) == 32
    assert auto_batch_size(4096, 16, cuda, torch.bfloat16) == 2  # bounded by the attention's scores


def test_threads_are_given_back():
    torch.set_num_threads(2)
    try:
        with suitable_threads(192 * 1536, CPU):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with suitable_threads(768 * 6144, CPU):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
