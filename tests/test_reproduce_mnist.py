"""`reproduce mnist` and `reproduce llm`: the presets do what they say, the claims are decided by rule, what is left says all of it."""

from __future__ import annotations

import gzip
import json
import math
import re
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from splinterp import store as stores
from splinterp.cli import main
from splinterp.errors import SplinterpError
from splinterp.papers.pam_sgd import claims, recipe, strong, work
from splinterp.papers.pam_sgd import data as rows_of
from splinterp.papers.pam_sgd import page as html
from splinterp.papers.pam_sgd.data import Split, mnist
from splinterp.papers.pam_sgd.experiments import EVERY_SEED, LLM, MNIST, QUICK_LLM, QUICK_MNIST, Extent, points, size_epochs
from splinterp.papers.pam_sgd.page import claims_table
from splinterp.papers.pam_sgd.published import Net, fit, mean_loss, trained
from splinterp.papers.pam_sgd.recipe import Recipe, run_llm, run_mnist
from splinterp.papers.pam_sgd.settings import (
    PRESETS,
    Effort,
    Site,
    mnist_site,
    published,
    with_mu_nu,
    with_sgds_l1,
    with_weight_decay,
)
from splinterp.sae import to_dense
from splinterp.train import TrainConfig
from splinterp.train.rows import Rows
from splinterp.train.run import train

SITE, LLM_SITE = Site("mnist", 12, 20, 4, 16, 3e-3), Site("llm", 12, 20, 4, 16, 1e-3)
TINY = Extent(
    0.25, 2, 2, 2, (0.25, 1.0), (1, 5), (0.0, 1e-2), (0.0, 1e-3), (15, 320, 1280), Effort(1, 4, (0.5, 1.0), 0), "Nearly all.", every_seed=False
)  # fmt: skip
NOTHING = lambda: None  # noqa: E731


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(0)
    return 0.5 + torch.randn(90, 5, generator=generator) @ torch.randn(5, 12, generator=generator)


def write_idx(path, images, compressed=False):
    header = b"\0\0\x08" + bytes([images.ndim]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + images.tobytes()) if compressed else header + images.tobytes())


def images(n, side=28, seed=0):
    generator = np.random.default_rng(seed)
    shapes = generator.integers(0, 256, (6, side * side))
    return (generator.random((n, 6)) @ shapes / 6).astype(np.uint8).reshape(n, side, side)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist")
    write_idx(folder / "t10k-images-idx3-ubyte.gz", images(100), compressed=True)
    write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(100, np.uint8))
    return folder


