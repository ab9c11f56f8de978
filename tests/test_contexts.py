"""The strongest rows of every latent, and the text around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console
from splinterp import store as stores
from splinterp.errors import StoreError
from splinterp.harvest import HarvestConfig, harvest
from splinterp.report import contexts as module
from splinterp.report import print_contexts, top_contexts
from splinterp.report.contexts import Context, LatentContexts, Strongest, interesting_latents, strongest_rows
from splinterp.sae import SAE, SAEConfig, to_dense

D_SAE = 40


@pytest.fixture(scope="module")
def store(gpt2_dir, jsonl, tmp_path_factory):
    out = tmp_path_factory.mktemp("contexts") / "acts.zarr"
    return harvest(HarvestConfig(model=str(gpt2_dir), layers=(1,), dataset=str(jsonl), tokens=1500, context=16, out=out))


def random_sae(architecture: str = "topk") -> SAE:
    g = torch.Generator().manual_seed(0)
    shapes = ((32, D_SAE), (D_SAE,), (D_SAE, 32), (32,))
    return SAE(
        SAEConfig(architecture, 32, D_SAE, 5 if architecture == "topk" else None),
        *(torch.randn(*s, generator=g) for s in shapes),
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_strongest_rows_are_the_largest_codes_of_the_whole_store(store, architecture, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 100)
    sae, site = random_sae(architecture), store.site(None).name
    found = strongest_rows(sae, store, site, m=6)
    z = to_dense(sae.encode(store.acts(site, 0, store.rows).float()), D_SAE).numpy()
    assert found.n_rows == store.rows
    assert np.array_equal(found.fired, (z > 0).sum(0))
    assert np.allclose(found.total, z.clip(0).sum(0), rtol=1e-4)
    expected = -np.sort(-z, axis=0)[:6].T
    assert np.allclose(found.values, expected, rtol=1e-4)
    there = found.rows >= 0
    assert np.array_equal(there, found.values > 0)
    latents = np.broadcast_to(np.arange(D_SAE)[:, None], there.shape)
    assert np.allclose(z[found.rows[there], latents[there]], found.values[there], rtol=1e-4)


def test_contexts_are_the_text_around_the_row(store, texts, tokenizer):
    latents = top_contexts(random_sae(), store, store.site(None).name, n_latents=5, per_latent=3, width=4)
    assert 0 < len(latents) <= 5
    strongest = strongest_rows(random_sae(), store, store.site(None).name)
    token_ids = store.column("token_id")
    checked = 0
    for latent in latents:
        values = [c.value for c in latent.contexts]
        assert values == sorted(values, reverse=True)
        assert 0 < latent.density < 0.5
        for context in latent.contexts:
            row = strongest.rows[latent.latent][np.isclose(strongest.values[latent.latent], context.value)][0]
            assert context.token == tokenizer.decode([token_ids[row]])
            whole = context.before + context.token + context.after
            if "\ufffd" not in whole:  # a character cut between two tokens
                assert any(whole in joined for joined in ("".join(texts), *texts))
                checked += 1
    assert checked


def test_latents_that_fire_everywhere_or_hardly_ever_are_not_interesting():
    m, n = 4, 10_000
    rows = np.arange(4 * m).reshape(4, m)
    values = np.ones((4, m), np.float32)
    fired = np.array([100, 5000, 3, 100])
    rows[2, 3] = -1
    tokens = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [7, 7, 7, 7]])
    documents = np.broadcast_to(np.arange(m), (4, m))
    assert interesting_latents(Strongest(values, rows, fired, fired * 0.5, n), tokens, documents, 4) == [0, 3]


def test_latents_that_stand_out_in_many_documents_come_first_and_kinds_take_turns():
    m, latents = 4, 4
    rows = np.arange(latents * m).reshape(latents, m)
    values, fired, total = np.full((latents, m), 2.0, np.float32), np.full(latents, 100), np.array([100.0, 50, 100, 50])
    tokens = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [7, 7, 7, 7], [7, 7, 7, 7]])
    documents = np.array([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 0]])
    found = interesting_latents(Strongest(values, rows, fired, total, 10_000), tokens, documents, 4)
    assert found == [1, 2, 0, 3]


def test_an_imported_store_has_no_text(tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).standard_normal((600, 32)).astype(np.float32))
    imported = stores.import_files([file], tmp_path / "acts.zarr")
    with pytest.raises(StoreError, match="imported, not harvested"):
        top_contexts(random_sae(), imported, "imported")


def test_the_activating_token_is_marked_and_control_characters_are_harmless():
    console = Console(record=True, width=100, force_terminal=False)
    print_contexts(console, [LatentContexts(7, 0.01, [Context("a\n[bold]", "tok\x1b[31m", "b\t", 3.5)])])
    text = console.export_text()
    assert "a⏎[bold]⟨tok·[31m⟩b⇥" in text
    assert "\x1b" not in text
