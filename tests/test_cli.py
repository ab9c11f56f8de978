"""The command line as a user meets it: what it prints, its exit codes, its sentences."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
import zarr
from rich.console import Console
from splinterp.cli import main
from splinterp.errors import SplinterpError
from splinterp.quantities import counted, format_bytes, format_count, format_seconds, parse_bytes, parse_quantity


@pytest.fixture(scope="module")
def work(tmp_path_factory, gpt2_dir, jsonl):
    """A folder with a harvested store and a trained run, made through the command line itself."""
    folder = tmp_path_factory.mktemp("cli")
    for arguments in (
        ["harvest", "--model", gpt2_dir, "--layer", 1, "--layer", 2, "--dataset", jsonl, "--tokens", "2k", "--context", 16,
         "--dtype", "float32", "--out", folder / "acts.zarr"],
        ["train", "--store", folder / "acts.zarr", "--site", "blocks.1.hook_resid_post", "--latents", 64, "--k", 4, "--out", folder / "run"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        assert not end.value.code
    return folder


def sentence(result: tuple[int, str, str]) -> str:
    """The message of a command that failed as it should: exit code 1, one or two lines, no traceback."""
    code, _, err = result
    assert code == 1
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert 1 <= len(lines) <= 2, err
    assert lines[-1].rstrip().endswith((".", "run", "latents"))
    return " ".join(lines)


def test_help_is_fast_and_imports_nothing_heavy():
    """Fast in time of its own, and in the best of a few tries: on a busy machine anything takes long."""
    probe = "import sys, time; t = time.process_time(); from splinterp.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass\n"
    probe += "print(time.process_time() - t < 0.5, sorted(m for m in ('torch', 'transformer_lens', 'zarr', 'transformers', 'numpy', 'datasets') if m in sys.modules))"
    for _ in range(5):
        out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
        if out.strip().endswith("True []"):
            break
    assert out.strip().endswith("True []")
    for command in ("harvest", "import", "info", "verify", "copy", "train", "eval", "geometry", "spectrum", "demo"):
        assert re.search(rf"\b{command}\b", out), command


def test_harvest_and_train_leave_their_files(work):
    assert (work / "acts.zarr" / "zarr.json").is_file()
    for name in ("cfg.json", "sae_weights.safetensors", "run.json", "metrics.jsonl", "summary.json"):
        assert (work / "run" / name).is_file(), name


def test_geometry_and_spectrum_of_a_models_activations(cli, work):
    told = [work / "run", "--store", work / "acts.zarr", "--json"]
    code, out, err = cli("geometry", *told, "--split", "all")
    assert code == 0, err
    found = json.loads(out)
    assert (found["verified"], found["generators"], found["k"]) == (1.0, 64, 4)
    assert found["tied"] < found["n_rows"] / 10
    code, out, err = cli("spectrum", "--sae", *told, "--regions", 8)
    assert code == 0, err
    kmeans, pca, sae = json.loads(out)["entries"]
    assert pca["fvu"] < kmeans["fvu"]
    assert sae["bits"] == pytest.approx(math.log2(math.comb(64, 4)) + 4 * 8)
    other = ["--store", work / "acts.zarr", "--site", "blocks.9.hook_resid_post"]
    assert "has no site" in sentence(cli("geometry", work / "run", *other))
    assert "has no site" in sentence(cli("spectrum", *other))
    assert cli("geometry", *told, "--split", "some")[0] == 2


def test_a_harvest_has_a_speed_where_a_forward_pass_was_timed(cli, gpt2_dir, jsonl, tmp_path):
    command = [*small_harvest(gpt2_dir, jsonl), "--tokens", 50, "--out", tmp_path / "acts.zarr", "--force"]
    for size, timed in ((4, False), (1, True)):
        code, out, err = cli(*command, "--batch-size", size)
        assert code == 0, err
        assert ("tokens/s" in out) == timed


def test_harvest_takes_every_setting_of_its_text(cli, gpt2_dir, jsonl, tmp_path):
    (tmp_path / "other.jsonl").write_text('{"ids": [9, 8, 7, 1]}\n' * 30)
    arguments = ["harvest", "--model", gpt2_dir, "--layer", 0, "--tokens", 50, "--context", 16, "--out", tmp_path / "s.zarr"]
    mixture = ["--dataset", f"{tmp_path / 'other.jsonl'}::0.3", "--dataset", f"{tmp_path / 'other.jsonl'}::0.7"]
    settings = ["--tokens-column", "ids", "--packing", "document", "--skip-token", 8, "--skip-special"]
    code, out, err = cli(*arguments, *mixture, *settings)
    assert code == 0, err
    assert "one document a row, cut off at 16 tokens" in out
    told = json.loads((tmp_path / "s.zarr" / "zarr.json").read_text())["attributes"]["splinterp"]
    assert told["dataset"] == [f"{tmp_path / 'other.jsonl'}::{weight}" for weight in (0.3, 0.7)]
    assert (told["tokens_column"], told["packing"], told["skipped_token_ids"]) == ("ids", "document", [0, 1, 8])
    assert "no file or directory nowhere.jsonl" in sentence(cli(*arguments, "--force", "--dataset", "nowhere.jsonl::2"))


def test_info_json_has_the_keys_of_the_contract(cli, work):
    code, out, _ = cli("info", work / "acts.zarr", "--json")
    facts = json.loads(out)
    assert code == 0
    assert {"sites", "model", "dataset", "context", "status"} <= set(facts)
    assert (
        facts["sites"][0] | {"name": "blocks.1.hook_resid_post", "rows": 2000, "d": 32, "dtype": "float32"} == facts["sites"][0]
    )
    assert facts["status"] == "complete"
    assert facts["context"] == 16
    code, out, _ = cli("info", work / "acts.zarr")
    assert code == 0
    assert "2,000 rows" in out


def test_info_shows_names_whole_in_a_narrow_terminal(cli, work, monkeypatch):
    monkeypatch.setattr("splinterp.cli.out_console", Console(width=40))
    code, out, err = cli("info", work / "acts.zarr")
    assert code == 0, err
    assert "…" not in out
    assert all(re.search(rf"│ blocks\.{i}\.hook_resid_post +│", out) for i in (1, 2))


def test_verify_says_whole(cli, work):
    for arguments in ([], ["--full"]):
        code, out, _ = cli("verify", work / "acts.zarr", *arguments)
        assert code == 0
        assert "is whole" in out


def test_eval_json_has_the_keys_of_the_contract_and_the_figures_of_the_run(cli, work):
    code, out, _ = cli("eval", work / "run", "--store", work / "acts.zarr", "--json")
    figures = json.loads(out)
    assert code == 0
    assert set(figures) == {"fvu", "explained_variance", "mse", "l0", "dead_fraction", "n_rows", "encoder"}
    summary = json.loads((work / "run" / "summary.json").read_text())
    assert figures["fvu"] == pytest.approx(summary["fvu"], rel=1e-4)
    assert figures["encoder"] == "native"


def test_eval_with_a_model_adds_cross_entropies(cli, work, gpt2_dir):
    code, out, _ = cli("eval", work / "run", "--store", work / "acts.zarr", "--model", gpt2_dir, "--tokens", 500, "--json")
    figures = json.loads(out)
    assert code == 0
    assert {"ce_clean", "ce_spliced", "ce_ablated", "ce_recovered"} <= set(figures)
    assert figures["ce_clean"] > 0


def test_train_takes_every_setting_into_run_json(cli, work, tmp_path):
    code, _, err = cli(
        "train", "--store", work / "acts.zarr", "--site", "blocks.2.hook_resid_post", "--out", tmp_path / "r", "--expansion", 2, "--k", 3,
        "--tokens", "1k", "--batch-size", 100, "--lr", "1e-3", "--encoder-steps", 2, "--mu-enc", 0.1, "--nu-enc", 0.2, "--mu-dec", 0.3,
        "--nu-dec", 0.4, "--alpha", 0.5, "--beta", 0.6, "--ridge", "0.01", "--solve-only", "--solve-every", 3, "--memory-rows", 900,
        "--no-last-solve", "--memory", "1GiB", "--seed", 7, "--k-start", 20, "--k-anneal", 0.5, "--warmup", 0.1, "--decay", 0.2,
        "--activation", "jumprelu", "--l0", 2, "--bandwidth", 0.3, "--revive", "resample",
    )  # fmt: skip
    assert code == 0, err
    settings = json.loads((tmp_path / "r" / "run.json").read_text())["settings"]
    expected = {
        "d_sae": 64, "k": 3, "rows": 1000, "batch_size": 100, "lr": 1e-3, "encoder_steps": 2, "mu_enc": 0.1, "nu_enc": 0.2, "mu_dec": 0.3,
        "nu_dec": 0.4, "alpha": 0.5, "beta": 0.6, "ridge": 0.01, "decoder_steps": False, "solve_every": 3, "memory_rows": 900,
        "last_solve": False, "memory": 2**30, "seed": 7, "k_start": 20, "k_anneal": 0.5, "warmup": 0.1, "decay": 0.2,
        "activation": "jumprelu", "l0": 2.0, "bandwidth": 0.3, "revive": "resample",
    }  # fmt: skip
    assert settings | expected == settings


def test_import_then_train(cli, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32))
    assert cli("import", tmp_path / "x.npy", "--out", tmp_path / "x.zarr", "--site", "mine")[0] == 0
    code, out, err = cli("train", "--store", tmp_path / "x.zarr", "--out", tmp_path / "run", "--k", 4, "--method", "adam")
    assert code == 0, err
    assert "FVU" in out
    code, out, _ = cli("eval", tmp_path / "run", "--store", tmp_path / "x.zarr", "--split", "train")
    assert code == 0
    assert "fvu" in out


def test_an_import_tells_what_its_dtype_costs(cli, tmp_path):
    x = np.random.default_rng(0).standard_normal((300, 8))
    x[:5] *= 1e6
    np.save(tmp_path / "x.npy", x)
    zarr.save_array(tmp_path / "z.zarr", x)

    def said(*arguments) -> str:
        code, out, err = cli("import", *arguments, "--out", tmp_path / "s.zarr", "--force")
        assert code == 0, err
        return " ".join(out.split())

    for file in ("x.npy", "z.zarr"):
        assert said(tmp_path / file).endswith(". The files' float64 became float32.")
        assert "float64" not in said(tmp_path / file, "--dtype", "float32")
        assert "295 rows, " in (narrow := said(tmp_path / file, "--dtype", "float16"))
        assert "5 rows left out, as not finite (in float16)." in narrow
    np.save(tmp_path / "x.npy", x[:5])
    told = sentence(cli("import", tmp_path / "x.npy", "--out", tmp_path / "none.zarr", "--dtype", "float16"))
    assert "All 5 rows that came are left out, as not finite (in float16), so" in told


def test_force_replaces_a_run_and_nothing_else_does(cli, work, tmp_path):
    arguments = [
        "train",
        "--store",
        work / "acts.zarr",
        "--site",
        "blocks.1.hook_resid_post",
        "--out",
        tmp_path / "r",
        "--k",
        2,
        "--tokens",
        500,
    ]
    assert cli(*arguments)[0] == 0
    before = (tmp_path / "r" / "summary.json").read_bytes()
    assert "exists already" in sentence(cli(*arguments))
    assert (tmp_path / "r" / "summary.json").read_bytes() == before
    assert cli(*arguments, "--force", "--seed", 3)[0] == 0
    assert (tmp_path / "r" / "summary.json").read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "not a run directory" in sentence(cli(*arguments[:-6], "--out", tmp_path / "mine", "--force"))
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_a_bad_setting_does_not_cost_the_run_it_would_replace(cli, work, tmp_path):
    arguments = [
        "train",
        "--store",
        work / "acts.zarr",
        "--site",
        "blocks.1.hook_resid_post",
        "--out",
        tmp_path / "r",
        "--tokens",
        500,
    ]
    assert cli(*arguments, "--k", 2)[0] == 0
    assert "k=900 must be between 1 and the number of latents, 256" in sentence(cli(*arguments, "--k", 900, "--force"))
    assert (tmp_path / "r" / "summary.json").is_file()


def test_every_likely_mistake_has_its_sentence(cli, work, gpt2_dir, jsonl, tmp_path):
    acts = work / "acts.zarr"
    harvest = [
        "harvest",
        "--model",
        gpt2_dir,
        "--dataset",
        jsonl,
        "--tokens",
        100,
        "--context",
        16,
        "--out",
        tmp_path / "new.zarr",
    ]
    assert "layers 0..3; asked for 9" in sentence(cli(*harvest, "--layer", 9))
    assert "no layer" in sentence(cli(*harvest)).lower()
    assert "resid_pre, attn_z, attn_out, resid_mid, mlp_in, mlp_post, mlp_out, resid_post" in sentence(
        cli(*harvest, "--layer", 1, "--hook", "residual")
    )
    assert "exists already" in sentence(cli(*harvest[:-1], acts, "--layer", 1))
    assert not (tmp_path / "new.zarr").exists()
    assert "missing.txt" in sentence(
        cli(
            "harvest",
            "--model",
            gpt2_dir,
            "--layer",
            1,
            "--dataset",
            tmp_path / "missing.txt",
            "--context",
            16,
            "--out",
            tmp_path / "n.zarr",
        )
    )
    assert (
        "no model directory"
        in sentence(cli("harvest", "--model", tmp_path / "no-model", "--layer", 1, "--out", tmp_path / "n.zarr")).lower()
    )

    train = ["train", "--out", tmp_path / "run", "--store"]
    assert "There is no store at" in sentence(cli(*train, tmp_path / "none.zarr"))
    (tmp_path / "folder").mkdir()
    assert "is not a store" in sentence(cli(*train, tmp_path / "folder"))
    both = sentence(cli(*train, acts))
    assert "blocks.1.hook_resid_post" in both
    assert "blocks.2.hook_resid_post" in both
    assert "blocks.2.hook_resid_post" in sentence(cli(*train, acts, "--site", "blocks.7.hook_resid_post"))
    one = [*train, acts, "--site", "blocks.1.hook_resid_post"]
    assert "k=65 must be between 1 and the number of latents, 64" in sentence(cli(*one, "--latents", 64, "--k", 65))
    assert "--method sgd" in sentence(cli(*one, "--method", "sgd"))
    assert "no device" in sentence(cli(*one, "--device", "cuda:99" if not torch.cuda.is_available() else "nonsense")).lower()
    assert not (tmp_path / "run").exists()

    assert "no SAE at" in sentence(cli("eval", tmp_path / "no-run", "--store", acts))
    assert "is not an SAE" in sentence(cli("eval", tmp_path / "folder", "--store", acts))
    assert "There is no store at" in sentence(cli("info", tmp_path / "none.zarr"))
    np.save(tmp_path / "w.npy", np.zeros((300, 5), np.float32))
    assert cli("import", tmp_path / "w.npy", "--out", tmp_path / "w.zarr")[0] == 0
    assert "width 32" in sentence(cli("eval", work / "run", "--store", tmp_path / "w.zarr", "--site", "imported"))
    assert "missing.npy" in sentence(cli("import", tmp_path / "missing.npy", "--out", tmp_path / "m.zarr"))


def small_harvest(model, text):
    """Of 2,000 rows; --out is left to the caller."""
    return ["harvest", "--model", model, "--layer", 1, "--dataset", text, "--tokens", "2k", "--context", 16]


def test_a_dry_run_says_what_it_will_take_and_writes_nothing(cli, gpt2_dir, jsonl, tmp_path):
    out = tmp_path / "acts.zarr"
    command = [*small_harvest(gpt2_dir, jsonl), "--out", out]
    code, said, _ = cli(*command, "--dry-run", "--memory", "100MB")
    assert code == 0
    assert "2,000 rows a site" in said
    assert "rows/s in the forward pass" in said
    assert "free on the disk" in said
    assert not out.exists()
    assert "not a size in bytes" in sentence(cli(*command, "--memory", "much"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("sites", [["--layer", 1], ["--layer", 0, "--layer", 3, "--hook", "mlp_post", "--hook", "resid_pre"]])
def test_the_plan_told_beforehand_is_what_the_store_takes(cli, gpt2_dir, jsonl, tmp_path, dtype, sites):
    """Rows, bytes and time; a harvest prints its plan before it begins, and the dry run's is the same."""
    out = tmp_path / "acts.zarr"
    command = [
        "harvest",
        "--model",
        gpt2_dir,
        *sites,
        "--dataset",
        jsonl,
        "--tokens",
        2999,
        "--context",
        16,
        "--dtype",
        dtype,
        "--out",
        out,
    ]
    code, dry, _ = cli(*command, "--dry-run")
    assert code == 0
    assert re.search(r"rows/s in the forward pass: about .*\d+(\.\d+)? (s|min)", dry)
    code, said, _ = cli(*command)
    assert code == 0
    told = re.search(r"2,999 rows a site in \w+, at most (\S+ \S+) in chunks of [\d,]+ rows", dry)
    assert told
    assert told[0] in said.split(": 2,999 rows,")[0]  # before what is said of the finished store
    found = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    beside = sum(path.stat().st_size for path in (out / "tokenizer").iterdir()) + 2**16  # metadata and manifest
    predicted = parse_bytes(told[1])
    assert predicted * 0.98 - 1024 <= found <= predicted * 1.02 + beside


