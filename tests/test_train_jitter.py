"""Jitter: training rows with noise of their own covariance, which keeps few rows in many epochs from being learnt by heart."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from runs import signal_at
from splinterp import store as stores
from splinterp.errors import Interrupted, SplinterpError
from splinterp.evaluate import evaluate_rows
from splinterp.report.tables import print_train_plan
from splinterp.sae import load_sae
from splinterp.train import TrainConfig, TrainOptions, train
from splinterp.train.config import PURSUIT
from splinterp.train.group import ALONE
from splinterp.train.jitter import LEAST, SAMPLE, auto_jitter, jittered

SITE, D_IN, D_SAE, K = "hook", 24, 96, 6
OPTIONS = TrainOptions(**{field.name: None for field in fields(TrainOptions)} | {
    "method": "pam", "activation": "topk", "latents": D_SAE, "k": K, "revive": "auxk", "batch_size": 128, "decay": 1.0, "encoder_steps": 1,
    "precision": "auto", "seed": 0,
})  # fmt: skip
CONFIG = TrainConfig(method="pam", activation="topk", d_sae=D_SAE, k=K, rows=1, batch_size=128, lr=1e-2)


def rows_with_structure(n: int, seed: int) -> torch.Tensor:
    """Rows [n, D_IN] of sparse codes in a fixed dictionary."""
    dictionary = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, D_SAE, generator=generator) * (torch.rand(n, D_SAE, generator=generator) < K / D_SAE)) @ dictionary


def test_rows_keep_their_covariance():
    x = rows_with_structure(256, 1).double()
    x = x - x.mean(0)
    noisy = torch.cat(
        [jittered(x[torch.randperm(256, generator=torch.Generator().manual_seed(i))], 0.5, 256, i, ALONE) for i in range(400)]
    )
    was, now = x.T @ x / len(x), noisy.T @ noisy / len(noisy)
    assert float((now - was).norm() / was.norm()) < 0.03


def test_a_few_rows_have_none():
    x = torch.randn(LEAST - 1, D_IN)
    assert jittered(x, 0.36, len(x), 7, ALONE) is x


@pytest.mark.parametrize("n", [LEAST, SAMPLE, 200])
def test_noise_is_a_combination_of_the_batch_s_first_rows_and_as_large_as_told(n):
    x = torch.randn(n, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    noise = jittered(x, 0.36, n, 7, ALONE) - 0.8 * x
    assert torch.equal(x, before)
    weights = torch.linalg.lstsq(x[:SAMPLE].T, noise.T).solution
    torch.testing.assert_close(weights.T @ x[:SAMPLE], noise)
    if n == 200:
        assert float(weights.std()) * SAMPLE**0.5 == pytest.approx(0.6, rel=0.05)


def test_noise_is_the_seed_s():
    x = rows_with_structure(100, 1)
    assert torch.equal(jittered(x, 0.3, 100, 1, ALONE), jittered(x, 0.3, 100, 1, ALONE))
    assert not torch.allclose(jittered(x, 0.3, 100, 1, ALONE), jittered(x, 0.3, 100, 2, ALONE))


def test_by_default_there_is_none_in_few_epochs_and_less_of_it_the_more_rows():
    def share(epochs: float, rows: int) -> float:
        return auto_jitter(round(epochs * rows), rows, 1000)

    assert share(1, 500) == share(8, 500) == 0
    assert 0 < share(9, 500) < share(40, 500) < share(1000, 500) < 1 / (1 + 2 * 0.5**1.2)
    assert share(40, 500) > share(40, 5000) > share(40, 15_000) > 0 == share(40, 100_000)


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu", "relu"])
def test_the_default_is_for_activations_that_keep_their_l0(activation):
    config = replace(CONFIG, activation=activation, k=None if activation == "relu" else K, rows=10_000, different_rows=100)
    assert (config.noise > 0) == (activation != "relu")
    assert replace(config, jitter=0.2).noise == 0.2


def test_the_plan_tells_it(capsys):
    options = replace(OPTIONS, tokens=None, epochs=50)
    print_train_plan(Console(width=200), options.config(D_IN, 500), [], SITE, D_IN, 500, Path("run"))
    assert f", jitter {auto_jitter(25_000, 500, D_SAE):.2g}," in capsys.readouterr().out


@pytest.mark.parametrize(("epochs", "pull"), [(8, 0.0), (8.5, 0.0), (100, PURSUIT)])
def test_with_fewer_rows_than_latents_there_is_pursuit_where_there_is_noise_enough(epochs, pull):
    assert replace(CONFIG, rows=int(epochs * 60), different_rows=60).pull == pull


def test_a_run_from_before_there_was_jitter_goes_on_without(tmp_path):
    with stores.create(tmp_path / "acts.zarr", sites={SITE: D_IN}, dtype="float32", rows=400) as writer:
        writer.add({SITE: rows_with_structure(400, 1)}, {})
        store = writer.finish()
    config = replace(CONFIG, rows=80 * store.split_rows("train"))
    with pytest.raises(Interrupted):
        train(store, None, replace(config, jitter=0.0), tmp_path / "run", progress=signal_at(1280))
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    del told["settings"]["jitter"], told["jitter"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(told))
    with pytest.raises(SplinterpError, match=r"was begun with jitter=0\.0, and not with jitter=None"):
        train(store, None, config, tmp_path / "run", resume=True)
    train(store, None, replace(config, jitter=0.0), tmp_path / "run", resume=True)


@pytest.mark.parametrize("jitter", [-0.1, 1.0, 2.0, float("nan"), float("inf")])
def test_a_share_of_all_or_more_is_refused(jitter):
    with pytest.raises(SplinterpError, match="the share of noise in a training row: it must be at least 0 and below 1"):
        TrainConfig(method="pam", activation="topk", d_sae=8, k=1, rows=10, batch_size=5, lr=1e-2, jitter=jitter)


@pytest.mark.parametrize("method", ["pam", "adam"])
def test_few_rows_are_not_learnt_by_heart(tmp_path, method):
    with stores.create(tmp_path / "acts.zarr", sites={SITE: D_IN}, dtype="float32", rows=400) as writer:
        writer.add({SITE: rows_with_structure(400, 1)}, {})
        store = writer.finish()
    config = replace(CONFIG, method=method, rows=80 * store.split_rows("train"))
    fvu = {}
    for jitter in (0.0, None):
        result = train(store, None, replace(config, jitter=jitter), tmp_path / str(jitter))
        fvu[jitter] = evaluate_rows(load_sae(result.directory), [rows_with_structure(4000, 2)])["fvu"]
        told = json.loads((result.directory / "run.json").read_text())
        assert (told["jitter"] > 0.1) == (jitter is None)
        assert told["settings"]["jitter"] == jitter
    assert fvu[None] < 0.9 * fvu[0.0]
