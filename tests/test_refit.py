"""`refit`: the optimal decoder for an SAE that exists, with its codes and conventions kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from splinterp import store as stores
from splinterp.cli import main
from splinterp.errors import SplinterpError
from splinterp.sae import SAE, SAEConfig, load_sae, save_sae, to_dense
from splinterp.store.files import Lock
from splinterp.train import TrainConfig, raw_rows, refit, train

SITE, D_IN, D_SAE, N, K = "hook", 16, 48, 6000, 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with stores.create(tmp_path_factory.mktemp("refit") / "acts.zarr", sites={SITE: D_IN}, dtype="float32", rows=N) as writer:
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(N, 64, generator=generator) * (torch.rand(N, 64, generator=generator) < 0.06)
        writer.add({SITE: 5 + 3 * codes @ torch.randn(64, D_IN, generator=generator)}, {})
        return writer.finish()


def random_sae(architecture, d_sae=D_SAE, k=K, **conventions) -> SAE:
    generator = torch.Generator().manual_seed(1)
    config = SAEConfig(
        architecture, D_IN, d_sae, k if "topk" in architecture else None, metadata={"hook_name": SITE}, **conventions
    )
    W_dec = torch.randn(d_sae, D_IN, generator=generator) / 4
    threshold = torch.rand(d_sae, generator=generator) if architecture == "jumprelu" else None
    return SAE(config, W_dec.T.clone(), torch.zeros(d_sae), W_dec, torch.full((D_IN,), 5.0), threshold)


@pytest.mark.parametrize(
    ("architecture", "conventions"),
    [
        ("topk", {}),
        ("topk", {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": True}),
        ("abstopk", {}),
        ("standard", {"apply_b_dec_to_input": True}),
        ("jumprelu", {}),
    ],
)
def test_codes_stay_and_the_error_falls_to_that_of_least_squares(store, tmp_path, architecture, conventions):
    sae = random_sae(architecture, **conventions)
    result = refit(sae, "random", store, SITE, tmp_path / "out", ridge=0.0)
    assert result.summary["fvu"] < result.summary["before_refit"]["fvu"]
    again, x = load_sae(tmp_path / "out"), torch.cat(list(raw_rows(store, SITE, CPU, "train")))
    z = to_dense(again.encode(x), D_SAE)
    assert (z - to_dense(sae.encode(x), D_SAE)).abs().max() <= 1e-4
    design = torch.cat([z, torch.ones(len(z), 1)], 1).double()
    best = torch.linalg.lstsq(design, x.double(), driver="gelsd").solution
    ours, theirs = ((again(x) - x).square().sum(), (design @ best - x).square().sum())
    assert ours <= (1 + 1e-4) * theirs
    sae_lens = pytest.importorskip("sae_lens")
    loaded = sae_lens.SAE.load_from_disk(str(tmp_path / "out"))
    assert (loaded(x[:100]) - again(x[:100])).abs().max() <= 1e-3


def test_refit_of_a_run_is_that_run_with_a_last_solve(store, tmp_path):
    config = TrainConfig(
        method="adam", activation="topk", d_sae=D_SAE, k=K, rows=6000, batch_size=256, lr=1e-2, last_solve=False
    )
    bare = train(store, SITE, config, tmp_path / "bare").summary
    solved = train(store, SITE, replace(config, last_solve=True), tmp_path / "solved").summary
    ours = refit(load_sae(tmp_path / "bare"), "bare", store, SITE, tmp_path / "refit").summary
    assert ours["before_refit"]["fvu"] == pytest.approx(bare["fvu"], rel=1e-5)
    assert ours["fvu"] == pytest.approx(solved["fvu"], rel=1e-4)
    assert ours["last_solve"]["ridge"] == solved["last_solve"]["ridge"]


def test_without_a_gram_matrix_it_comes_to_the_same(store, tmp_path):
    sae = random_sae("topk", d_sae=64)
    whole = refit(sae, "random", store, SITE, tmp_path / "gram")
    by_cg = refit(sae, "random", store, SITE, tmp_path / "cg", memory=120_000)
    assert (whole.summary["last_solve"]["how"], by_cg.summary["last_solve"]["how"]) == ("cholesky", "cg")
    assert whole.summary["last_solve"]["ridge"] == by_cg.summary["last_solve"]["ridge"]
    assert (whole.sae.W_dec - by_cg.sae.W_dec).norm() <= 1e-5 * whole.sae.W_dec.norm()


@pytest.mark.parametrize("ridge", [1e-9, 1e-3, None])
def test_a_decoder_that_would_be_worse_is_not_taken(store, tmp_path, ridge):
    """Hardly more rows than latents, and an SAE that has seen others: with next to no ridge the solved one fits noise."""
    sae = refit(random_sae("topk", d_sae=1500, k=60), "random", store, SITE, tmp_path / "best", ridge=0.1).sae
    few = stores.subset(store.path, tmp_path / "few.zarr", rows=2100)
    assert abs(few.split_rows("train") - 1500) < 100
    summary = refit(sae, "best", few, SITE, tmp_path / "again", ridge=ridge).summary
    by, before = summary["decided_by"], summary["before_refit"]["fvu"]
    assert by["split"] == "validation"
    assert summary["fvu"] <= before
    assert (
        summary["kept"]
        == torch.equal(load_sae(tmp_path / "again").W_dec, sae.W_dec)
        == (by["gain"] <= 3 * by["standard_error"])
    )
    if ridge == 1e-9:
        assert summary["kept"]
        assert summary["solved"]["fvu"] > before
        assert by["gain"] < 0


def test_what_is_within_noise_is_no_reason_to_change(store, tmp_path):
    """The same decoder twice, once from the same rows again, gains nothing that its standard error does not cover."""
    sae = refit(random_sae("topk"), "random", store, SITE, tmp_path / "once", ridge=0.0).sae
    again = refit(sae, "once", store, SITE, tmp_path / "twice", ridge=1e-6)
    assert again.summary["kept"]


def test_a_store_without_validation_rows_is_judged_by_held_out_ones(store, tmp_path):
    stores.subset(store.path, tmp_path / "few.zarr", rows=1500)
    few = stores.open(tmp_path / "few.zarr")
    assert few.split_rows("validation") == 0
    summary = refit(random_sae("topk"), "random", few, SITE, tmp_path / "out").summary
    assert summary["decided_by"]["split"] == "held_out"
    assert not summary["kept"]
    assert "present" not in summary["last_solve"]["validation_fvu"]


def test_nobody_elses_directory_is_touched(store, tmp_path):
    sae, out = random_sae("topk", d_sae=64), tmp_path / "new" / "run"
    refit(sae, "random", store, SITE, out, memory=120_000)  # its codes' file needs the directory that is not there yet
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    lock = Lock(out)
    with pytest.raises(SplinterpError, match="written by another process"):
        refit(sae, "random", store, SITE, out, force=True)
    lock.release(remove=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    def interrupted(*told):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refit(sae, "random", store, SITE, tmp_path / "other", progress=interrupted)
    assert not (tmp_path / "other").exists()


def test_the_command_and_its_sentences(store, tmp_path, capsys):
    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["refit", *map(str, arguments), "--store", str(store.path)])
        return end.value.code, capsys.readouterr()

    save_sae(random_sae("topk"), tmp_path / "sae")
    code, said = command(tmp_path / "sae", "--out", tmp_path / "out")
    assert not code
    assert "held-out rows" in said.out
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert told["fvu"] < told["before_refit"]["fvu"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["refit_of"] == str(tmp_path / "sae")
    code, said = command(tmp_path / "sae", "--out", tmp_path / "out")
    assert code == 1
    assert "exists already" in said.err
    assert not command(tmp_path / "sae", "--out", tmp_path / "out", "--force")[0]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").touch()
    code, said = command(tmp_path / "sae", "--out", tmp_path / "own", "--force")
    assert code == 1
    assert "not a run directory" in said.err
    with stores.create(tmp_path / "wide.zarr", sites={SITE: 20}, rows=600) as writer:
        writer.add({SITE: torch.randn(600, 20)}, {})
        wide = writer.finish()
    with pytest.raises(SplinterpError, match="takes rows of width 16, but"):
        refit(random_sae("topk"), "sae", wide, SITE, tmp_path / "x")