@pytest.fixture(scope="module")
def reproduced(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return run_mnist(Recipe(seeds=(0, 1), workers=2, extent=TINY), folder, out, "a command & more"), out


def split(x):
    return Split(x, x[:15] + 0.01, x[15:30])


def of(preset, arm, activation="topk", site=SITE, epochs=2):
    return published(site, preset, activation, arm, 90, epochs)


# What the presets are.


@pytest.mark.parametrize(("site", "ridge"), [(SITE, 1e-6), (LLM_SITE, 1e-10)])
def test_the_codes_solve_is_uncentred_and_its_bias_the_mean_residual(x, site, ridge):
    net = Net(12, of("paper-code", "pam", site=site), seed=3)
    net.solve(x)
    X, W = x.double().numpy(), net.W_enc.detach().double().numpy()
    pre = X @ W
    kept = np.argsort(-np.abs(pre), axis=1)[:, :4]
    Z = np.zeros_like(pre)
    np.put_along_axis(Z, kept, np.take_along_axis(pre, kept, 1), 1)
    best = np.linalg.solve(Z.T @ Z + ridge * np.eye(20), Z.T @ X)
    assert np.allclose(net.W_dec, best, rtol=1e-4, atol=1e-4)
    assert np.allclose(net.b_dec.detach(), (X - Z @ best).mean(0), rtol=1e-4, atol=1e-4)


def test_the_papers_solve_is_theorem_c1(x):
    setting = replace(of("paper", "pam"), alpha=0.3, beta=0.7, mu_dec=2.0, nu_dec=5.0)
    net = Net(12, setting, seed=3)
    net.b_dec += 0.25
    W0, b0 = net.W_dec.double().numpy(), net.b_dec.double().numpy()
    net.solve(x)
    Z, X, eye = net.codes(x).detach().double().numpy(), x.double().numpy(), np.eye(20)
    # The penalties as further rows of a least-squares problem in (W, b).
    nothing = np.zeros((20, 1))
    design = np.block(
        [
            [Z, np.ones((90, 1))], [0.3**0.5 * eye, nothing], [2**0.5 * eye, nothing],
            [np.zeros((2, 20)), np.array([[0.7**0.5], [5**0.5]])],
        ]
    )  # fmt: skip
    goal = np.concatenate([X, np.zeros((20, 12)), 2**0.5 * W0, np.zeros((1, 12)), 5**0.5 * b0[None]])
    best = np.linalg.lstsq(design, goal, rcond=None)[0]
    assert np.allclose(net.W_dec, best[:-1], atol=1e-5)
    assert np.allclose(net.b_dec, best[-1], atol=1e-5)


@pytest.mark.parametrize("preset", ["paper", "paper-code"])
@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_codes_in_training_are_the_saes(x, preset, activation):
    net = Net(12, of(preset, "pam", activation), seed=1)
    codes = net.codes(x).detach()
    assert torch.allclose(codes, to_dense(net.sae().encode(x), 20), atol=1e-6)
    assert bool((codes < 0).any()) == (preset == "paper-code" and activation == "topk")
    if activation == "topk":
        assert int((codes != 0).sum(1).max()) == 4


def test_only_the_codes_sgd_is_tied_and_arms_begin_with_one_encoder(x):
    for preset in ("paper", "paper-code"):
        sgd, pam = (fit(of(preset, arm), split(x), 0) for arm in ("sgd", "pam"))
        assert torch.equal(sgd.W_dec, sgd.W_enc.T) == (preset == "paper-code")
        assert not torch.equal(pam.W_dec, pam.W_enc.T)
        first, second = (Net(12, of(preset, arm), seed=5).W_enc for arm in ("sgd", "pam"))
        assert torch.equal(first, second)


@pytest.mark.parametrize("site", [SITE, LLM_SITE])
def test_the_codes_llm_decoder_is_an_epoch_old_and_the_others_fresh(x, site):
    for preset in ("paper", "paper-code"):
        # Pulls towards the last decoder would go on moving it.
        setting = replace(of(preset, "pam", site=site, epochs=1), mu_dec=0.0, nu_dec=0.0)
        sae, net = fit(setting, split(x), 0), Net(12, setting, 0)
        stale = site is LLM_SITE and preset == "paper-code"
        if not stale:
            net.W_enc, net.b_enc = sae.W_enc, sae.b_enc
        net.solve(x)
        assert torch.allclose(sae.W_dec, net.W_dec, rtol=1e-3, atol=1e-4)
        assert torch.equal(sae.W_enc, net.W_enc) == (not stale)


def test_the_pull_holds_the_encoder_back(x):
    start = Net(12, of("paper", "pam"), 0).W_enc.detach()
    moved = [
        float((fit(with_mu_nu(SITE, "paper", of("paper", "pam"), value), split(x), 0).W_enc - start).norm())
        for value in (0.0, 0.1, 10.0)
    ]
    assert moved[0] > moved[1] > moved[2] > 0


def test_an_l2_penalty_is_part_of_the_codes_reported_loss(x):
    plain, penalised = (with_mu_nu(SITE, "paper-code", of("paper-code", "sgd"), value) for value in (0.0, 1e-2))
    sae = fit(plain, split(x), 0)
    size = float(sae.W_enc.square().sum() + sae.b_enc.square().sum())
    assert mean_loss(penalised, sae, x) - mean_loss(plain, sae, x) == pytest.approx(1e-2 * size, rel=1e-4)
    each = [float((sae(some) - some).square().mean()) for some in x.split(16)]  # the last batch is smaller, and counts as much
    assert mean_loss(plain, sae, x) == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert mean_loss(of("paper", "sgd"), sae, x) == pytest.approx(float((sae(x) - x).square().mean()), rel=1e-5)


def test_the_settings_are_the_papers():
    site = mnist_site(784)
    for preset in ("paper", "paper-code"):
        sgd = published(site, preset, "topk", "sgd", 600, 10)
        assert (sgd.d_sae, sgd.k, sgd.batch_size, sgd.lr, sgd.l1) == (256, 15, 128, 3e-3, 0.0)
    assert [size_epochs(site, share, MNIST) for share in MNIST.shares] == [10, 10, 10, 10, 10, 20]
    assert [len(values) for values in (MNIST.updates, MNIST.decays, LLM.shares, LLM.ks)] == [4, 5, 11, 8]
    gemma = Site("llm", 2304, 4096, 320, 256, 1e-3)
    sgd, pam = (published(gemma, "paper-code", "relu", arm, 9000, 50) for arm in ("sgd", "pam"))
    assert (sgd.tied, sgd.clip, pam.clip, pam.solve_first, pam.centred, pam.alpha) == (True, None, 1.0, True, False, 1e-10)
    assert (sgd.pull, pam.pull, pam.l1, with_sgds_l1(gemma, "paper-code", sgd).l1) == (1e-3, 1e-3, 1e-5, 1e-2)
    assert with_sgds_l1(gemma, "paper", published(gemma, "paper", "relu", "sgd", 9000, 50)).l1 == 1e-5
    decayed = with_weight_decay(gemma, "paper-code", pam, 1e-3)
    assert (decayed.weight_decay, decayed.decay_biases, decayed.alpha) == (1e-3, True, 1e-10)
    narrow = replace(gemma, d_in=192)  # a mean over fewer entries weighs each more, and penalties go with it
    assert published(narrow, "paper", "relu", "pam", 9000, 50).l1 == pytest.approx(1.2e-4)
    for extent, of_extent in ((QUICK_MNIST, site), (QUICK_LLM, gemma)):
        assert {p.preset for p in points(of_extent, 9000, extent, PRESETS)} == set(PRESETS)


# The strong preset is the product's.


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(2600, 48, generator=generator) * (torch.rand(2600, 48, generator=generator) < 0.06)
    rows = codes @ torch.randn(48, 36, generator=generator) + 0.3 * torch.randn(2600, 36, generator=generator)
    with stores.create(tmp_path_factory.mktemp("acts") / "acts.zarr", sites={"hook": 36}, dtype="float32", rows=2600) as writer:
        writer.add({"hook": 5 + 3 * rows}, {})
        return writer.finish()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "pam", "activation": "topk", "k": 8, "different_rows": 100},  # with jitter
        {"method": "pam", "activation": "relu", "encoder_steps": 2, "mu_enc": 0.1, "alpha": 3.0},
        {"method": "adam", "activation": "topk", "k": 8},
    ],
)
def test_strong_trains_as_the_product_does(store, tmp_path, settings):
    config = TrainConfig(d_sae=48, rows=2000, batch_size=64, lr=5e-3, **settings)
    rows = Rows.of(store, "hook", torch.device("cpu"))
    sae = strong.steps(config, rows.training(64, config.rows, config.seed))
    every, validation = (torch.cat(list(rows.once(split, 4096))) for split in ("train", "validation"))
    solved = strong.solve(sae, config, every, validation).fold_normalisation(rows.mean, rows.scale)
    product = train(store, "hook", config, tmp_path / "run").sae
    assert torch.allclose(product.W_enc, solved.W_enc, atol=1e-6)
    assert torch.allclose(product.W_dec, solved.W_dec, rtol=1e-4, atol=1e-4)


