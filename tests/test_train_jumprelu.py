"""JumpReLU: its straight-through gradients against SAELens's, its gauge, the number of latents it comes to, and its files."""

from __future__ import annotations

import math

import pytest
import torch
from splinterp import store as stores
from splinterp.errors import SplinterpError
from splinterp.sae import RaggedCodes, l0, load_sae, to_dense
from splinterp.train import TrainConfig, raw_rows, train
from splinterp.train.config import Method
from splinterp.train.encoder import Weights
from splinterp.train.gradient import GradientSteps
from splinterp.train.gram import Statistics
from splinterp.train.jumprelu import _NEAR, _PACE, JumpReLU
from splinterp.train.pam import PAM
from splinterp.train.rows import Rows

CPU = torch.device("cpu")
N, D_IN, D_SAE, K = 64, 12, 128, 5


def config(method: Method = "pam", **options) -> TrainConfig:
    defaults = {"activation": "jumprelu", "d_sae": D_SAE, "rows": 40_000, "batch_size": 250, "lr": 1e-2, "k": K}
    return TrainConfig(method=method, **(defaults | options))


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("decoder", [True, False])
@pytest.mark.parametrize("bandwidth", [0.2, 1.0])
@pytest.mark.parametrize("k", [K, 8])
def test_the_gradients_are_those_of_saelens(float64, monkeypatch, dense, decoder, bandwidth, k):
    """Its activation and its step function under autograd, with our loss written down."""
    theirs = pytest.importorskip("sae_lens.saes.jumprelu_sae")
    monkeypatch.setattr("splinterp.sae.ragged.RAGGED_UP_TO", -1.0 if dense else 1.0)
    c = config(bandwidth=bandwidth, l0=0.7, k=k)
    weights = Weights(D_IN, c, CPU)
    gradient = GradientSteps(weights, c, decoder)
    monkeypatch.setattr(gradient, "update", lambda: None)
    assert weights.jumprelu
    bandwidth *= (D_IN / k) ** 0.5
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D_IN, generator=generator)
    with torch.no_grad():
        weights.jumprelu.slow_log.add_(0.15 * torch.randn(D_SAE, generator=generator))
        weights.b_enc.add_(0.2 * torch.randn(D_SAE, generator=generator))
    figures = gradient.step(x, 1e-3)
    assert isinstance(figures.codes, torch.Tensor if dense else RaggedCodes)

    own = (weights.W_enc_rows, weights.b_enc, weights.W_dec, weights.b_dec, weights.jumprelu.slow_log)
    W_enc_rows, b_enc, W_dec, b_dec, slow_log = (w.detach().clone().requires_grad_() for w in own)
    pre = x @ W_enc_rows.T + b_enc
    z = theirs.JumpReLU.apply(pre, (_PACE * slow_log).exp(), bandwidth, False)
    number = theirs.Step.apply(pre, (_PACE * slow_log).exp(), bandwidth, False).sum(1).mean()
    over = number / k - 1
    loss = (z @ W_dec + b_dec - x).square().mean() + 0.7 * (over**2 if abs(over) < _NEAR else 2 * _NEAR * over.abs() - _NEAR**2)
    loss.backward()
    assert figures.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    assert torch.allclose(to_dense(figures.codes, D_SAE), z)
    assert l0(figures.codes) == pytest.approx(float(number.detach()))
    trained = zip(own, (W_enc_rows, b_enc, W_dec, b_dec, slow_log), strict=True)
    for ours, reference in trained:
        if decoder or (ours is not weights.W_dec and ours is not weights.b_dec):
            assert ours.grad is not None
            assert reference.grad is not None
            assert float(reference.grad.abs().max()) > 0
            assert torch.allclose(ours.grad, reference.grad, rtol=1e-10, atol=1e-15)


def test_a_nan_is_not_hidden():
    kept = JumpReLU(D_IN, config(), CPU)
    pre = torch.zeros(N, D_SAE)
    pre[3, 4] = torch.nan
    assert torch.isnan(to_dense(kept.encode(pre), D_SAE)).any()
    assert torch.isnan(to_dense(kept.forward(pre, K).codes, D_SAE)).any()