def test_a_disk_without_room_is_told_before_the_model_is_loaded(cli, gpt2_dir, jsonl, tmp_path, monkeypatch):
    plan, run = (
        import_module(f"splinterp.harvest.{name}") for name in ("plan", "run")
    )  # the package's own names are functions
    monkeypatch.setattr(plan, "free_bytes", lambda out: 10_000)
    monkeypatch.setattr(run, "load_tokenizer", lambda *_, **__: pytest.fail("begun"))
    command = [*small_harvest(gpt2_dir, jsonl), "--out", tmp_path / "acts.zarr"]
    told = sentence(cli(*command))
    assert "free; give fewer --tokens" in told
    assert not (tmp_path / "acts.zarr").exists()
    monkeypatch.undo()
    assert cli(*command)[0] == 0
    monkeypatch.setattr(plan, "free_bytes", lambda out: 10_000)
    assert cli(*command, "--force")[0] == 0  # what is replaced is room


def test_an_interrupted_harvest_is_told_and_resumes(cli, gpt2_dir, jsonl, tmp_path, monkeypatch):
    from splinterp.harvest import forward

    command = [*small_harvest(gpt2_dir, jsonl), "--batch-size", 4]
    assert cli(*command, "--out", tmp_path / "whole.zarr")[0] == 0
    real, calls = forward.SiteReader.read, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(forward.SiteReader, "read", interrupted)
    told = sentence(cli(*command, "--out", tmp_path / "acts.zarr"))
    stored = re.search(r"with (\d+) of 2000 rows stored", told)
    assert "--resume" in told
    assert stored
    monkeypatch.undo()
    assert "--resume" in sentence(cli("train", "--store", tmp_path / "acts.zarr", "--out", tmp_path / "run"))
    assert cli("verify", tmp_path / "acts.zarr")[0] == 1
    assert f"no rows yet, beside {int(stored[1]):,} kept for a resume" in sentence(cli("info", tmp_path / "acts.zarr"))
    assert cli(*command, "--out", tmp_path / "acts.zarr", "--resume")[0] == 0
    from splinterp import store as stores

    whole, resumed = (stores.open(tmp_path / f"{name}.zarr") for name in ("whole", "acts"))
    assert resumed.fingerprint == whole.fingerprint


