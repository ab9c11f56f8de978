"""Encoders beyond the native one: what `eval`, `encode`, `gap` and `mlp` make of them, against inference called by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from splinterp import store as stores
from splinterp.cli import main
from splinterp.errors import StoreError
from splinterp.infer import Dictionary, EncoderOptions, Target, codes_layout, infer, make_encoder, open_codes
from splinterp.infer import codes_store as codes_module
from splinterp.infer.penalty import penalties_for
from splinterp.sae import SAE, SAEConfig, l0, load_sae, save_sae, to_dense
from splinterp.train import raw_rows

SITE, D_IN, D_SAE, N, K = "hook", 16, 48, 6000, 5
CPU = torch.device("cpu")


def random_sae(architecture="topk", seed: int = 1, **conventions) -> SAE:
    """A dictionary that the rows below are made of, with an encoder that is only its transpose."""
    generator = torch.Generator().manual_seed(seed)
    config = SAEConfig(
        architecture, D_IN, D_SAE, K if "topk" in architecture else None, metadata={"hook_name": SITE}, **conventions
    )
    W_dec = torch.randn(D_SAE, D_IN, generator=generator) * (0.5 + torch.rand(D_SAE, 1, generator=generator))
    mean = torch.full((D_IN,), 5.0)
    threshold = torch.full((D_SAE,), 0.5) if architecture == "jumprelu" else None
    W_enc = (W_dec / W_dec.square().sum(1, keepdim=True)).T.contiguous()
    b_enc = torch.zeros(D_SAE) if conventions.get("apply_b_dec_to_input") else -mean @ W_enc
    return SAE(config, W_enc, b_enc, W_dec, mean, threshold)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A store, and an SAE `sae` whose dictionary its rows come from."""
    folder = tmp_path_factory.mktemp("encoders")
    sae, generator = random_sae(), torch.Generator().manual_seed(0)
    with stores.create(folder / "acts.zarr", sites={SITE: D_IN}, dtype="float32", columns=("token_id",), rows=N) as writer:
        codes = torch.rand(N, D_SAE, generator=generator) * (torch.rand(N, D_SAE, generator=generator) < 0.1)
        x = codes @ sae.W_dec + sae.b_dec + 0.1 * torch.randn(N, D_IN, generator=generator)
        writer.add({SITE: x}, {"token_id": np.arange(N)})
        writer.finish()
    save_sae(sae, folder / "sae")
    save_sae(random_sae("jumprelu"), folder / "jump")
    return folder


def held_out(work: Path) -> torch.Tensor:
    return torch.cat(list(raw_rows(stores.open(work / "acts.zarr"), SITE, CPU, "held_out")))


def sentence(result: tuple[int, str, str]) -> str:
    """The message of a command that failed as it should."""
    code, out, err = result
    assert code == 1, out + err
    assert "Traceback" not in err
    return err.strip()


@pytest.mark.parametrize(
    ("name", "options", "target", "start"),
    [
        ("omp", [], Target(k=K), False),
        ("gradient-pursuit", ["--k", 3], Target(k=3), False),
        ("mp", ["--residual", 0.5], Target(residual=0.5), False),
        ("omp", ["--signed", "--k", 4], Target(k=4, signed=True), False),
        ("fista", ["--l1", 0.3, "--steps", 30], Target(l1=0.3, steps=30), False),
        ("cd", ["--l1", 0.3, "--start", "encoder"], Target(l1=0.3), True),
        ("ito", ["--l1", 0.5, "--steps", 20], Target(l1=0.5, steps=20), True),
        ("ito", ["--l1", 0.5, "--steps", 20, "--start", "none"], Target(l1=0.5, steps=20), False),
        ("ls", [], Target(), True),
    ],
)
def test_eval_is_inference_and_the_definition_of_fvu(cli, work, name, options, target, start):
    code, out, err = cli("eval", work / "sae", "--store", work / "acts.zarr", "--encoder", name, *options, "--json")
    assert code == 0, err
    figures = json.loads(out)
    assert {"fvu", "explained_variance", "mse", "l0", "dead_fraction", "n_rows", "encoder", "encoder_settings"} == set(figures)
    sae, x = load_sae(work / "sae"), held_out(work)
    codes = infer(name, x, Dictionary.of(sae), target, sae.encode(x) if start else None)
    x_hat = to_dense(codes, D_SAE).double() @ sae.W_dec.double() + sae.b_dec.double()
    error = (x.double() - x_hat).square().sum()
    assert figures["fvu"] == pytest.approx(float(error / (x.double() - x.double().mean(0)).square().sum()), rel=1e-5)
    assert figures["l0"] == pytest.approx(l0(codes), rel=1e-6)
    assert (figures["encoder"], figures["n_rows"]) == (name, len(x))


