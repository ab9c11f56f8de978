"""Resampling of dead latents: which begin anew, where, with what memory, and what comes of it."""

from __future__ import annotations

import pytest
import torch
from splinterp.sae import SparseCodes, to_dense
from splinterp.train import Statistics, TrainConfig
from splinterp.train.adam import AdamBaseline
from splinterp.train.config import Activation, Method
from splinterp.train.pam import PAM
from splinterp.train.resample import Resampling
from splinterp.train.window import Window

CPU = torch.device("cpu")
D_IN, D_SAE, K, N = 12, 96, 4, 200
DEAD = torch.arange(30)


def config(activation: Activation = "topk", method: Method = "pam", **options) -> TrainConfig:
    sparse = {"l1": 0.1} if activation == "relu" else {"k": K}
    defaults: dict[str, object] = {
        "d_sae": D_SAE,
        "rows": 20_000,
        "batch_size": N,
        "lr": 5e-3,
        "dead_after": 1000,
        "revive": "resample",
    }
    return TrainConfig(method=method, activation=activation, **(defaults | sparse | options))  # type: ignore[arg-type]


def batches(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    dictionary = torch.randn(D_SAE, D_IN, generator=generator)
    codes = torch.rand(n * N, D_SAE, generator=generator) * (torch.rand(n * N, D_SAE, generator=generator) < K / D_SAE)
    x = codes @ dictionary
    return list(((x - x.mean(0)) / x.std()).split(N))


def begun(c: TrainConfig) -> PAM | AdamBaseline:
    """A run whose latents DEAD cannot fire."""
    run = (PAM if c.method == "pam" else AdamBaseline)(D_IN, c, CPU)
    with torch.no_grad():
        run.weights.b_enc[DEAD] = -100.0
    return run


@pytest.mark.parametrize("method", ["pam", "adam"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu", "jumprelu"])
def test_dead_latents_come_back_with_resampling_alone(activation, method):
    left = {}
    for revive in ("resample", "none"):
        run = begun(config(activation, method, revive=revive))
        for x in batches(60):
            run.step(x, 5e-3)
        left[revive] = int(torch.isin(DEAD, run.gradient.dead.indices()).sum())
    assert left["none"] == len(DEAD)
    assert left["resample"] <= 5


def test_they_begin_towards_what_is_left_of_rows_without_memory():
    run, some = begun(config(solve_every=10**9)), batches(7)
    for x in some[:4]:
        assert run.step(x, 5e-3).revived is None  # not dead for long enough
    with torch.no_grad():  # what a step of Adam leaves of a latent's moments must show
        for p in (p for group in run.gradient.optimizer.param_groups for p in group["params"]):
            run.gradient.optimizer.state[p]["exp_avg"].fill_(0.5)
    figures = run.step(some[4], 5e-3)
    assert figures.revived is not None
    assert torch.equal(figures.revived, DEAD)
    w = run.weights
    left = torch.nn.functional.normalize(-figures.error, dim=1)
    nearest = (w.W_dec[DEAD] @ left.T).max(1)
    assert torch.allclose(nearest.values, torch.ones(len(DEAD)), atol=1e-5)
    assert nearest.indices.unique().numel() == len(DEAD)  # each a row of its own
    loss = figures.error.square().sum(1)
    assert loss[nearest.indices].mean() > loss.mean()
    assert torch.allclose(torch.nn.functional.normalize(w.W_enc_rows[DEAD], dim=1), w.W_dec[DEAD], atol=1e-5)
    assert not w.b_enc[DEAD].any()
    for p in (w.W_enc_rows, w.b_enc, w.W_dec):
        moments = run.gradient.optimizer.state[p]
        assert not moments["exp_avg"][DEAD].any()
        assert not moments["exp_avg_sq"][DEAD].any()
        assert moments["exp_avg"][len(DEAD) :].all()
    assert not run.gradient.dead.rows_since[DEAD].any()
    assert run.step(some[5], 5e-3).revived is None


def test_none_begins_anew_late_in_a_run_or_by_a_loss_that_is_no_number():
    for rate, spoilt in ((2e-3, False), (5e-3, True)):
        run = begun(config())
        for x in batches(8):
            if spoilt:
                x[0, 0] = torch.nan
            assert run.step(x, rate).revived is None
        assert len(run.gradient.dead.indices()) >= len(DEAD)


def test_more_dead_latents_than_rows_take_turns():
    run, resampling = begun(config()), Resampling(config())
    run.step(batches(1)[0], 5e-3)
    revived = resampling.revive(run.weights, run.gradient.optimizer, torch.arange(50), torch.randn(20, D_IN), 5e-3)
    assert revived is not None
    assert torch.equal(revived, torch.arange(20))


@pytest.mark.parametrize("kind", [Statistics, Window])
def test_statistics_forget_a_latent(kind):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D_IN, generator=generator)
    codes = SparseCodes(
        torch.stack([torch.randperm(D_SAE, generator=generator)[:K] for _ in range(N)]), torch.rand(N, K, generator=generator)
    )
    gone = torch.tensor([3, 70])
    kept, direct = (kind(D_IN, D_SAE) if kind is Statistics else kind(D_IN, D_SAE, K, N) for _ in range(2))
    kept.add(x, codes)
    kept.forget(gone)
    direct.add(x, SparseCodes(codes.indices, codes.values * ~torch.isin(codes.indices, gone)))
    kept, direct = (s.moments() if isinstance(s, Window) else s for s in (kept, direct))
    assert to_dense(codes, D_SAE)[:, gone].any()
    V = torch.randn(D_SAE, 3, dtype=torch.float64)
    for a, b in ((kept.product(V), direct.product(V)), (kept.cross, direct.cross), (kept.sum_z, direct.sum_z)):
        assert torch.allclose(a, b, rtol=1e-6)