def test_an_interrupted_run_is_told_and_resumes(cli, work, tmp_path, monkeypatch):
    from splinterp.train import pam

    command = ["train", "--store", work / "acts.zarr", "--site", "blocks.1.hook_resid_post", "--latents", 64, "--k", 4]
    real = pam.PAM.step

    def interrupted(self, x, lr, rows):
        figures = real(self, x, lr, rows)
        if self.batches == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return figures

    monkeypatch.setattr(pam.PAM, "step", interrupted)
    code, _, err = cli(*command, "--out", tmp_path / "run")
    assert (code, "Traceback" in err) == (1, False)
    assert "Stopping at step 3: writing a checkpoint of" in err
    assert "holds a checkpoint of step 3" in err
    assert "--resume" in err
    monkeypatch.undo()
    assert "begun with d_sae=64" in sentence(cli(*command, "--latents", 32, "--out", tmp_path / "run", "--resume"))
    assert cli(*command, "--resume")[0] == 2  # of which run?
    assert cli(*command, "--out", tmp_path / "run", "--resume")[0] == 0
    assert (tmp_path / "run" / "sae_weights.safetensors").read_bytes() == (
        work / "run" / "sae_weights.safetensors"
    ).read_bytes()
    assert "is finished" in sentence(cli(*command, "--out", tmp_path / "run", "--resume"))


