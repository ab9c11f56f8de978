"""Latents as SAEDashboard's batches: read by SAEDashboard's own classes, and held against codes that are taken anew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import splinterp
import torch
from splinterp.errors import SplinterpError
from splinterp.report import neuronpedia
from splinterp.sae import load_sae, to_dense
from splinterp.store import open as open_store


@pytest.fixture(scope="module")
def work(tmp_path_factory, gpt2_dir, texts):
    """A store, and a run on it with two latents that never fire."""
    folder = tmp_path_factory.mktemp("neuronpedia")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[1:40]))
    store = splinterp.harvest(
        str(gpt2_dir), 1, dataset=str(folder / "text.jsonl"), tokens=3_000, context=32, out=str(folder / "acts.zarr")
    )
    made = splinterp.train(store, folder / "run", latents=64, k=4).sae
    made.b_enc[[7, 41]] = -1e6
    splinterp.export_sae(made, folder / "sae")
    return folder


@pytest.fixture(scope="module")
def exported(work):
    """The directory, and its batches' latents by number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neuronpedia, "TOGETHER", 25)  # so that there are several files
        assert neuronpedia.write_neuronpedia(work / "sae", work / "acts.zarr", work / "out") == []
    batches = [json.loads((work / "out" / f"batch-{i}.json").read_text("utf-8")) for i in range(3)]
    return work / "out", batches


@pytest.fixture(scope="module")
def codes(work) -> torch.Tensor:
    """Every row's code, [rows, 64]."""
    sae, store = load_sae(work / "sae"), open_store(work / "acts.zarr")
    return to_dense(sae.encode(store.acts(None, 0, store.rows).float()), 64)


def test_saedashboard_reads_them(exported):
    dashboard = pytest.importorskip("sae_dashboard.neuronpedia.neuronpedia_dashboard", reason="SAEDashboard is not installed")
    for batch in exported[1]:
        assert dashboard.NeuronpediaDashboardBatch(**batch).to_dict() == batch


def test_figures_are_those_of_the_codes(exported, codes):
    latents = {one["feature_index"]: one for batch in exported[1] for one in batch["features"]}
    assert sorted(latents) == codes.any(0).nonzero().flatten().tolist()
    assert [len(batch["features"]) for batch in exported[1]] == [25, 25, len(latents) - 50]
    for i, one in latents.items():
        fired = codes[:, i][codes[:, i] != 0]
        assert one["frac_nonzero"] == len(fired) / len(codes)
        assert sum(one["freq_hist_data_bar_heights"]) == len(fired)
        mean = np.average(one["freq_hist_data_bar_values"], weights=one["freq_hist_data_bar_heights"])
        bin_width = 2 * one["freq_hist_data_bar_values"][0]
        assert abs(mean - fired.mean()) <= bin_width / 2
        top = {a["bin_max"] for a in one["activations"] if a["bin_contains"] == -1}
        assert top == {float(fired.max())}
        for a in one["activations"]:
            assert len(a["tokens"]) == len(a["values"]) <= 2 * neuronpedia.WIDTH + 1
            here = a["values"][a["qualifying_token_index"]]
            assert a["bin_min"] - 1e-5 <= here <= a["bin_max"] + 1e-5
            if a["bin_contains"] != -1:
                between = (fired >= a["bin_min"]) & (fired <= a["bin_max"])
                assert a["bin_contains"] == pytest.approx(float(between.sum()) / len(codes), abs=0.5 * one["frac_nonzero"])
    assert sum(a["bin_contains"] >= 0 for one in latents.values() for a in one["activations"]) > 100


def test_decoder_rows_and_tokens(exported, work, codes):
    sae, seen = load_sae(work / "sae"), 0
    for batch in exported[1]:
        assert (batch["layer"], batch["sae_set"], batch["sae_id_suffix"]) == (1, "sae", None)
        for one in batch["features"]:
            row = sae.W_dec[one["feature_index"]]
            assert one["neuron_alignment_indices"] == row.topk(3).indices.tolist()
            assert one["neuron_alignment_l1"] == pytest.approx((row.topk(3).values.abs() / row.abs().sum()).tolist(), abs=1e-5)
            assert one["pos_values"] == sorted(one["pos_values"], reverse=True)
            assert one["neg_values"] == sorted(one["neg_values"])
            assert len(one["pos_str"]) == len(one["pos_values"]) == neuronpedia.TOKENS
            assert one["logits_hist_data_bar_values"][-1] < one["pos_values"][0]  # a bin's middle, the largest effect
            seen += sum(one["logits_hist_data_bar_heights"])
    vocabulary = json.loads((Path(open_store(work / "acts.zarr").attributes["model"]) / "config.json").read_text())[
        "vocab_size"
    ]
    assert seen == int(codes.any(0).sum()) * vocabulary


def test_dead_latents_and_settings_are_told(exported, work, codes):
    skipped = json.loads((exported[0] / "skipped_indexes.json").read_text())
    assert skipped["skipped_indexes"] == (~codes.any(0)).nonzero().flatten().tolist()
    assert {7, 41} <= set(skipped["skipped_indexes"])
    settings = json.loads((exported[0] / "run_settings.json").read_text())
    assert "standard deviations" in settings["logits"]
    features = exported[1][0]["features"]
    assert {(one["n_tokens_in_prompt"], one["dataset"]) for one in features} == {(32, str(work / "text.jsonl"))}


def test_the_command_writes_the_same_and_replaces_only_its_own(exported, work, cli):
    (work / "mine").mkdir()
    (work / "mine" / "thesis.txt").write_text("x")
    arguments = ["export", work / "sae", "--to", "neuronpedia", "--store", work / "acts.zarr", "--force", "--out"]
    code, _, err = cli(*arguments, work / "mine")
    assert code == 1
    assert "exists already" in err
    assert (work / "mine" / "thesis.txt").exists()
    code, out, err = cli(*arguments, work / "again")
    assert (code, "converter" in out) == (0, True), err
    one = json.loads((work / "again" / "batch-0.json").read_text("utf-8"))
    assert one["features"] == [latent for batch in exported[1] for latent in batch["features"]]
    assert cli(*arguments, work / "again")[0] == 0  # what was exported there
    assert sorted(path.name for path in work.iterdir() if path.name.startswith(".")) == []


def test_a_store_without_text_is_refused(work, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((600, 32)).astype(np.float32))
    splinterp.import_activations(tmp_path / "x.npy", tmp_path / "bare.zarr")
    with pytest.raises(SplinterpError, match="holds no tokens"):
        neuronpedia.write_neuronpedia(work / "sae", tmp_path / "bare.zarr", tmp_path / "out", site="imported")
    assert not (tmp_path / "out").exists()
