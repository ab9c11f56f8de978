"""`--method pursuit`: a dictionary made for pursuit's codes, and the encoder beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from runs import left_by, signal_at
from splinterp import store as stores
from splinterp.errors import Interrupted, SplinterpError
from splinterp.infer import Dictionary, Target, infer
from splinterp.sae import load_sae, to_dense
from splinterp.train import TrainConfig, train

SITE, D_IN, D_SAE, K, N = "hook", 24, 96, 6, 12_000
PURSUIT = TrainConfig(
    method="pursuit",
    activation="topk",
    d_sae=D_SAE,
    k=K,
    rows=10_000,
    batch_size=128,
    lr=1e-2,
    memory_rows=2000,
    last_solve=False,
)
ADAM = replace(PURSUIT, method="adam", memory_rows=None)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with stores.create(
        tmp_path_factory.mktemp("dictionary") / "acts.zarr", sites={SITE: D_IN}, dtype="float32", rows=N
    ) as writer:
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(N, D_SAE, generator=generator) * (torch.rand(N, D_SAE, generator=generator) < 0.06)
        writer.add({SITE: codes @ torch.randn(D_SAE, D_IN, generator=generator)}, {})
        return writer.finish()


@pytest.mark.parametrize("memory", [None, 250_000], ids=["by the Gram matrix", "by conjugate gradients"])
def test_pursuit_s_codes_leave_less_than_the_encoder_s_in_a_dictionary_that_is_made_for_them(store, tmp_path, memory):
    fvu = {}
    for config in (replace(PURSUIT, memory=memory), ADAM):
        result = train(store, None, config, tmp_path / config.method)
        sae = load_sae(result.directory)
        x = torch.cat(list(store.batches(SITE, 4096, split="held_out", shuffle=False)))
        dictionary = Dictionary.of(sae)
        z = to_dense(infer("gradient-pursuit", x, dictionary, Target(k=K)), D_SAE)
        rest = (x - z @ dictionary.W_dec - dictionary.b_dec).square().sum() / (x - x.mean(0)).square().sum()
        fvu[config.method] = {"pursuit": float(rest), "native": result.summary["fvu"]}
        if config.method == "pursuit":
            told = json.loads((result.directory / "summary.json").read_text())["pursuit"]
            assert told["encoder"] == "gradient-pursuit"
            assert told["fvu"] == pytest.approx(float(rest), rel=1e-4)
            assert told["l0"] <= K
        else:
            assert "pursuit" not in result.summary
    assert fvu["pursuit"]["pursuit"] < 0.8 * fvu["pursuit"]["native"]
    assert fvu["pursuit"]["pursuit"] < fvu["adam"]["pursuit"]
    assert fvu["pursuit"]["native"] < 1.2 * fvu["adam"]["native"]  # the encoder goes along


def test_interrupted_and_resumed_is_uninterrupted(store, tmp_path):
    """Before the statistics begin and after."""
    train(store, None, PURSUIT, tmp_path / "whole")
    for rows in (3072, 7040):
        with pytest.raises(Interrupted):
            train(store, None, PURSUIT, tmp_path / "run", progress=signal_at(rows), resume=True)
    train(store, None, PURSUIT, tmp_path / "run", resume=True)
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"activation": "batchtopk"}, "--method pursuit goes with --activation topk; leave out batchtopk"),
        ({"last_solve": True}, "--last-solve would fit the decoder to the encoder's codes"),
        ({"pursuit": 0.0}, "--pursuit 0 leaves --method pursuit without its codes"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options, sentence):
    with pytest.raises(SplinterpError, match=sentence):
        replace(PURSUIT, **options)