SOLVED, STEPPED = (
    "without --last-solve or solves on the way (--solve-every); leave it out",
    "without --method pam; leave it out",
)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("--activation relu --k 4", "--k has no effect without --activation topk, batchtopk or jumprelu; leave it out"),
        ("--l1 1", "--l1 has no effect without --activation relu; leave it out"),
        ("--l0 1 --bandwidth 0.1", "--l0, --bandwidth have no effect without --activation jumprelu; leave them out"),
        ("--k-anneal 0.2", "--k-anneal has no effect without --k-start; leave it out"),
        ("--latents 64 --expansion 8", "--expansion has no effect beside --latents; leave it out"),
        ("--mu-enc 0", "--mu-enc has no effect without several --encoder-steps on a batch; leave it out"),
        ("--activation relu --pursuit 0", "--pursuit has no effect without --activation topk; leave it out"),
        ("--no-last-solve --alpha 1", f"--alpha has no effect {SOLVED}"),
        ("--method adam --mu-dec 0", f"--mu-dec has no effect {SOLVED}"),
        ("--method adam --nu-dec 1", f"--nu-dec has no effect {SOLVED}"),
        ("--method adam --alpha 1", f"--alpha has no effect {SOLVED}"),
        ("--method adam --no-last-solve --beta 1", f"--beta has no effect {SOLVED}"),
        ("--method adam --ridge 0.1", f"--ridge has no effect {SOLVED}"),
        ("--method adam --memory 1GiB", f"--memory has no effect {SOLVED}"),
        ("--method adam --last-solve --solve-only", f"--decoder-steps/--solve-only has no effect {STEPPED}"),
        ("--method adam --decoder-steps", f"--decoder-steps/--solve-only has no effect {STEPPED}"),
        ("--method adam --last-solve --solve-every 3", "--solve-every has no effect with --method adam; leave it out"),
        ("--method adam --memory-rows 3", "--memory-rows has no effect with --method adam; leave it out"),
        ("--sweep method=adam --sweep seed=0,1 --alpha 1", "--alpha has no effect in this sweep without --last-solve or"),
    ],
)
def test_an_option_without_effect_is_refused(cli, work, given, why):
    one = ["train", "--store", work / "acts.zarr", "--site", "blocks.1.hook_resid_post", "--out", work / "never"]
    assert why in sentence(cli(*one, *given.split()))
    assert not (work / "never").exists()