def test_pursuit_reconstructs_better_than_the_encoder_at_the_same_k(cli, work):
    figures = {}
    for name in ("native", "ls", "omp"):
        _, out, _ = cli("eval", work / "sae", "--store", work / "acts.zarr", "--encoder", name, "--json")
        figures[name] = json.loads(out)
    assert figures["omp"]["fvu"] < figures["ls"]["fvu"] < figures["native"]["fvu"]
    assert "encoder_settings" not in figures["native"]


def test_eval_shows_an_encoders_settings_once_and_in_words(cli, work):
    code, out, err = cli("eval", work / "sae", "--store", work / "acts.zarr", "--encoder", "omp", "--k", 3)
    assert code == 0, err
    rows = [tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in out.splitlines() if line.startswith("│")]
    assert {("encoder", "omp"), ("k", "3"), ("signed", "no")} <= set(rows)
    assert "encoder_settings" not in out


def test_an_sae_without_k_has_its_l0_as_budget_and_says_so(cli, work):
    code, out, err = cli("eval", work / "jump", "--store", work / "acts.zarr", "--encoder", "omp", "--json")
    assert code == 0
    sae = load_sae(work / "jump")
    sample = next(raw_rows(stores.open(work / "acts.zarr"), SITE, CPU, "train"))
    k = round(l0(sae.encode(sample)))
    assert json.loads(out)["encoder_settings"]["k"] == k
    assert f"k = {k}: the SAE has no k of its own" in err


@pytest.mark.parametrize("name", ["fista", "ista", "cd", "lca"])
def test_a_penalty_that_is_left_out_comes_to_about_the_same_l0(cli, work, name):
    code, out, err = cli("eval", work / "sae", "--store", work / "acts.zarr", "--encoder", name, "--json")
    figures = json.loads(out)
    assert code == 0
    assert figures["l0"] == pytest.approx(K, rel=0.15)
    assert f"λ = {figures['encoder_settings']['l1']:.4g}" in err


def test_penalties_come_to_the_budgets_asked_for(work):
    x, dictionary = held_out(work), Dictionary.of(load_sae(work / "sae"))
    budgets = [2, 4, 8]
    for budget, l1 in zip(budgets, penalties_for(dictionary, x, budgets), strict=True):
        assert l1 is not None
        assert l0(infer("fista", x, dictionary, Target(l1=l1))) == pytest.approx(budget, rel=0.15)
    assert penalties_for(dictionary, x, [40])[0] is None  # of 48 latents in 16 dimensions no more than about 16 are needed


def test_abstopk_is_signed_unless_told_otherwise():
    sae = random_sae("abstopk")
    options = EncoderOptions(name="omp")
    assert make_encoder(sae, options, Path(), list).settings["signed"]
    assert not make_encoder(sae, EncoderOptions(name="omp", signed=False), Path(), list).settings["signed"]
    assert not make_encoder(random_sae(), options, Path(), list).settings["signed"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--encoder", "oracle"], "There is no encoder 'oracle'; there are native, "),
        (["--encoder", "omp:3"], "There is no encoder 'omp:3'"),
        (["--encoder", "omp", "--k", 49], "k=49 is more than the SAE's 48 latents; lower --k."),
        (["--k", 3], "--k has no effect on --encoder native; leave it out."),
        (["--encoder", "omp", "--l1", 1, "--start", "none"], "--l1, --start has no effect on --encoder omp"),
        (["--encoder", "ls", "--start", "none"], "ls needs codes whose support it can fit on"),
        (["--encoder", "ito", "--start", "both"], "--start is encoder or none, not 'both'."),
        (["--encoder", "fista", "--l1", -1], "must be finite and not negative"),
        (["--encoder", "mlp"], "There is no MLP encoder in"),
        (["--encoder", "mlp", "--k", 3], "--k has no effect on --encoder mlp"),
    ],
)
def test_what_cannot_be_is_a_sentence(cli, work, tmp_path, options, said):
    for command in (["eval"], ["encode", "--out", tmp_path / "codes.zarr"]):
        assert said in sentence(cli(command[0], work / "sae", "--store", work / "acts.zarr", *command[1:], *options))
    assert not list(tmp_path.iterdir())