def test_with_relu_the_products_pam_is_adam_with_the_last_solve(x):
    saes = []
    for method in ("pam", "adam"):
        config = TrainConfig(method=method, activation="relu", d_sae=20, rows=400, batch_size=16, lr=1e-2, l1=0.01)
        saes.append(strong.trained(config, Split(x[:60], x[60:75], x[75:]), NOTHING)[0])
    assert torch.equal(saes[0].W_enc, saes[1].W_enc)
    assert torch.equal(saes[0].W_dec, saes[1].W_dec)


def test_batches_are_whole_epochs_in_orders_of_their_own(x):
    config = TrainConfig(method="adam", activation="relu", d_sae=20, rows=200, batch_size=32, lr=1e-2)
    found = list(strong.batches(x, config))
    assert [len(batch) for batch in found] == [32] * 6 + [8]
    seen = torch.cat(found)
    for epoch in (seen[:90], seen[90:180]):
        assert torch.equal(epoch[epoch[:, 0].argsort()], x[x[:, 0].argsort()])
    assert not torch.equal(seen[:90], seen[90:180])


# The rules.


@pytest.mark.parametrize(
    ("holds", "baseline", "verdict"),
    [
        ({"paper": True, "paper-code": True, "strong": True}, True, "holds"),
        ({"strong": True}, True, "holds"),
        ({"paper": False, "paper-code": True, "strong": False}, True, "holds only against a weak baseline"),
        ({"paper": False, "paper-code": True, "strong": False}, False, "holds only in the paper's setting"),
        ({"paper": False, "paper-code": False, "strong": False}, True, "does not hold"),
        ({"paper": True, "paper-code": True}, True, "undecided: strong was not run"),
    ],
)
def test_verdicts(holds, baseline, verdict):
    assert claims.verdict(holds, baseline) == verdict