@pytest.mark.parametrize(
    "given",
    [
        "--method adam --last-solve --alpha 1 --beta 1 --mu-dec 1 --nu-dec 1 --ridge 0.1 --memory 1GiB",
        "--no-last-solve --solve-only --alpha 1 --ridge 0.1 --memory 1GiB --solve-every 2 --memory-rows 500",
        "--sweep method=pam,adam --alpha 1 --solve-every 2",
    ],
)
def test_an_option_with_an_effect_is_taken(cli, work, tmp_path, given):
    one = ["train", "--store", work / "acts.zarr", "--site", "blocks.1.hook_resid_post", "--latents", 64, "--tokens", 500]
    code, _, err = cli(*one, "--out", tmp_path / "out", *given.split())
    assert (code, err) == (0, "")


def test_usage_errors_exit_with_2(cli, work):
    assert cli("train")[0] == 2
    assert cli("harvest", "--tokens", "many")[0] == 2
    assert cli("train", "--store", work / "acts.zarr", "--site", "blocks.1.hook_resid_post", "--lr", "fast")[0] == 2
    assert cli("train", "--store", work / "acts.zarr", "--epochs", 1, "--tokens", 5)[0] == 2
    assert cli("nonsense")[0] == 2


@pytest.mark.parametrize(
    "arguments", [["train"], ["nonsense"], ["train", "--store", "s", "--epochs", 1, "--tokens", 5]], ids=str
)
@pytest.mark.parametrize(
    ("environment", "tells"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, False),
        ({"RANK": "1"}, True),
    ],
)
def test_of_several_ranks_the_first_tells_of_usage(cli, monkeypatch, environment, tells, arguments):
    waited = []
    monkeypatch.setattr("splinterp.cli.time.sleep", waited.append)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, out, err = cli(*arguments)
    assert (code, out, "Usage" in err, bool(err)) == (2, "", tells, tells)
    assert bool(waited) == (not tells)  # or torchrun might end the first before it has said so


