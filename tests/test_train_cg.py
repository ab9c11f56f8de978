"""The decoder without a Gram matrix: conjugate gradients on kept codes against the direct float64 solution, and runs that use them."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from splinterp import store as stores
from splinterp.errors import Interrupted, SplinterpError
from splinterp.sae import SparseCodes, select_topk
from splinterp.train import Penalties, Statistics, TrainConfig, last_solve, solve_decoder, train
from splinterp.train.conjugate import solve_by_cg
from splinterp.train.kept_codes import CodeCache, KeptCodes
from splinterp.train.last_solve import WithoutGram
from splinterp.train.pam import CG_TOLERANCE, PAM
from splinterp.train.rows import Rows
from splinterp.train.window import Window

N, D_IN, D_SAE, K = 900, 12, 64, 5
CPU = torch.device("cpu")
SITE = "hook"
CONFIG = TrainConfig(
    method="pam", activation="topk", d_sae=D_SAE, rows=6000, batch_size=200, lr=1e-2, k=K, k_start=9, solve_every=4, dead_after=1000,
    memory_rows=1500, memory=90_000,
)  # fmt: skip


def some_rows(n: int = N, seed: int = 0) -> tuple[torch.Tensor, SparseCodes]:
    """Off-centre rows with codes that do not follow from them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D_IN, generator=generator) + 3
    mixed = (x - 3) @ torch.randn(D_IN, D_SAE, generator=generator)
    return x, select_topk(mixed + torch.randn(n, D_SAE, generator=generator), K)


def both(x, codes, *, memory: float = float("inf"), directory=None) -> tuple[Statistics, KeptCodes]:
    dense, kept = Statistics(D_IN, D_SAE), KeptCodes(D_IN, D_SAE, cache=CodeCache(memory, directory))
    for a in range(0, len(x), 128):
        some = SparseCodes(codes.indices[a : a + 128], codes.values[a : a + 128])
        dense.add(x[a : a + 128].double(), SparseCodes(some.indices, some.values.double()))
        kept.add(x[a : a + 128], some)
    return dense, kept


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_conjugate_gradients_agree_with_the_factorised_system(penalties):
    dense, kept = both(*some_rows())
    generator = torch.Generator().manual_seed(1)
    W0, b0 = torch.randn(D_SAE, D_IN, generator=generator), torch.randn(D_IN, generator=generator)
    direct = solve_decoder(dense, penalties, W0, b0)
    ours = solve_by_cg(kept, penalties, W0, b0, tolerance=1e-10, most=1000)
    assert (direct.how, ours.how) == ("cholesky", "cg")
    assert apart(ours.W_dec, direct.W_dec) <= 1e-6
    assert apart(ours.b_dec, direct.b_dec) <= 1e-6
    assert ours.residual is not None
    assert ours.residual <= 1e-10
    again = solve_by_cg(kept, penalties, W0, b0, start=ours.W_dec, tolerance=1e-9, most=1000)
    assert again.iterations == 0  # a warm start at the solution has nothing to do