@pytest.mark.parametrize(("k", "d_sae", "fire"), [(2, 8192, 4), (32, 1536, 64), (1536, 1536, 0.46 * 1536)])
def test_at_the_beginning_about_twice_k_fire(k, d_sae, fire):
    c = config(d_sae=d_sae, k=k)
    weights = Weights(256, c, CPU)
    codes = weights.encode(torch.randn(200, 256, generator=torch.Generator().manual_seed(0)))
    assert l0(codes) == pytest.approx(fire, rel=0.3)


def rows(n: int, seed: int = 0) -> torch.Tensor:
    dictionary = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.rand(n, D_SAE, generator=generator) * (torch.rand(n, D_SAE, generator=generator) < K / D_SAE)
    return 5 * codes @ dictionary + 20


def test_a_solved_decoder_leaves_the_reconstructions_and_who_fires():
    pam, x = PAM(D_IN, config(memory_rows=2000), CPU), (rows(2000) - 20) / 5
    assert isinstance(pam.statistics, Statistics)
    pam.statistics.add(x, pam.weights.encode(x))
    before = to_dense(pam.weights.encode(x), D_SAE) > 0
    decoder = pam.solve()
    pre = pam.weights.encode(x)
    expected = to_dense(pre, D_SAE).double() @ decoder.W_dec + decoder.b_dec
    pam.take(decoder)
    assert pam.weights.W_dec.norm(dim=1).sub(1).abs().max() < 1e-5
    ours = pam.weights.sae()(x).double()
    assert torch.equal(to_dense(pam.weights.encode(x), D_SAE) > 0, before)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("jumprelu") / "acts.zarr"
    with stores.create(path, sites={"hook": D_IN}, dtype="float32", rows=8000) as writer:
        writer.add({"hook": rows(8000)}, {})
        return writer.finish()


@pytest.mark.parametrize("method", ["pam", "adam"])
@pytest.mark.parametrize(
    "options", [{}, {"encoder_steps": 2, "decoder_steps": False, "mu_enc": 0.1}, {"k_start": 3 * K}, {"k": 15}]
)
def test_runs_come_to_k_and_saelens_reads_them(store, tmp_path, method, options):
    k = options.get("k", K)
    result = train(store, None, config(method, **options), tmp_path / "run")
    assert result.summary["fvu"] < 0.4  # a mean predictor's is 1
    ours = load_sae(tmp_path / "run")
    assert ours.config.architecture == "jumprelu"
    assert ours.threshold is not None
    assert ours.threshold.unique().numel() > D_SAE // 2  # each its own
    x = torch.cat(list(raw_rows(store, "hook", CPU, "held_out")))
    codes = to_dense(ours.encode(x), D_SAE)
    assert l0(codes) == pytest.approx(k, rel=0.1)
    assert l0(codes) == pytest.approx(result.summary["l0"], rel=1e-3)
    sae_lens = pytest.importorskip("sae_lens")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "run"))
    assert theirs.cfg.architecture() == "jumprelu"
    apart = (theirs.encode(x).detach() - codes).abs()
    # both encode in float32: a pre-activation within rounding of the threshold may fall on either side
    assert float(apart[(ours.pre_activations(x) - ours.threshold).abs() > 1e-4].max()) <= 1e-4


def test_the_penalty_brings_any_beginning_to_k(store):
    numbers = {}
    for factor in (0.5, 1.0):
        pam = PAM(D_IN, config(), CPU)
        assert pam.weights.jumprelu
        pam.weights.jumprelu.rescale(torch.full((D_SAE,), factor))
        seen = [l0(pam.step(x, 1e-2).codes) for x in Rows.of(store, "hook", CPU).training(250, 40_000, seed=0)]
        numbers[factor] = (seen[0], sum(seen[-20:]) / 20)
    assert numbers[0.5][0] > 3 * K > numbers[1.0][0]
    assert all(end == pytest.approx(K, rel=0.1) for _, end in numbers.values())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": None}, "k=None must be between 1"),
        ({"bandwidth": 0.0}, "bandwidth=0"),
        ({"bandwidth": math.inf}, "bandwidth=inf"),
        ({"l0": -1.0}, "l0=-1"),
    ],
)
def test_bad_settings_have_their_sentences(options, sentence):
    with pytest.raises(SplinterpError, match=sentence):
        config(**options)
