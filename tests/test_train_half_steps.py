"""The objective at PAM's half-steps, as metrics.jsonl tells it: what it is, that a solve never raises it, and what it costs."""

from __future__ import annotations

import json

import pytest
import torch
from splinterp import store as stores
from splinterp.sae import select_topk, sparse_if_sparse, to_dense
from splinterp.train import Penalties, Statistics, TrainConfig, solve_decoder, train
from splinterp.train import pam as pam_module
from splinterp.train.cost import objective_cost, solve_cost, step_cost
from splinterp.train.decoder import Decoder
from splinterp.train.half_steps import half_steps, measured_every
from splinterp.train.kept_codes import CodeCache, KeptCodes
from splinterp.train.pam import PAM

D_IN, D_SAE, K, N = 16, 48, 4, 8_000
CPU = torch.device("cpu")
KEYS = ("objective_after_encoder", "objective_after_decoder", "objective_proximal", "objective_rows")
PENALTIES = Penalties(alpha=0.7, beta=0.3, mu=2.0, nu=1.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "acts.zarr"
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(N, D_SAE, generator=generator) * (torch.rand(N, D_SAE, generator=generator) < 0.08)
    rows = codes @ torch.randn(D_SAE, D_IN, generator=generator) + 0.05 * torch.randn(N, D_IN, generator=generator)
    with stores.create(path, sites={"hook": D_IN}, dtype="float32", rows=N) as writer:
        writer.add({"hook": 2 + rows}, {})
        return writer.finish()


def config(**options) -> TrainConfig:
    defaults = {"method": "pam", "activation": "topk", "k": K, "d_sae": D_SAE, "rows": 12_800, "batch_size": 128, "lr": 1e-2}
    return TrainConfig(**(defaults | options))


def lines_of(store, out, c: TrainConfig) -> list[dict]:
    train(store, None, c, out)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def some_problem(activation: str):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, D_IN, generator=generator, dtype=torch.float64)
    pre = x @ torch.randn(D_IN, D_SAE, generator=generator, dtype=torch.float64)
    codes = select_topk(pre, K) if activation == "topk" else sparse_if_sparse((pre - 3).relu())
    W0 = torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64)
    return x, codes, W0, torch.randn(D_IN, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("activation", ["topk", "relu"])
@pytest.mark.parametrize("l1", [0.0, 0.4])
@pytest.mark.parametrize("with_gram", [True, False])
def test_it_is_the_objective_of_the_rows_themselves(activation, l1, with_gram):
    x, codes, W0, b0 = some_problem(activation)
    if not with_gram and activation == "relu":
        pytest.skip("only TopK's codes are kept")
    statistics = Statistics(D_IN, D_SAE)
    statistics.add(x, codes)
    moments = statistics
    if not with_gram:
        moments = KeptCodes(D_IN, D_SAE, CPU, CodeCache())
        moments.add(x, codes)
    solved = solve_decoder(statistics, PENALTIES, W0, b0)
    told = half_steps(moments, PENALTIES, W0, b0, solved, l1)
    z = to_dense(codes, D_SAE)

    def direct(W, b):
        error = (z @ W + b - x).square().sum() + l1 * z.sum() + 0.7 * W.square().sum() + 0.3 * b.square().sum()
        return float(error) / x.numel()

    drawn = 2.0 * (solved.W_dec - W0).square().sum() + 1.5 * (solved.b_dec - b0).square().sum()
    expected = (direct(W0, b0), direct(solved.W_dec, solved.b_dec), float(drawn) / x.numel(), 300.0)
    assert tuple(told[key] for key in KEYS) == pytest.approx(expected, rel=1e-9)


OPTIONS = {
    "re-anchored": {"solve_every": 3},
    "as published": {"decoder_steps": False, "solve_every": 1, "encoder_steps": 2, "mu_enc": 0.1, "mu_dec": 5.0, "nu_dec": 1.0},
    "relu": {"activation": "relu", "k": None, "l1": 0.5, "decoder_steps": False, "alpha": 2.0, "beta": 1.0},
    "without a Gram matrix": {"d_sae": 96, "solve_every": 2, "memory": 200_000, "memory_rows": 512},
    "pursuit": {"method": "pursuit", "last_solve": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_solve_never_raises_what_it_minimises(store, tmp_path, name):
    lines = lines_of(store, tmp_path / "run", config(**OPTIONS[name]))
    measured = [line for line in lines if KEYS[0] in line]
    assert len(measured) > (name != "without a Gram matrix")
    for line in measured:
        assert line["objective_after_decoder"] + line["objective_proximal"] <= line["objective_after_encoder"] * (1 + 1e-9)
        assert line["objective_proximal"] > 0
        assert {"loss", "fvu", "l0", "lr"} < line.keys()  # a line like any other
    assert 0.01 < measured[-1]["objective_after_decoder"] < measured[0]["objective_after_encoder"]


@pytest.mark.parametrize("wrong", [lambda W: -W, lambda W: 0.5 * W, lambda W: W.roll(1, 0)], ids=["sign", "size", "place"])
def test_that_would_be_seen(store, tmp_path, monkeypatch, wrong):
    real = pam_module.solve_decoder

    def mistaken(*given, **named):
        solved = real(*given, **named)
        return Decoder(wrong(solved.W_dec), solved.b_dec, solved.how, solved.jitter)

    monkeypatch.setattr(pam_module, "solve_decoder", mistaken)
    lines = lines_of(store, tmp_path / "run", config(decoder_steps=False, solve_every=3, last_solve=False))
    assert any(line.get("objective_after_decoder", 0) > line.get("objective_after_encoder", 1) for line in lines)


@pytest.mark.parametrize("options", [{}, {"method": "adam"}])
def test_without_solves_on_the_way_there_is_no_such_thing(store, tmp_path, monkeypatch, options):
    monkeypatch.setattr(pam_module, "half_steps", lambda *given: pytest.fail("nothing is to be measured"))
    assert not any(key in line for line in lines_of(store, tmp_path / "run", config(**options)) for key in KEYS)


def test_to_measure_changes_nothing(store):
    """And every solve of a long run between two lines of the log has a line of its own."""
    runs = []
    for every in (1, 10**9):
        pam = PAM(D_IN, config(solve_every=2), CPU)
        pam.measured_every = every
        generator = torch.Generator().manual_seed(5)
        told = [pam.step(torch.randn(128, D_IN, generator=generator), 1e-2).half_steps for _ in range(10)]
        assert [one is not None for one in told] == [every == 1 and step % 2 == 1 for step in range(10)]
        runs.append(pam.state())
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))


def test_measured_solves_between_two_lines_of_the_log_have_lines_of_their_own(store, tmp_path):
    c = config(rows=500 * 16, batch_size=16, solve_every=45, last_solve=False)
    lines = lines_of(store, tmp_path / "run", c)
    steps = [line["step"] for line in lines]
    measured = [line["step"] for line in lines if KEYS[0] in line]
    assert steps == sorted({*range(2, 501, 2), *measured})
    assert {step % 45 for step in measured} == {0}
    assert any(step % 2 for step in measured)


@pytest.mark.parametrize(("d_in", "d_sae"), [(24, 96), (192, 1536), (768, 8192), (2304, 16384)])
@pytest.mark.parametrize("solve_every", [1, 50, 10_000])
def test_measuring_takes_at_most_its_share(d_in, d_sae, solve_every):
    c = config(d_sae=d_sae, k=8, batch_size=1024, rows=1024 * 100_000)
    every = measured_every(c, d_in, solve_every, None)
    between = solve_every * step_cost(1024, d_in, d_sae, 8) + solve_cost(d_in, d_sae)
    solves = 100_000 // solve_every
    assert every == solves or objective_cost(d_in, d_sae) <= 0.01 * every * between
    assert solves / every <= 200
    assert every == 1 or objective_cost(d_in, d_sae) > 0.01 * (every - 1) * between or solves / (every - 1) > 200