@pytest.mark.parametrize(
    ("a", "b", "clear"),
    [
        ([0.8, 0.81], [1.0, 1.0], -1),
        ([1.3, 1.28], [1.0, 1.0], 1),
        ([0.999, 0.998], [1.0, 1.0], 0),  # less than a hundredth
        ([0.7, 1.1], [1.0, 1.0], 0),  # within the scatter
        ([0.7, 1.4], [0.9, 1.8], -1),  # the seeds scatter, and their ratios do not
        ([0.9], [1.0], -1),
        ([None, None], [1.0, 1.0], 1),
        ([None, 1.5], [1.0, 1.0], 1),
        ([None, 0.5], [1.0, 1.0], 0),
        ([None, 0.5], [1.0, None], 0),
        ([1.0, 1.0], [None, None], -1),
        ([None], [None], 0),
    ],
)
def test_what_is_clear(a, b, clear):
    assert claims.clearly(claims.log_ratios(a, b)) == clear


def sized(sgd, pam, xs=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0), base="sgd"):
    """Points of one seed, with these losses."""
    arm = lambda loss: {"loss": [loss], "fvu": [loss]}  # noqa: E731
    return [{"x": x, "label": f"{x:.0%}", "arms": {base: arm(a), "pam": arm(b)}} for x, a, b in zip(xs, sgd, pam, strict=True)]


@pytest.mark.parametrize(
    ("sgd", "pam", "holds", "mostly"),
    [
        ([4, 3, 2, 1, 1, 1], [2, 2, 1, 0.8, 1, 1], True, True),
        ([4, 3, 2, 1, 1, 1], [4, 2, 1, 0.8, 0.1, 0.1], True, False),
        ([4, 3, 2, 1, 1, 1], [2, 2, 2, 1, 1, 1], False, True),  # half of the sizes are not more than half
        ([4, 3, 2, 1, 1, 1], [2, 2, 1, 1.2, 1, 1], False, True),  # behind at one
    ],
)
def test_beating_sgd(sgd, pam, holds, mostly):
    of_sizes = {"sizes": sized(sgd, pam)}
    assert claims.beats("paper", of_sizes).holds == holds
    assert claims.mostly_there("paper", of_sizes).holds == mostly


def test_the_peak_and_the_unstable_k():
    xs = (0.25, 0.4, 0.45, 0.5, 0.65, 1.0)
    peaked, flat = ({"sizes": sized([1.0] * 6, pam, xs)} for pam in ([1, 2, 9, 3, 1, 0.5], [1, 1, 1.1, 1, 1, 1]))
    assert claims.peak("paper", peaked).holds
    assert not claims.peak("paper", flat).holds
    assert not claims.peak("paper", {"sizes": sized([1.0] * 6, [9, 2, 3, 2, 1, 1], xs)}).holds  # elsewhere
    k = lambda x, fvu, curve: {"x": x, "label": "8", "arms": {"pam": {"fvu": [fvu], "curves": [curve]}}}  # noqa: E731
    calm, wild = [3, 2, 1, 1, 1, 1], [1, 1, 1, 1, 9, 1]
    for points_of, holds in (
        ([k(0.01, 0.5, wild), k(0.05, 2.0, calm), k(0.2, 0.5, calm)], True),
        ([k(0.01, 0.5, wild), k(0.05, 0.6, calm), k(0.2, 0.5, calm)], False),
        ([k(0.01, None, wild), k(0.05, 0.6, wild), k(0.2, 0.5, wild)], False),  # nor is it stable above
    ):
        assert claims.unstable("paper", {"k": points_of}).holds == holds


@pytest.mark.parametrize(
    ("losses", "holds"), [([1.0, 1.0, 1.1, 1.2], True), ([1.0, 1.0, 1.0, 1.0], False), ([1.0, 1.0, 0.9, 0.8], False)]
)
def test_the_best_m(losses, holds):
    assert claims.few_updates("paper", {"updates": sized([1] * 4, losses, (1, 3, 5, 10))}).holds == holds


