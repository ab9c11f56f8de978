"""The two ends of the spectrum: k-means and local PCA, streamed over a store, held against direct computation and against SAEs."""

from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from splinterp import store as stores
from splinterp.cli import main
from splinterp.errors import SplinterpError
from splinterp.geometry import (
    Cells,
    RegionMoments,
    SpectrumOptions,
    active_generators,
    bound_on_own_regions,
    kmeans_centres,
    rank_rule,
    region_cost,
    spectrum,
)
from splinterp.geometry.description import sae_index_bits
from splinterp.report.geometry import draw_spectrum
from splinterp.sae import SAE, SAEConfig, save_sae
from splinterp.train import TrainConfig, raw_rows, train

SITE, D, N, R = "hook", 10, 8000, 12
CPU = torch.device("cpu")
ROOMY = 2**30


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Rows of seven clusters, each with three directions of its own."""
    with stores.create(tmp_path_factory.mktemp("spectrum") / "acts.zarr", sites={SITE: D}, dtype="float32", rows=N) as writer:
        draw = torch.Generator().manual_seed(0)
        of = torch.randint(7, (N,), generator=draw)
        centres, axes = 8 * torch.randn(7, D, generator=draw), torch.randn(7, 3, D, generator=draw)
        rows = centres[of] + torch.einsum("ni,nid->nd", 2 * torch.randn(N, 3, generator=draw), axes[of])
        writer.add({SITE: 100 + rows + 0.3 * torch.randn(N, D, generator=draw)}, {})
        return writer.finish()


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """A small SAE with many rows in each of its regions."""
    config = TrainConfig(method="pam", activation="topk", d_sae=6, k=2, rows=20_000, batch_size=128, lr=3e-3)
    return train(store, SITE, config, tmp_path_factory.mktemp("sae") / "run").sae


@pytest.fixture(scope="module")
def found(store, trained):
    return spectrum(SpectrumOptions(regions=R, epochs=2, memory=ROOMY), store, SITE, {"ours": trained})


def random_sae(architecture, d_sae=6, k=2) -> SAE:
    draw = torch.Generator().manual_seed(3)
    W_dec = torch.randn(d_sae, D, generator=draw)
    config = SAEConfig(architecture, D, d_sae, k if "topk" in architecture else None)
    threshold = torch.rand(d_sae, generator=draw) if architecture == "jumprelu" else None
    return SAE(config, W_dec.T.contiguous(), -100 * W_dec.sum(1), W_dec, torch.full((D,), 100.0), threshold)


def split(store, name):
    return torch.cat(list(raw_rows(store, SITE, CPU, name)))


def test_the_rank_rule_of_the_papers_quiz():
    eigenvalues = torch.tensor([5, 2, 0.3, 0.1])
    assert int(rank_rule(eigenvalues, 1.0)) == 2
    cost = [float(eigenvalues[k:].sum()) + k for k in range(5)]  # of every rank
    assert float(region_cost(eigenvalues, 1.0)) == pytest.approx(min(cost)) == pytest.approx(cost[2])
    assert rank_rule(torch.stack([eigenvalues, 0 * eigenvalues]), 1.0).tolist() == [2, 0]


def test_streamed_pca_is_that_of_each_region_in_one_piece(store):
    x = split(store, "train")
    of = torch.randint(5, (len(x),), generator=torch.Generator().manual_seed(1))
    of[of == 3] = 4  # an empty one
    moments = RegionMoments(x.mean(0).expand(5, D), ROOMY)
    for some, where in zip(x.split(700), of.split(700), strict=True):
        moments.add(some, where)
    pca = moments.solve()
    for region in (0, 1, 2, 4):
        rows = x[of == region].double().numpy()
        assert np.allclose(pca.means[region], rows.mean(0), rtol=1e-12)
        covariance = np.cov(rows.T, bias=True)
        assert np.allclose(pca.eigenvalues[region], np.linalg.eigvalsh(covariance)[::-1], rtol=1e-9)
        assert np.allclose(covariance @ pca.axes[region].numpy(), pca.axes[region].numpy() * pca.eigenvalues[region].numpy())
    assert (int(pca.counts[3]), float(pca.eigenvalues[3].sum())) == (0, 0.0)
    ranks = torch.tensor([0, 3, D, 2, 1])
    error = (pca.reconstruct(x, of, ranks) - x).square().sum()
    assert float(error) == pytest.approx(pca.training_error(ranks), rel=1e-9)


def test_centres_are_kmeans_and_cells_are_those_nearest(store):
    told = []
    centres = kmeans_centres(store, SITE, R, 2, progress=told.append)
    assert told[-1] == 2 * store.split_rows("train")
    assert torch.equal(centres, kmeans_centres(store, SITE, R, 2))
    x = split(store, "train")
    of = Cells(centres, store.site(SITE).mean).of(x)
    nearest = torch.cdist(x.double(), centres.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert (of == nearest).double().mean() > 0.9999
    drawn = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:R]]
    spread = lambda c: float(torch.cdist(x, c).amin(1).square().sum())  # noqa: E731
    assert spread(centres) < 0.8 * spread(drawn)


def test_local_pca_beats_kmeans_and_more_of_it_is_better(found):
    kmeans, pca, sae = found["entries"]
    assert (kmeans["kind"], pca["kind"], sae["kind"]) == ("k-means", "local PCA", "topk")
    assert pca["fvu"] < 0.5 * kmeans["fvu"]
    assert pca["coefficients"] == pytest.approx(sae["coefficients"], abs=0.2)
    assert kmeans["fvu"] == pytest.approx(found["curve"][0]["fvu"], rel=1e-9)
    fvus = [point["fvu"] for point in found["curve"]]
    assert fvus == sorted(fvus, reverse=True)
    assert fvus[-1] == pytest.approx(0, abs=1e-12)


def test_figures_are_those_of_the_rows_taken_at_once(store, found):
    x, train_rows = split(store, "held_out").double(), split(store, "train").double()
    cells = Cells(kmeans_centres(store, SITE, R, 2), store.site(SITE).mean)
    of, of_train = cells.of(x.float()), cells.of(train_rows.float())
    variance = float((x - x.mean(0)).square().sum())
    kmeans, pca = found["entries"][:2]
    errors, kept, total_rank = [0.0, 0.0], 0, 0
    for region in range(R):
        rows, theirs = train_rows[of_train == region], x[of == region]
        if not len(rows):
            continue
        values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
        above = values > pca["price"] * (1 + 1e-9)  # λ is one of our eigenvalues, and numpy rounds them otherwise
        basis = torch.from_numpy(vectors[:, above].copy())
        away = theirs - rows.mean(0)
        errors[0] += float(away.square().sum())
        errors[1] += float((away - away @ basis @ basis.T).square().sum())
        kept, total_rank = kept + basis.shape[1] * len(theirs), total_rank + basis.shape[1]
    assert kmeans["fvu"] == pytest.approx(errors[0] / variance, rel=1e-6)
    assert pca["fvu"] == pytest.approx(errors[1] / variance, rel=1e-6)
    assert pca["coefficients"] == pca["l0"] == pytest.approx(kept / len(x))
    assert (pca["index_bits"], pca["bits"]) == (math.log2(R), pytest.approx(math.log2(R) + 8 * kept / len(x)))
    assert (kmeans["parameters"], pca["parameters"]) == (2 * R * D, 2 * R * D + D * total_rank)


def test_one_region_is_pca(store):
    kmeans, pca = spectrum(SpectrumOptions(regions=1, epochs=1, coefficients=3), store, SITE, {})["entries"]
    x, train_rows = split(store, "held_out").double(), split(store, "train").double()
    basis = torch.linalg.svd(train_rows - train_rows.mean(0), full_matrices=False).Vh[:3]
    away, variance = x - train_rows.mean(0), float((x - x.mean(0)).square().sum())
    assert kmeans["fvu"] == pytest.approx(float(away.square().sum()) / variance, rel=1e-6)
    assert pca["fvu"] == pytest.approx(float((away - away @ basis.T @ basis).square().sum()) / variance, rel=1e-6)
    assert (pca["coefficients"], pca["bits"]) == (3, 24)


@pytest.mark.parametrize("kind", ["trained", "topk", "abstopk", "standard", "jumprelu"])
def test_pca_on_an_saes_own_regions_is_below_its_error_in_every_region(store, trained, kind):
    sae, x = trained if kind == "trained" else random_sae(kind), split(store, "train")
    cells, of = active_generators(sae, sae.encode(x)).unique(dim=0, return_inverse=True)
    assert len(x) / len(cells) > 50
    error = (sae(x).double() - x.double()).square().sum(1)
    moments = RegionMoments(x.mean(0).expand(len(cells), D), ROOMY)
    moments.add(x, of)
    pca, ranks = moments.solve(), cells.sum(1)
    least = torch.stack([pca.eigenvalues[r, ranks[r] :].sum() * pca.counts[r] for r in range(len(cells))])
    errors = torch.zeros(len(cells), dtype=torch.float64).index_add_(0, of, error)
    assert (least <= errors * (1 + 1e-6)).all()
    bound = bound_on_own_regions(sae, lambda: iter(x.split(999)), x.mean(0), 100, ROOMY)
    variance = float((x.double() - x.double().mean(0)).square().sum())
    assert bound["regions"] == len(cells)
    assert bound["bound"] == pytest.approx(float(least.sum()) / variance, rel=1e-5)
    assert bound["fvu"] == pytest.approx(float(error.sum()) / variance, rel=1e-5)
    assert bound_on_own_regions(sae, lambda: iter(x.split(999)), x.mean(0), len(cells) - 1, ROOMY) is None


@pytest.mark.parametrize("kind", ["topk", "abstopk", "standard", "jumprelu"])
def test_bits_for_the_active_set(store, kind):
    sae, x = random_sae(kind), split(store, "held_out")
    sizes = active_generators(sae, sae.encode(x)).sum(1).tolist()
    expected = (
        math.log2(math.comb(6, 2)) if "topk" in kind else math.log2(7) + np.mean([math.log2(math.comb(6, n)) for n in sizes])
    )
    assert sae_index_bits(sae, x.split(100)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"regions": 0}, "--regions 0 is too small; give at least 1"),
        ({"price": -1.0}, "--lambda -1.0 must be"),
        ({"price": 1.0, "coefficients": 2.0}, "give one of them"),
        ({"regions": 7900}, "at most the 7,488 training rows"),
        ({"regions": 64, "memory": 20_000}, "64 regions of width 10 take 50 KiB, more than the 19.5 KiB that they may; at most 25 --regions fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_sentence(store, settings, sentence):
    with pytest.raises(SplinterpError, match=sentence):
        spectrum(SpectrumOptions(**settings), store, SITE, {})


def test_the_commands(store, trained, tmp_path, capsys):
    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments), "--store", str(store.path)])
        return end.value.code, capsys.readouterr()

    save_sae(trained, tmp_path / "sae")
    code, said = command("geometry", tmp_path / "sae", "--json", "--rows", "200")
    assert not code, said.err
    told = json.loads(said.out)
    assert (told["verified"], told["n_rows"], told["k"]) == (1.0, 200, 2)
    code, said = command("geometry", tmp_path / "sae", "--split", "all", "--rows", "1k")
    assert "1,000 rows (all)" in said.out
    assert "power diagram of order 2, 6 generators" in said.out
    assert "all of " in said.out
    plot = tmp_path / "spectrum.svg"
    arguments = ("spectrum", "--sae", tmp_path / "sae", "--regions", "15", "--epochs", "1")
    code, said = command(*arguments, "--out", plot, "--json")
    assert not code, said.err
    result = json.loads(said.out)
    assert [e["kind"] for e in result["entries"]] == ["k-means", "local PCA", "topk"]
    assert result["bounds"][0]["bound"] <= result["bounds"][0]["fvu"]
    assert plot.read_text() == draw_spectrum(result) + "\n"
    ElementTree.fromstring(plot.read_text())
    code, said = command(*arguments, "--lambda", "1")
    assert "local PCA, λ=1" in said.out
    assert "cannot be below" in said.out
    for failing, sentence in (
        ((*arguments, "--out", plot), "exists already"),
        (("geometry", tmp_path / "none"), "There is no SAE at"),
        (("spectrum", "--sae", tmp_path / "sae", "--site", "other"), "has no site 'other'"),
        (("spectrum", "--regions", "100000"), "--regions 100,000 must be"),
    ):
        code, said = command(*failing)
        assert (code, "Traceback" in said.err) == (1, False)
        assert sentence in said.err