@pytest.mark.parametrize("memory", [float("inf"), 0, 20_000])
def test_sums_and_products_are_those_of_the_gram_matrix_wherever_the_codes_lie(tmp_path, monkeypatch, memory):
    monkeypatch.setattr("splinterp.train.kept_codes.ROWS_AT_ONCE", 300)
    dense, kept = both(*some_rows(), memory=memory, directory=tmp_path)
    more = both(*some_rows(333, seed=2), memory=memory, directory=tmp_path)
    dense.absorb(more[0])
    kept.absorb(more[1])
    V = torch.randn(D_SAE, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for _ in range(2):  # the file is read from its beginning each time
        assert apart(kept.product(V), dense.product(V)) <= 1e-13
    for name in ("cross", "sum_z", "sum_x", "diagonal"):
        assert apart(getattr(kept, name), getattr(dense, name)) <= 1e-13
    assert kept.rows == dense.rows == N + 333
    W, b = torch.randn(D_SAE, D_IN), torch.randn(D_IN)
    assert kept.loss(W, b) == pytest.approx(dense.loss(W, b), rel=1e-12)
    assert kept.variance() == pytest.approx(dense.variance(), rel=1e-12)
    assert not list(tmp_path.iterdir())  # the temporary file has no name


def test_a_disk_that_refuses_the_codes_is_told(tmp_path):
    x, codes = some_rows(10)
    with pytest.raises(SplinterpError, match=r"did not take them .*raise --memory"):
        KeptCodes(D_IN, D_SAE, cache=CodeCache(0, tmp_path / "nowhere")).add(x, codes)


def test_the_window_is_its_last_rows_in_the_present_gauge():
    window, factors = Window(D_IN, D_SAE, K + 2, 500), torch.rand(D_SAE) + 0.5
    x, codes = some_rows()
    wide = (
        some_rows(77, seed=5)[0],
        SparseCodes(torch.arange(7).expand(77, 7), torch.ones(77, 7)),
    )  # more codes a row, overwritten
    window.add(*wide)
    for a in range(0, N, 130):  # in batches that do not divide the window, and one larger than it
        window.add(x[a : a + 130], SparseCodes(codes.indices[a : a + 130], codes.values[a : a + 130]))
        if a == 650:
            window.rescale_latents(factors)
    scaled = codes.values.clone()
    scaled[:780] *= factors[codes.indices[:780]]
    expected, _ = both(x[-500:], SparseCodes(codes.indices[-500:], scaled[-500:]))
    moments, V = window.moments(), torch.randn(D_SAE, 3, dtype=torch.float64)
    assert apart(moments.product(V), expected.product(V)) <= 1e-6  # the gauge is taken in float32
    assert apart(moments.cross, expected.cross) <= 1e-6
    assert window.rows == moments.rows == 500
    window.add(x, codes)
    expected, _ = both(x[-500:], SparseCodes(codes.indices[-500:], codes.values[-500:]))
    assert apart(window.moments().product(V), expected.product(V)) <= 1e-12


@pytest.mark.parametrize("with_validation", [True, False])
@pytest.mark.parametrize("ridge", [None, 1e-3])
@pytest.mark.parametrize("memory", [10**9, 9000])
def test_the_last_solve_without_a_gram_matrix_is_the_one_with_it(tmp_path, ridge, memory, with_validation):
    sae = PAM(D_IN, replace(CONFIG, memory=None), CPU).weights.sae()
    batches = list((some_rows(4000)[0] - 3).split(256))
    penalties, validation = Penalties(beta=3.0, nu=2.0), [some_rows(700, seed=9)[0] - 3] if with_validation else None
    _, chosen = last_solve(sae, batches, penalties, ridge, validation=validation)
    ours, told = last_solve(sae, batches, penalties, ridge, None, WithoutGram(memory, tmp_path), validation=validation)
    assert (told.how, told.rows) == ("cg", chosen.rows)
    assert told.iterations
    assert told.residual is not None
    assert told.residual <= 1e-7
    assert told.validation_fvu == pytest.approx(chosen.validation_fvu, rel=1e-4)
    dense, _ = last_solve(sae, batches, penalties, told.ridge)  # ridges as good as each other may be told apart by rounding
    assert apart(ours.W_dec, dense.W_dec) <= 1e-6
    assert apart(ours.b_dec, dense.b_dec) <= 1e-6


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with stores.create(tmp_path_factory.mktemp("cg") / "acts.zarr", sites={SITE: D_IN}, dtype="float32", rows=4000) as writer:
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(4000, D_SAE, generator=generator) * (torch.rand(4000, D_SAE, generator=generator) < 0.08)
        writer.add({SITE: codes @ torch.randn(D_SAE, D_IN, generator=generator) + 2}, {})
        return writer.finish()


def test_a_run_within_a_small_budget_learns_what_one_with_the_gram_matrix_does(store, tmp_path):
    told: list[str] = []
    small = train(store, None, CONFIG, tmp_path / "small", tell=told.append).summary
    large = train(store, None, replace(CONFIG, memory=None), tmp_path / "large").summary
    assert any("by conjugate gradients over the last" in sentence for sentence in told)
    written = json.loads((tmp_path / "small" / "summary.json").read_text())["last_solve"]
    assert written["how"] == "cg"
    assert written["iterations"] > 0
    assert written["residual"] <= 1e-7
    assert large["last_solve"]["how"] == "cholesky"
    assert small["fvu"] == pytest.approx(large["fvu"], rel=0.15)
    assert small["fvu"] < small["before_last_solve"]["fvu"]


@pytest.mark.parametrize("method", ["pam", "adam"])
@pytest.mark.parametrize(("memory", "times"), [(90_000, 1), (None, 0)])
def test_a_last_solve_without_a_gram_matrix_is_told_where_it_is_the_only_one(store, tmp_path, method, memory, times):
    told: list[str] = []
    config = replace(CONFIG, method=method, rows=400, solve_every=None, memory_rows=None, memory=memory)
    train(store, None, config, tmp_path / "run", tell=told.append)
    assert sum("solved by conjugate gradients at the end, over all rows." in sentence for sentence in told) == times
    assert not any("over the last" in sentence for sentence in told)


def test_a_solve_within_training_is_at_rest_on_the_windows_rows(store):
    pam = PAM(D_IN, replace(CONFIG, ridge=1e-6), CPU)
    assert isinstance(pam.statistics, Window)
    for x in Rows.of(store, SITE, CPU).training(200, 2400, seed=0):
        pam.step(x, 1e-2)
    moments = pam.statistics.moments()
    W, b = pam.weights.W_dec.detach().double(), pam.weights.b_dec.detach().double()
    gradient = moments.product(W) + torch.outer(moments.sum_z, b) - moments.cross
    assert gradient.norm() < 50 * CG_TOLERANCE * moments.cross.norm()


def test_budgets_that_cannot_be_kept_to_are_refused_before_training(store, tmp_path):
    for changed, sentence in (
        ({"memory": 1000}, "even without the Gram matrix"),
        ({"activation": "relu", "k": None, "k_start": None}, "only codes of topk"),
        ({"memory": 0}, "memory=0 must be at least 1"),
    ):
        with pytest.raises(SplinterpError, match=sentence):
            train(store, None, replace(CONFIG, **changed), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_run_that_would_go_on_with_other_statistics_is_refused(tmp_path, monkeypatch):
    """The machine has less memory now than when it was begun."""
    with stores.create(tmp_path / "acts.zarr", sites={SITE: D_IN}, dtype="float32", rows=6000) as writer:
        writer.add({SITE: torch.randn(6000, D_IN, generator=torch.Generator().manual_seed(0))}, {})
        store = writer.finish()
    config = replace(CONFIG, memory=None)

    def stop(at, done, total, figures):
        if done >= 3000:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(store, None, config, tmp_path / "run", progress=stop)
    monkeypatch.setattr("splinterp.train.budget.total_memory", lambda device: 180_000)
    with pytest.raises(SplinterpError, match=r"another --memory than there is now"):
        train(store, None, config, tmp_path / "run", resume=True)