@pytest.mark.parametrize(("losses", "holds"), [([1.0, 1.02, 0.97, 3.0], True), ([1.0, 1.1, 1.0, 1.0], False)])
def test_moderate_penalties(losses, holds):
    assert claims.penalties("paper", {"mu-nu": sized([1] * 4, losses, (0.0, 1e-4, 1e-3, 1e-2))}).holds == holds


# The recipes.


def test_what_it_leaves_says_all_of_it(reproduced):
    result, out = reproduced
    assert json.loads((out / "mnist.json").read_text()) == result
    assert set(result) == {
        "recipe", "command", "quick", "left_out", "presets", "seeds", "data", "settings", "effort", "claims", "results", "pictures"
    }  # fmt: skip
    for preset in PRESETS:
        for activation in ("topk", "relu"):
            found = result["results"][preset][activation]
            assert set(found) == {"sizes", "updates", "weight-decay", "mu-nu"} | ({"base"} if preset != "strong" else set())
            assert [(p["x"], p["rows"]) for p in found["sizes"]] == [(0.25, 20), (1.0, 80)]
            for experiment, points_of in found.items():
                seeds = 2 if experiment in EVERY_SEED else 1
                assert all(len(arm["loss"]) == seeds for p in points_of for arm in p["arms"].values())
            arms = found["sizes"][0]["arms"]
            assert set(arms) == ({"sgd", "adam", "adam+solve", "pam", "alternation"} if preset == "strong" else {"sgd", "pam"})
            for arm in arms.values():
                assert all(len(arm[figure]) == 2 and None not in arm[figure] for figure in ("loss", "mse", "fvu", "l0", "dead"))
                assert arm["mean"] == pytest.approx(sum(arm["loss"]) / 2)
                assert ("lr" in arm) == (preset == "strong")
    relu = result["results"]["strong"]["relu"]["sizes"]
    assert all(p["arms"]["pam"]["loss"] == p["arms"]["adam+solve"]["loss"] for p in relu)
    assert {c["verdict"] for c in result["claims"]} <= {claims.HOLDS, claims.WEAK, claims.ALONE, claims.NOT}
    assert len(claims_table(result).splitlines()) == 2 + len(result["claims"]) == 12
    assert result["data"]["split"].startswith("only MNIST's test (t10k) file was given: its 100 images")