def test_rows_of_another_width_are_refused(cli, work, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((600, 8), np.float32))
    assert cli("import", tmp_path / "x.npy", "--out", tmp_path / "x.zarr", "--site", SITE)[0] == 0
    said = sentence(cli("encode", work / "sae", "--store", tmp_path / "x.zarr", "--out", tmp_path / "codes.zarr"))
    assert "takes rows of width 16" in said


@pytest.mark.parametrize("chunk", [100, 2**21])
@pytest.mark.parametrize(
    ("which", "options", "split"),
    [("sae", [], "all"), ("jump", [], "held_out"), ("sae", ["--encoder", "omp", "--residual", 0.4], "validation")],
)
def test_codes_are_read_by_plain_zarr_and_scipy(cli, work, tmp_path, monkeypatch, chunk, which, options, split):
    for module in (codes_module, codes_layout):
        monkeypatch.setattr(module, "CHUNK", chunk)
    path = tmp_path / "codes.zarr"
    code, out, err = cli("encode", work / which, "--store", work / "acts.zarr", "--out", path, "--split", split, *options)
    assert code == 0, err
    assert "rows/s" in out
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    (lines,) = [
        block for block in re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE) if "csr_matrix" in block
    ]
    found: dict[str, Any] = {}
    exec(lines.replace("codes.zarr", str(path)), found)  # the README's own lines
    g, codes = found["codes"], found["Z"]
    assert codes.has_canonical_format
    store, sae = stores.open(work / "acts.zarr"), load_sae(work / which)
    x = torch.cat(list(raw_rows(store, SITE, CPU, split)))
    want = sae.encode(x) if not options else infer("omp", x, Dictionary.of(sae), Target(residual=0.4))
    assert np.allclose(codes.toarray(), to_dense(want, D_SAE).numpy(), atol=1e-6)
    assert (codes.data != 0).all()
    rows = g["rows"][:]
    assert torch.equal(store.acts(SITE, 0, N)[torch.from_numpy(rows)], x)
    if split == "all":
        assert (rows == np.arange(N)).all()
    ours = open_codes(path)
    assert ours.shape == codes.shape
    assert (ours.rows == rows).all()
    part = to_dense(ours.codes(20, 170), D_SAE).numpy()
    assert (part == codes[20:170].toarray()).all()
    told = {
        "encoder",
        "encoder_settings",
        "sae",
        "sae_fingerprint",
        "store",
        "store_fingerprint",
        "site",
        "split",
        "complete",
        "nnz",
    }
    assert told <= set(ours.attributes)
    assert ours.nnz == codes.nnz
    with pytest.raises(StoreError, match="there are no rows"):
        ours.codes(0, N + 1)


def test_an_interrupted_encode_leaves_nothing_that_reads_as_complete(cli, work, tmp_path, monkeypatch):
    path = tmp_path / "codes.zarr"
    arguments = ["encode", work / "sae", "--store", work / "acts.zarr", "--out", path]
    real, batches = codes_module.to_csr, []

    def interrupted(*given):
        batches.append(given)
        if len(batches) > 1:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(codes_module, "to_csr", interrupted)
    assert "nothing was written" in sentence(cli(*arguments))
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert cli(*arguments)[0] == 0
    before = (path / "zarr.json").read_bytes()
    assert "exists already" in sentence(cli(*arguments))
    batches.clear()
    monkeypatch.setattr(codes_module, "to_csr", interrupted)
    assert "nothing was written" in sentence(cli(*arguments, "--force", "--encoder", "mp"))
    assert (path / "zarr.json").read_bytes() == before  # the old one is there until the new one is
    monkeypatch.undo()
    assert cli(*arguments, "--force", "--encoder", "mp")[0] == 0
    assert open_codes(path).attributes["encoder"] == "mp"
    assert [p.name for p in tmp_path.iterdir()] == ["codes.zarr"]