def test_other_ranks_have_the_exit_codes_of_the_first(cli, work, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert cli("info", work / "acts.zarr")[0] == 0
    assert cli("--version")[0] == 0
    assert cli("info", work / "none.zarr")[0] == 1


def test_debug_shows_the_traceback(tmp_path):
    for arguments in (["--debug", "info", "nowhere.zarr"], ["info", "nowhere.zarr", "--debug"]):
        done = subprocess.run([sys.executable, "-m", "splinterp", *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1
        assert "Traceback" in done.stderr


def test_zero_is_not_auto(cli, work):
    one = ["train", "--store", work / "acts.zarr", "--site", "blocks.1.hook_resid_post", "--out", work / "never"]
    assert "lr=0" in sentence(cli(*one, "--lr", 0))
    assert cli(*one, "--epochs", 0)[0] == 2
    assert not (work / "never").exists()


def test_a_device_that_is_not_there_does_not_cost_the_run_it_would_replace(cli, work):
    before = (work / "run" / "summary.json").read_bytes()
    one = ["train", "--store", work / "acts.zarr", "--site", "blocks.1.hook_resid_post", "--out", work / "run", "--force"]
    assert "no device" in sentence(cli(*one, "--device", "nonsense"))
    assert "seed=-1" in sentence(cli(*one, "--seed", -1))
    assert (work / "run" / "summary.json").read_bytes() == before


def test_eval_never_takes_another_site_or_model_in_silence(cli, work, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((3000, 32)).astype(np.float32))
    assert cli("import", tmp_path / "x.npy", "--out", tmp_path / "x.zarr")[0] == 0
    other = ["eval", work / "run", "--store", tmp_path / "x.zarr"]
    assert "belongs to blocks.1.hook_resid_post" in sentence(cli(*other))
    assert cli(*other, "--site", "imported")[0] == 0
    told = cli(*other, "--site", "imported", "--model", "tiny", "--dataset", "stdlib", "--tokens", 100)
    assert "no hook imported" in sentence(told)


def test_ctrl_c_is_a_sentence_and_exit_code_1(tmp_path, work):
    """A real SIGINT, in a command that has no sentence of its own for it."""
    code = "import os, signal, splinterp.store as s; s.open = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
    code += "from splinterp.cli import main; main(['info', 'x.zarr'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (1, "Interrupted.")


def test_merge_and_subset(cli, work, tmp_path):
    assert cli("subset", work / "acts.zarr", "--out", tmp_path / "a.zarr", "--rows", 700)[0] == 0
    assert cli("subset", work / "acts.zarr", "--out", tmp_path / "b.zarr", "--position", 3, "--position", 5)[0] == 0
    code, out, _ = cli("merge", tmp_path / "a.zarr", tmp_path / "b.zarr", "--out", tmp_path / "c.zarr")
    assert code == 0
    from splinterp import store as stores

    a, b, c = (stores.open(tmp_path / f"{name}.zarr").rows for name in "abc")
    assert (a, c) == (700, a + b)
    assert "700" not in out or str(c) in out.replace(",", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [("10k", 10_000), ("1M", 10**6), ("2.5B", 2_500_000_000), ("20_000", 20_000), ("1,000", 1000), ("7", 7), ("0.5k", 500)],
)
def test_quantities(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["2.5", "1,5M", "0", "-3", "1e5", "ten", "", "k", "9" * 40])
def test_what_is_not_a_whole_number_is_refused(text):
    with pytest.raises(SplinterpError):
        parse_quantity(text)


def test_figures_read_well():
    assert format_count(999_999) == "1M"
    assert format_bytes(1010 * 2**20) == "1010 MiB"
    assert format_count(1_234_567) == "1.23M"
    assert format_bytes(3 * 2**30) == "3 GiB"
    assert format_seconds(4020) == "67 min"
    assert format_seconds(7500) == "2 h 05 min"


@pytest.mark.parametrize(
    ("n", "told"),
    [(1, "1 epoch"), (1.0, "1 epoch"), (125.0, "125 epochs"), (12_345, "12,345 epochs"), (12_345.6, "12,346 epochs"),
     (0.5, "0.5 epochs"), (999.97, "1000 epochs"), (37.04, "37.04 epochs"), (2e-5, "0.00002 epochs"), (0, "0 epochs")],
)  # fmt: skip
def test_counts_have_no_exponent_and_one_is_singular(n, told):
    assert counted(n, "epoch") == told


@pytest.mark.parametrize(
    ("text", "value"), [("1024", 1024), ("1GiB", 2**30), ("500 MB", 5 * 10**8), ("1.5k", 1500), ("20g", 2 * 10**10), ("7 b", 7)]
)
def test_sizes_in_bytes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "0", "much", "-1", "1 XB", "1iB", "0.1", "1e9", "9" * 40])
def test_what_is_no_size_is_told(text):
    with pytest.raises(SplinterpError, match="not a size in bytes"):
        parse_bytes(text)