def test_the_page_needs_nothing_else(reproduced):
    result, out = reproduced
    page = (out / "mnist.html").read_text()
    assert not re.search(r"https?:|<script|<link|<iframe|@import|url\(|srcset", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert len(sources) == 2 * (5 + 3)  # of each activation: curves, four sweeps, and pictures of three presets
    assert "a command &amp; more" in page
    assert "its 100 images are split 8 : 1 : 1" in page
    assert "Nearly all." in page
    for claim in result["claims"]:
        assert claim["verdict"].replace("'", "&#x27;") in page


def test_only_what_is_missing_is_trained_and_it_comes_out_the_same(folder, reproduced, tmp_path, monkeypatch):
    result, out = reproduced
    lines = (out / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_text("".join(lines[:4] + lines[6:]) + lines[5][:30])  # killed while it was writing
    done = []
    monkeypatch.setattr(html, "page", lambda result: "")
    for module, name in ((work, "trained"), (strong, "trained")):
        of_module = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, of_module=of_module: done.append(1) or of_module(*given))
    again = run_mnist(Recipe(seeds=(0, 1), workers=1, extent=TINY), folder, tmp_path, "a command & more")
    assert again == result
    assert len(done) == 2
    assert sorted((tmp_path / "cells.jsonl").read_text().splitlines()) == sorted(line.strip() for line in lines)


def test_an_interrupt_keeps_what_is_done(folder, reproduced, tmp_path, monkeypatch):
    result, _ = reproduced
    begun = Event()

    def once(*given):
        if begun.is_set():
            raise KeyboardInterrupt
        begun.set()
        return trained(*given)

    monkeypatch.setattr(work, "trained", once)
    monkeypatch.setattr(html, "page", lambda result: "")
    only = Recipe(("paper",), (0, 1), workers=1, extent=TINY)
    with pytest.raises(KeyboardInterrupt):
        run_mnist(only, folder, tmp_path, "")
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 1
    monkeypatch.setattr(work, "trained", trained)
    assert run_mnist(only, folder, tmp_path, "")["results"]["paper"] == result["results"]["paper"]


def test_llm(store, tmp_path):
    less = replace(TINY, share=1.0, updates=(1,), decays=(1e-2,), mu_nus=(1e-3,))
    result = run_llm(Recipe(seeds=(0,), workers=1, extent=less), store, "hook", None, tmp_path, "")
    assert (result["settings"]["d_sae"], result["settings"]["k"], result["data"]["rows"]) == (64, 5, 141)
    code = result["results"]["paper-code"]
    assert [p["label"] for p in code["topk"]["k"]] == ["1", "5", "20"]
    assert set(code["relu"]["sparsity"][0]["arms"]) == {"sgd", "pam"}
    assert "sparsity" not in code["topk"]
    assert len(result["claims"]) == 13
    assert not re.search(r"https?:|<script", (tmp_path / "llm.html").read_text())
    with pytest.raises(SplinterpError, match=r"36 dimensions, which makes 4,096 latents|need 9,000"):
        run_llm(Recipe(), store, "hook", 4096, tmp_path, "")


# The images.


def test_both_files_are_used_as_in_the_paper(tmp_path):
    write_idx(tmp_path / "MNIST/raw/train-images-idx3-ubyte", images(50))
    write_idx(tmp_path / "MNIST/raw/t10k-images.idx3-ubyte.gz", images(20, seed=1), compressed=True)
    data = mnist(tmp_path)
    assert [len(part) for part in data.whole] == [50, 4, 16]
    first = (torch.from_numpy(images(20, seed=1).reshape(20, -1).astype(np.float32)) / 255 - 0.1307) / 0.3081
    assert torch.allclose(torch.cat(data.whole[1:]), first)
    less, more = (data.split(3, n).train for n in (10, 30))
    assert torch.equal(less, more[:10])
    assert not torch.equal(less, data.split(4, 10).train)
    (tmp_path / "MNIST/raw/t10k-images.idx3-ubyte.gz").unlink()
    assert [len(part) for part in mnist(tmp_path).whole] == [40, 5, 5]


def test_data_that_cannot_be_is_a_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_idx(tmp_path / "small/t10k-images-idx3-ubyte", images(50, side=8))
    write_idx(tmp_path / "few/t10k-images-idx3-ubyte", images(2))
    write_idx(tmp_path / "cut/t10k-images-idx3-ubyte", images(50))
    whole = (tmp_path / "cut/t10k-images-idx3-ubyte").read_bytes()
    (tmp_path / "cut/t10k-images-idx3-ubyte").write_bytes(whole[:-5])
    for name, sentence in (
        ("nowhere", "There is no folder"), ("empty", "holds neither train-images-idx3-ubyte nor"), ("small", "not images of 28"),
        ("few", "too few images"), ("cut", "damaged"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            main(["reproduce", "mnist", "--quick", "--data", str(tmp_path / name), "--out", str(tmp_path / "out")])
        told = capsys.readouterr()
        assert end.value.code == 1
        assert sentence in " ".join(told.err.split())
        assert "Traceback" not in told.err
        assert not (tmp_path / "out").exists()


def test_without_a_network_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_of, "hub_commit", lambda *given: None)
    with pytest.raises(
        SplinterpError, match=r"huggingface.co .*, which cannot be reached; connect to the network, or name a folder"
    ):
        run_mnist(Recipe(), None, tmp_path / "out", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "weak"], "no preset 'weak'"), (["--seeds", "1,1"], "--seeds must be different"), (["--workers", "0"], "--workers 0")
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_a_sentence(folder, tmp_path, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "mnist", "--data", str(folder), "--out", str(tmp_path / "out"), *arguments])
    assert end.value.code == 1
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_the_command(folder, reproduced, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(recipe.experiments, "QUICK_MNIST", TINY)
    with pytest.raises(SystemExit) as end:
        main(
            [
                "reproduce",
                "mnist",
                "--quick",
                "--data",
                str(folder),
                "--preset",
                "paper",
                "--seeds",
                "0",
                "--out",
                str(tmp_path),
                "--json",
            ]
        )
    told = capsys.readouterr()
    assert not end.value.code
    found = json.loads(told.out)
    assert found["quick"]
    assert math.isclose(found["results"]["paper"]["topk"]["sizes"][0]["arms"]["sgd"]["loss"][0], reproduced[0]["results"]["paper"]["topk"]["sizes"][0]["arms"]["sgd"]["loss"][0])  # fmt: skip