def test_what_a_killed_encode_left_is_no_store_of_codes_and_in_nobodys_way(cli, work, tmp_path):
    left = tmp_path / ".codes.zarr.writing" / "codes" / "data"
    left.mkdir(parents=True)
    (left / "c.0").write_bytes(b"half")
    with pytest.raises(StoreError, match="There is no store of codes"):
        open_codes(left.parent)
    assert cli("encode", work / "sae", "--store", work / "acts.zarr", "--out", tmp_path / "codes.zarr")[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["codes.zarr"]


def test_force_replaces_nothing_but_codes(cli, work, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "zarr.json").write_text('{"attributes": {"format": "another"}}')
    for path in (tmp_path / "mine", work / "acts.zarr"):
        said = sentence(cli("encode", work / "sae", "--store", work / "acts.zarr", "--out", path, "--force"))
        assert "is not a store of codes" in said
    assert stores.open(work / "acts.zarr").rows == N
    assert "local disk" in sentence(cli("encode", work / "sae", "--store", work / "acts.zarr", "--out", "memory://a/b"))


def test_eval_with_a_model_puts_the_encoders_codes_in_place(gpt2_dir, jsonl, tmp_path, cli):
    """With least squares on 32 of 64 latents of a basis and its negative every row is exact, and the native codes of noise are not."""
    store, sae = tmp_path / "acts.zarr", tmp_path / "sae"
    site = "blocks.1.hook_resid_post"
    assert (
        cli("harvest", "--model", gpt2_dir, "--layer", 1, "--dataset", jsonl, "--tokens", 600, "--context", 16, "--out", store)[
            0
        ]
        == 0
    )
    eye = torch.eye(32)
    noise = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    config = SAEConfig("topk", 32, 64, 32, metadata={"hook_name": site})
    save_sae(SAE(config, noise, torch.zeros(64), torch.cat([eye, -eye]), torch.zeros(32)), sae)
    recovered = {}
    for name in ("native", "omp"):
        code, out, err = cli(
            "eval", sae, "--store", store, "--model", gpt2_dir, "--tokens", 200, "--encoder", name, "--json", "--split", "all"
        )
        assert code == 0, err
        recovered[name] = json.loads(out)
    assert recovered["omp"]["ce_spliced"] == pytest.approx(recovered["omp"]["ce_clean"], abs=1e-3)
    assert abs(recovered["native"]["ce_spliced"] - recovered["native"]["ce_clean"]) > 1e-2


def test_gap_has_the_figures_of_eval_and_says_what_they_come_to(cli, work, tmp_path):
    arguments = ["gap", work / "sae", "--store", work / "acts.zarr"]
    code, out, err = cli(*arguments, "--json", "--out", tmp_path / "gap")
    assert code == 0, err
    told = json.loads(out)
    assert {"sae", "store", "store_fingerprint", "site", "n_rows", "k", "budgets", "points", "headline", "notes"} == set(told)
    assert told["budgets"] == [1, 2, 5, 10]
    points = told["points"]
    assert {
        "encoder",
        "settings",
        "fvu",
        "l0",
        "of_native",
        "flops",
        "steps",
        "unfinished",
        "rows_per_second",
        "n_rows",
    } == set(points[0])
    assert {p["encoder"] for p in points} == {"native", "ls", "mp", "gradient-pursuit", "omp", "fista"}
    assert json.loads((tmp_path / "gap" / "gap.json").read_text()) == told
    assert (tmp_path / "gap" / "gap.svg").read_text().startswith("<svg")
    assert told["headline"]["told"] in (tmp_path / "gap" / "gap.md").read_text()
    for point in points:
        assert point["rows_per_second"] > 0
        assert point["n_rows"] == (held_out(work).shape[0] // 8 if point["encoder"] == "fista" else len(held_out(work)))
    for name, options in (("native", []), ("ls", []), ("omp", ["--k", 2]), ("gradient-pursuit", ["--k", 10])):
        figures = json.loads(cli("eval", work / "sae", "--store", work / "acts.zarr", "--encoder", name, *options, "--json")[1])
        (point,) = [p for p in points if p["encoder"] == name and (not options or p["settings"]["k"] == options[1])]
        assert point["fvu"] == pytest.approx(figures["fvu"], rel=1e-5)
        assert point["l0"] == pytest.approx(figures["l0"])
        assert point["of_native"] == pytest.approx(point["fvu"] / points[0]["fvu"])
    needs, native = told["headline"]["omp_l0_for_native_fvu"], points[0]["fvu"]
    x, sae = held_out(work), load_sae(work / "sae")
    variance = float((x - x.mean(0)).square().sum())

    def omp(k: int) -> float:
        return float((sae.decode(infer("omp", x, Dictionary.of(sae), Target(k=k))) - x).square().sum()) / variance

    assert needs == next(k for k in range(1, K + 1) if omp(k) <= native)
    code, out, err = cli(*arguments, "--encoder", "cd", "--k", 3, "--rows", 100)
    assert code == 0, err
    assert "cd: on the first 12 rows." in out
    assert "native FVU" in out
    code, out, err = cli(*arguments, "--encoder", "fista", "--k", 3, "--k", 40, "--rows", 100)
    assert code == 0, err
    assert "fista: no λ comes to an L0 of 40." in out
    assert "has a gap already" in sentence(cli(*arguments, "--out", tmp_path / "gap"))
    assert "There is no encoder 'oracle'" in sentence(cli(*arguments, "--encoder", "oracle"))
    assert "from 1 to the SAE's 48" in sentence(cli(*arguments, "--k", 49))


def test_flops_of_a_mlp_and_of_a_start_are_counted(work):
    from splinterp.evaluate.gap import encoder_flops
    from splinterp.infer import Encoder, flops_per_row

    sae, native = load_sae(work / "sae"), 2 * D_IN * D_SAE
    made = {
        n: make_encoder(sae, EncoderOptions(name=n, k=4 if n == "omp" else None), Path(), list) for n in ("native", "omp", "ls")
    }
    assert encoder_flops(sae, made["native"], K, None) == native
    assert encoder_flops(sae, made["omp"], 4.0, None) == flops_per_row("omp", D_SAE, D_IN, Target(k=4))
    assert encoder_flops(sae, made["ls"], 5.0, None) == native + flops_per_row("ls", D_SAE, D_IN, Target(), support=5)
    assert encoder_flops(sae, Encoder("mlp", sae.encode, {"hidden": 7}), K, None) == 2 * 7 * (D_IN + D_SAE)
    fista = Encoder("fista", sae.encode, {"l1": 0.1})
    assert encoder_flops(sae, fista, K, 12.4) == flops_per_row("fista", D_SAE, D_IN, Target(l1=0.1), steps=12)


def test_gap_counts_the_steps_that_rows_took(work, monkeypatch):
    from splinterp.evaluate.gap import measure_gap
    from splinterp.infer import lasso

    x, sae = held_out(work)[:400], load_sae(work / "sae")

    def measured(cap: int) -> Any:
        monkeypatch.setattr(lasso, "_solve", lambda problem, state, step, steps, *rest: solve(problem, state, step, cap, *rest))
        return measure_gap(sae, work / "sae", x, x.mean(0), lambda: x, encoders=["fista"], budgets=[3])

    solve = lasso._solve
    enough, cut = measured(2000), measured(5)
    (long,), (short,) = ([p for p in gap.points if p.encoder == "fista"] for gap in (enough, cut))
    assert long.unfinished == 0
    assert short.steps == 5 < long.steps < 2000
    assert short.unfinished > 0.5
    assert short.flops < long.flops
    assert any("had not come to the end" in note for note in cut.notes)
    assert not any("had not come to the end" in note for note in enough.notes)


@pytest.fixture(scope="module")
def trained(work, tmp_path_factory) -> Path:
    """The SAE with an MLP encoder beside it."""
    directory = tmp_path_factory.mktemp("mlp") / "sae"
    save_sae(load_sae(work / "sae"), directory)
    with pytest.raises(SystemExit) as end:
        main(
            ["mlp", str(directory), "--store", str(work / "acts.zarr"), "--epochs", "6", "--batch-size", "128", "--lr", "3e-3"]
        )
    assert not end.value.code
    return directory


def test_an_mlp_learns_from_where_the_encoder_is_and_eval_finds_it(cli, work, trained):
    arguments = [trained, "--store", work / "acts.zarr"]
    about = json.loads((trained / "encoder-mlp-64.json").read_text())
    native = json.loads(cli("eval", *arguments, "--json")[1])
    assert about["native"]["fvu"] == pytest.approx(native["fvu"], rel=1e-5)
    assert about["fvu"] < 0.9 * native["fvu"]
    for name in ("mlp", f"mlp:{trained / 'encoder-mlp-64.safetensors'}"):
        figures = json.loads(cli("eval", *arguments, "--encoder", name, "--json")[1])
        assert figures["fvu"] == pytest.approx(about["fvu"], rel=1e-5)
        assert (figures["encoder"], figures["encoder_settings"]["hidden"]) == ("mlp", 64)
        assert figures["l0"] <= K
    points = json.loads(cli("gap", *arguments, "--encoder", "mlp", "--json")[1])["points"]
    assert [p["encoder"] for p in points] == ["native", "mlp 64"]
    assert points[1]["fvu"] == pytest.approx(about["fvu"], rel=1e-5)
    assert "exists already" in sentence(cli("mlp", *arguments))
    assert cli("mlp", *arguments, "--width", 6, "--tokens", 500)[0] == 0
    assert "several MLP encoders" in sentence(cli("eval", *arguments, "--encoder", "mlp"))
    assert "There is no MLP encoder at nowhere" in sentence(cli("eval", *arguments, "--encoder", "mlp:nowhere"))
    for name in ("encoder-mlp-6.safetensors", "encoder-mlp-6.json"):
        (trained / name).unlink()


def test_an_mlp_of_another_decoder_or_damaged_is_refused(work, trained, tmp_path):
    from splinterp.errors import SAEError
    from splinterp.infer.mlp import load_mlp

    path, sae = trained / "encoder-mlp-64.safetensors", load_sae(trained)
    assert load_mlp(path, sae).k == K
    with pytest.raises(SAEError, match="another decoder"):
        load_mlp(path, random_sae(seed=2))
    for name in (path.name, "encoder-mlp-64.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / path.name).write_bytes(b"x")
    with pytest.raises(SAEError, match="damaged"):
        load_mlp(tmp_path / path.name, sae)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_folding_and_saving_keep_an_mlps_codes(work, tmp_path, architecture):
    from splinterp.infer.mlp import decoder_norms, load_mlp, save_mlp
    from splinterp.train.mlp import MlpConfig, begin

    sae, x = random_sae(architecture).to(dtype=torch.float64), held_out(work).double()
    mean, scale = x.mean(0), 3.0
    mlp = begin(sae, mean, scale, K, MlpConfig(hidden=40, rows=1))
    folded = mlp.fold_normalisation(mean, scale, sae.W_dec.norm(dim=1))
    inside, outside = mlp.encode((x - mean) / scale), folded.encode(x)
    atoms = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    x_hat = mean + scale * (to_dense(inside, D_SAE) @ atoms + (sae.b_dec - mean) / scale)
    assert (sae.decode(outside) - x_hat).abs().max() <= 1e-10 * x.abs().max()
    assert ((to_dense(outside, D_SAE) < 0).any()) == (architecture == "abstopk")
    sae = sae.to(dtype=torch.float32)
    single = replace(folded.to(CPU, torch.float32), norms=decoder_norms(sae))
    loaded = load_mlp(save_mlp(single, sae, tmp_path, {}), sae)
    assert all(torch.equal(a, b) for a, b in zip(single.encode(x.float()), loaded.encode(x.float()), strict=True))


def test_an_mlp_begins_as_the_encoder_where_it_is_wide_enough(work):
    from splinterp.train.mlp import MlpConfig, begin

    sae, x, norms = random_sae(), held_out(work), random_sae().W_dec.norm(dim=1)
    want = sae.pre_activations(x) * norms
    for hidden, close in ((2 * D_IN, True), (2 * D_IN + 5, True), (D_IN, False)):
        mlp = begin(sae, torch.ones(D_IN), 2.0, K, MlpConfig(hidden=hidden, rows=1)).fold_normalisation(
            torch.ones(D_IN), 2.0, norms
        )
        pre = torch.addmm(mlp.b_2, torch.addmm(mlp.b_1, x, mlp.W_1).relu(), mlp.W_2)
        assert ((pre - want).abs().max() <= 1e-3 * want.abs().max()) == close


def test_a_run_that_makes_room_takes_its_mlps_with_it(trained, tmp_path):
    import shutil

    from splinterp.train import remove_run

    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "run.json").write_text("{}")
    remove_run(run)
    assert not run.exists()
