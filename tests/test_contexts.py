"""The strongest rows of every latent, and the text around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from rich.console import Console
from splinterp import store as stores
from splinterp.errors import StoreError
from splinterp.evaluate import evaluate_rows
from splinterp.harvest import HarvestConfig, harvest
from splinterp.report import accumulate, print_contexts, top_contexts
from splinterp.report.choose import bands, interesting_latents
from splinterp.report.contexts import Context, LatentContexts
from splinterp.report.keep import BINS, Histograms, Kept, random_keys
from splinterp.report.pieces import pieces
from splinterp.report.statistics import Strongest
from splinterp.report.windows import codes_at, windows_at
from splinterp.sae import SAE, SAEConfig, to_dense
from splinterp.train import raw_rows

D_SAE = 40

ARCHITECTURES = ("topk", "abstopk", "standard", "jumprelu")


@pytest.fixture(scope="module")
def store(gpt2_dir, jsonl, tmp_path_factory):
    out = tmp_path_factory.mktemp("contexts") / "acts.zarr"
    return harvest(HarvestConfig(model=str(gpt2_dir), layers=(1,), dataset=str(jsonl), tokens=1500, context=16, out=out))


def random_sae(architecture: str = "topk") -> SAE:
    g = torch.Generator().manual_seed(0)
    shapes = ((32, D_SAE), (D_SAE,), (D_SAE, 32), (32,))
    tensors = [torch.randn(*s, generator=g) for s in shapes]
    threshold = torch.full((D_SAE,), 6.0) if architecture == "jumprelu" else None
    return SAE(SAEConfig(architecture, 32, D_SAE, 5 if "topk" in architecture else None), *tensors, threshold)  # type: ignore[arg-type]


ENTRIES = some.lists(some.tuples(some.integers(0, 3), some.integers(1, 9)), max_size=60)


@settings(max_examples=50)
@given(ENTRIES, some.integers(1, 5), some.lists(some.integers(0, 60), max_size=4))
def test_what_is_kept_is_what_a_sort_of_everything_gives_however_it_is_cut(entries, m, cuts):
    """Strengths that are often equal: then the lower row is kept."""
    latent, strength = (np.array([e[i] for e in entries], np.int64) for i in (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("splinterp.report.keep.MOST_WAITING", 7)
        kept, row = Kept(4, m), np.arange(len(entries))
        for part in np.split(row, sorted(min(c, len(row)) for c in cuts)):
            kept.add(latent[part], -strength[part].astype(float), strength[part].astype(np.float32), part)
        kept.settle()
    for i in range(4):
        own = sorted((-strength[r], r) for r in row[latent == i])[:m]
        assert kept.rows[i].tolist() == [r for _, r in own] + [-1] * (m - len(own))
        assert kept.values[i].tolist() == [-s for s, _ in own] + [0] * (m - len(own))


def test_nothing_of_a_batch_lives_on_but_in_what_was_there_from_the_start():
    """Small arrays that do, between the large ones of every batch, cost 16 MiB each: what is freed around them is not used again."""
    kept = Kept(4, 3)

    def held() -> list[int]:
        arrays = (kept.keys, kept.values, kept.rows, *kept._room)
        assert len([one for one in vars(kept).values() if not isinstance(one, int)]) == 4  # three arrays, and a tuple of them
        return [id(one) for one in arrays if isinstance(one, np.ndarray)]

    before, row = held(), np.arange(50)
    assert len(before) == 7
    for start in range(0, 500, 50):
        kept.add(row % 4, (row - start).astype(float), np.ones(50, np.float32), row + start)
        assert held() == before


@settings(max_examples=50)
@given(
    some.lists(some.tuples(some.integers(0, 2), some.floats(2.0**-100, 2.0**100, width=32)), min_size=1, max_size=40),
    some.randoms(),
)
def test_histograms_are_those_of_all_strengths_in_whatever_order_they_come(entries, random):
    direct = np.zeros((3, BINS), np.int64)
    largest = np.array([max([v for i, v in entries if i == latent], default=0.0) for latent in range(3)])
    ends = np.where(largest > 0, 2.0 ** np.frexp(largest)[1], 0.0)
    for latent, value in entries:
        direct[latent, int(value / ends[latent] * BINS)] += 1
    random.shuffle(entries)
    found = Histograms(3)
    for some_entries in (entries[:7], entries[7:]):
        found.add(np.array([i for i, _ in some_entries], np.int64), np.array([v for _, v in some_entries], np.float32))
    assert np.array_equal(found.counts, direct)
    assert np.array_equal(found.ends, ends)


def test_random_keys_are_evenly_spread_and_do_not_follow_their_rows():
    rows = np.arange(20_000)
    keys = random_keys(rows, np.full_like(rows, 7))
    assert np.histogram(keys, 10, (0, 1))[0] == pytest.approx(np.full(10, 2000), rel=0.1)
    assert abs(np.corrcoef(rows, keys)[0, 1]) < 0.03
    assert abs(np.corrcoef(keys, random_keys(rows, np.full_like(rows, 8)))[0, 1]) < 0.03


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_statistics_of_one_pass_are_those_of_all_codes(store, architecture, monkeypatch):
    monkeypatch.setattr("splinterp.report.statistics.MOST_ROWS", 100)
    sae, site = random_sae(architecture), store.site(None).name
    found = accumulate(sae, store, site, top=6, sampled=9)
    z = to_dense(sae.encode(store.acts(site, 0, store.rows).float()), D_SAE).numpy()
    s, strengths = found.strongest, np.abs(z)
    assert s.n_rows == store.rows
    assert np.array_equal(s.fired, (z != 0).sum(0))
    assert np.allclose(s.total, strengths.sum(0), rtol=1e-4)
    assert np.array_equal(found.l0, np.bincount((z != 0).sum(1), minlength=D_SAE + 1))
    assert np.allclose(np.abs(s.values), -np.sort(-strengths, axis=0)[:6].T, rtol=1e-4)
    for values, rows in ((s.values, s.rows), (found.sample_values, found.sample_rows)):
        there = rows >= 0
        assert np.array_equal(there, values != 0)
        latents = np.broadcast_to(np.arange(D_SAE)[:, None], there.shape)
        assert np.allclose(z[rows[there], latents[there]], values[there], rtol=1e-4)
        assert (np.diff(np.abs(values), axis=1) <= 0).all()
    for latent in range(D_SAE):
        rows = np.flatnonzero(z[:, latent])
        lots = np.argsort(random_keys(rows, np.full_like(rows, latent)))[:9]
        assert set(found.sample_rows[latent][found.sample_rows[latent] >= 0]) == set(rows[lots])
    assert np.array_equal(found.histograms.sum(1), s.fired)
    expected = evaluate_rows(sae, raw_rows(store, site, torch.device("cpu"), "held_out"), store.site(site).mean)
    assert found.held_out == pytest.approx(expected, rel=1e-5)


def test_statistics_take_no_more_memory_of_a_larger_store(store, tmp_path):
    small = stores.subset(store.path, tmp_path / "small.zarr", rows=300)
    sizes = []
    for one in (small, store):
        found = accumulate(random_sae(), one, one.site(None).name)
        arrays = [v for part in (found, found.strongest) for v in vars(part).values() if isinstance(v, np.ndarray)]
        sizes.append(sum(array.nbytes for array in arrays))
    assert sizes[0] == sizes[1] <= D_SAE * (16 * 12 + 40 * 12 + 64 * 8 + 40)


def test_windows_hold_the_rows_around_and_codes_are_the_encoders(store, monkeypatch):
    monkeypatch.setattr("splinterp.report.statistics.MOST_ROWS", 7)
    sae, site, width = random_sae(), store.site(None).name, 5
    rows = np.random.default_rng(0).integers(0, store.rows, 40)
    found = windows_at(store, rows, width)
    columns = {name: store.column(name).astype(int) for name in ("token_id", "position", "sequence")}
    place = {pair: i for i, pair in enumerate(zip(columns["sequence"], columns["position"], strict=True))}
    for row, window, tokens in zip(rows, found.rows, found.tokens, strict=True):
        steps = range(-width, width + 1)
        expected = [place.get((columns["sequence"][row], columns["position"][row] + step), -1) for step in steps]
        assert window.tolist() == expected
        assert tokens.tolist() == [columns["token_id"][i] if i >= 0 else -1 for i in expected]
    assert (found.rows == -1).any()
    latents = np.arange(40) % D_SAE
    z = to_dense(sae.encode(store.acts(site, 0, store.rows).float()), D_SAE).numpy()
    direct = np.where(found.rows >= 0, z[found.rows, latents[:, None]], 0)
    assert np.allclose(codes_at(sae, store, site, found.rows, latents), direct, rtol=1e-4)
    assert windows_at(store, rows[:0], width).rows.shape == (0, 11)


def test_pieces_of_a_window_are_its_text_and_cut_characters_belong_to_the_last_token(tokenizer):
    ids = tokenizer("alpha é d1 ☃ beta", add_special_tokens=False)["input_ids"]
    backend = tokenizer.backend_tokenizer
    told = pieces(backend, np.array([-1, *ids, -1]))
    assert told[0] is told[-1] is None
    assert "".join(text for text in told if text and text != "\ufffd") == "alpha é d1 ☃ beta"
    assert "☃" in told
    assert pieces(backend, np.array([0, ids[0]]))[0] == "<|bos|>"


def test_contexts_are_the_text_around_the_row(store, texts, tokenizer):
    statistics = accumulate(random_sae(), store, store.site(None).name)
    latents = top_contexts(
        random_sae(), store, store.site(None).name, n_latents=5, per_latent=3, width=4, statistics=statistics
    )
    assert 0 < len(latents) <= 5
    token_ids, strongest = store.column("token_id"), statistics.strongest
    checked = 0
    for latent in latents:
        values = [c.value for c in latent.contexts]
        assert values == sorted(values, reverse=True)
        assert 0 < latent.density < 0.5
        for context in latent.contexts:
            row = strongest.rows[latent.latent][np.isclose(strongest.values[latent.latent], context.value)][0]
            if "\ufffd" not in context.token:  # a character cut between two tokens
                assert context.token == tokenizer.decode([token_ids[row]])
            whole = context.before + context.token + context.after
            if "\ufffd" not in whole:
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
    strongest = Strongest(values, rows, fired, fired * 0.5, n)
    assert interesting_latents(strongest, tokens, documents, 4) == [0, 3]
    assert interesting_latents(strongest, tokens, documents, 4, thirds=True)[2:] == [1, 2]  # the others, after them


def test_latents_that_stand_out_in_many_documents_come_first_and_kinds_take_turns():
    m, latents = 4, 4
    rows = np.arange(latents * m).reshape(latents, m)
    values, fired, total = np.full((latents, m), 2.0, np.float32), np.full(latents, 100), np.array([100.0, 50, 100, 50])
    tokens = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [7, 7, 7, 7], [7, 7, 7, 7]])
    documents = np.array([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 0, 0]])
    found = interesting_latents(Strongest(values, rows, fired, total, 10_000), tokens, documents, 4)
    assert found == [1, 2, 0, 3]


def test_thirds_by_density_take_turns():
    m, fired = 4, np.array([30, 31, 40, 41, 50, 51])
    rows, values = np.arange(6 * m).reshape(6, m), np.ones((6, m), np.float32)
    found = interesting_latents(Strongest(values, rows, fired, fired * 0.5, 10_000), None, None, 6, thirds=True)
    assert [sorted(found[i : i + 3]) for i in (0, 3)] == [[0, 2, 4], [1, 3, 5]]


def test_bands_are_fifths_of_a_sample_without_what_is_shown():
    rows = np.array([*range(100, 120), -1, -1])
    found = bands(rows, {100, 101, 102}, 2)
    assert [[int(rows[p]) for p in places] for places in found] == [[103], [104, 107], [108, 111], [112, 115], [116, 119]]
    assert bands(np.array([5, -1]), set(), 2) == [[0], [], [], [], []]


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
