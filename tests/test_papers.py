"""The papers' experiments, at sizes of a second: what they find, what they leave, what they refuse."""

from __future__ import annotations

import itertools
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from splinterp import store as stores
from splinterp.cli import main
from splinterp.errors import SplinterpError
from splinterp.papers import topk_peak
from splinterp.papers.alternation import alternate
from splinterp.papers.topk_peak import TopKPeak, draw, run, table
from splinterp.sae import to_dense
from splinterp.train import TrainConfig

SITE, D_IN, N = "hook", 24, 3000
SMALL = TopKPeak(latents=96, epochs=1, seeds=(0,))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with stores.create(tmp_path_factory.mktemp("papers") / "acts.zarr", sites={SITE: D_IN}, dtype="float32", rows=N) as writer:
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(N, 64, generator=generator) * (torch.rand(N, 64, generator=generator) < 0.06)
        rows = codes @ torch.randn(64, D_IN, generator=generator) + 0.3 * torch.randn(N, D_IN, generator=generator)
        writer.add({SITE: 5 + 3 * rows}, {})
        return writer.finish()


@pytest.fixture(scope="module")
def reproduced(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("peak")
    return run(SMALL, store, SITE, out), out


def test_the_peak_is_at_as_many_rows_as_latents_and_gone_with_a_chosen_ridge(reproduced):
    result, _ = reproduced
    assert (result["latents"], result["k"], result["batch_size"]) == (96, 8, 6)  # the paper's ratios
    for encoder in ("random", "trained"):
        peak, chosen = result["peak"][encoder]["1e-10"], result["peak"][encoder]["auto"]
        assert 0.8 < peak["rows_per_latent"] < 1.2
        assert peak["mean"] > 3 * chosen["mean"]
        means = [point["mean"] for point in result["curves"][encoder]["auto"]]
        assert all(b < 1.1 * a for a, b in itertools.pairwise(means))  # more data never hurts


def test_what_it_leaves_says_all_of_it(reproduced):
    result, out = reproduced
    assert json.loads((out / "topk-peak.json").read_text()) == json.loads(json.dumps(result))
    drawn = (out / "topk-peak.svg").read_text()
    ElementTree.fromstring(drawn)
    assert drawn == draw(result) + "\n"
    assert "random encoder, ridge auto" in drawn
    lines = table(result).splitlines()
    assert len(lines) == 4 + len(topk_peak.SHARES)
    assert lines[-1].startswith("| 100% | 211 | 2.20 |")


def test_only_what_is_missing_is_done_again(store, reproduced, monkeypatch):
    result, out = reproduced
    cells, done = out / "cells.jsonl", []
    before = cells.read_text()
    lines = before.splitlines(keepends=True)
    assert len(lines) == 44
    cells.write_text("".join(lines[:7] + lines[8:]) + lines[7][:20])  # one is missing, and the process was killed while writing
    monkeypatch.setattr(topk_peak, "alternate", lambda *given: done.append(1) or alternate(*given))
    assert run(SMALL, store, SITE, out) == result
    assert len(done) == 1
    assert sorted(cells.read_text().splitlines()) == sorted(before.splitlines())
    run(TopKPeak(latents=96, epochs=2, seeds=(0,)), store, SITE, out)
    assert len(done) == 1 + 22  # an encoder that is not trained is the same after any epochs


@pytest.mark.parametrize("epochs", [0, 3])
def test_the_decoder_is_the_least_squares_solution(epochs):
    generator = torch.Generator().manual_seed(2)
    x, validation = torch.randn(400, 12, generator=generator), torch.randn(50, 12, generator=generator)
    config = TrainConfig(
        method="pam", activation="topk", d_sae=20, k=4, rows=1200, batch_size=16, lr=1e-2, decoder_steps=False, revive="none"
    )
    sae = alternate(x, validation, config, epochs, 1e-10)
    z = to_dense(sae.encode(x), 20).double()
    design = torch.cat([z, torch.ones(400, 1, dtype=torch.float64)], 1).numpy()
    best = np.linalg.lstsq(design, x.double().numpy(), rcond=None)[0]
    least = float(np.square(design @ best - x.double().numpy()).sum())
    assert float((sae(x).double() - x).square().sum()) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"latents": 10}, "--latents 10 are too few"),
        ({"epochs": 0}, "--epochs 0 would train nothing"),
        ({"seeds": (1, 1)}, "--seeds must be different numbers from 0 on, not 1, 1"),
        ({"latents": 2000}, "2,000 latents need 4,395 and some; harvest more, or give fewer --latents"),
        ({}, "24 dimensions, which makes 43 latents; give --latents, 64 or more"),
    ],
)
def test_what_cannot_be_is_a_sentence(store, tmp_path, settings, sentence):
    with pytest.raises(SplinterpError, match=sentence):
        run(TopKPeak(**settings), store, SITE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(store, reproduced, capsys):
    result, out = reproduced

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["reproduce", "topk-peak", "--store", str(store.path), "--out", str(out), *arguments])
        return end.value.code, capsys.readouterr()

    code, told = command("--latents", "96", "--epochs", "1", "--seeds", "0", "--json")
    assert not code
    assert json.loads(told.out) == json.loads(json.dumps(result))
    code, told = command("--latents", "96", "--epochs", "1", "--seeds", "0")
    assert told.out.startswith(table(result))
    code, told = command("--latents", "9")
    assert code == 1
    assert "too few" in told.err
    assert "Traceback" not in told.err
    assert command("--seeds", "one")[0] == 2
