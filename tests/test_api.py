"""`import splinterp`: every command as one call, with the command's defaults and errors; packages that are functions too."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import logging
import subprocess
import sys
import typing

import pytest
import splinterp
import torch
import typer.main
from splinterp import store as stores
from splinterp.cli import app
from splinterp.errors import SplinterpError
from splinterp.train.doubts import doubts

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def store(tmp_path_factory, gpt2_dir, jsonl):
    out = tmp_path_factory.mktemp("api") / "acts.zarr"
    return splinterp.harvest(str(gpt2_dir), 1, dataset=str(jsonl), tokens=2000, context=16, dtype="float32", out=out)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    return splinterp.train(store, tmp_path_factory.mktemp("api") / "run", latents=64, k=4)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_it_imports_nothing_heavy():
    heavy = "[m for m in ('torch', 'numpy', 'zarr', 'transformers', 'typer', 'rich') if m in sys.modules]"
    assert python(f"import sys, splinterp; dir(splinterp); print({heavy})") == "[]"


ORDERS = [
    ["from splinterp import {0}", "from splinterp.{0} import {1}"],
    ["import splinterp", "f = splinterp.{0}", "import splinterp.{0}", "from splinterp.{0} import {1}", "{0} = splinterp.{0}"],
]


@pytest.mark.parametrize(
    ("name", "member"),
    [("train", "TrainConfig"), ("geometry", "survey")],
)
def test_a_package_can_be_called_in_whatever_order_it_was_imported(name, member):
    """In one process each: an import leaves its traces."""
    for order in (ORDERS[0], ORDERS[0][::-1], ORDERS[1]) if name == "train" else (ORDERS[1],):
        lines = "\n".join(order).format(name, member)
        told = f"import inspect, splinterp.api\nassert {name} is splinterp.{name} and callable({name}) and {name}.{member} is {member}\n"
        told += f"print(inspect.signature({name}) == inspect.signature(splinterp.api.{name}))"
        assert python(f"{lines}\n{told}") == "True"


def test_names_are_there_and_documented():
    for name in splinterp.__all__:
        assert inspect.getdoc(getattr(splinterp, name)), name
    assert {*splinterp.__all__} <= {*dir(splinterp)}
    assert {*splinterp.api.__all__} <= {*splinterp.__all__}
    with pytest.raises(AttributeError, match="no attribute 'harvets'"):
        splinterp.harvets  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "options", "elsewhere"),
    [
        ("splinterp.train.settings.TrainSettings", "splinterp.train.settings.TrainOptions", set()),
        (
            "splinterp.harvest.config.HarvestSettings",
            "splinterp.harvest.config.HarvestConfig",
            {"model", "layers", "hooks", "dataset"},
        ),
    ],
)
def test_settings_are_those_of_the_dataclass(settings, options, elsewhere):
    def load(name):
        module, _, member = name.rpartition(".")
        return getattr(__import__(module, fromlist=[member]), member)

    of_class = {name: hint for name, hint in typing.get_type_hints(load(options)).items() if name not in elsewhere}
    assert typing.get_type_hints(load(settings)) == of_class


# What a command's option is called in Python, and what a default of the command line stands for there.
RENAMED = {
    "layer": "layers", "hook": "hooks", "skip_token": "skip_tokens", "compile_blocks": "compile",
}  # fmt: skip
SAME = {"auto": None, None: (), "1GiB": 2**30}
DEFAULTS = {"hooks": "resid_post"}  # that a command's option only tells of
ONLY_COMMANDS = {"as_json", "dry_run", "context", "sweep"}
COMMANDS = {
    "harvest": "harvest", "import": "import_activations", "train": "train", "eval": "evaluate", "encode": "encode", "gap": "gap", "mlp": "mlp",
    "refit": "refit", "geometry": "geometry", "spectrum": "spectrum",
}  # fmt: skip


@pytest.mark.parametrize(("command", "function"), COMMANDS.items())
def test_defaults_are_the_commands(command, function):
    called = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    taken = {
        name: parameter.default for name, parameter in inspect.signature(getattr(splinterp.api, function)).parameters.items()
    }
    if "settings" in taken:
        from splinterp.harvest import HarvestConfig
        from splinterp.train import TrainOptions

        fields = dataclasses.fields(HarvestConfig if function == "harvest" else TrainOptions)
        taken = {field.name: field.default for field in fields} | taken
    for parameter in called.params:
        name = RENAMED.get(parameter.name, parameter.name)
        name = {("gap", "encoder"): "encoders", ("spectrum", "sae"): "saes"}.get((command, name), name)
        if name in ONLY_COMMANDS and not (command == "harvest" and name == "context"):
            continue
        assert name in taken, name
        if parameter.required:
            continue
        told, ours = DEFAULTS.get(name, parameter.default), taken[name]
        assert ours == told or ours == SAME.get(told, told) or str(ours) == str(told), name


def test_harvest_train_and_evaluate_do_what_the_commands_do(store, run, cli, tmp_path):
    assert (store.rows, list(store.sites)) == (2000, [SITE])
    summary = json.loads((run.directory / "summary.json").read_text())
    figures = splinterp.evaluate(run, store)
    assert figures["fvu"] == pytest.approx(summary["fvu"], rel=1e-4)
    code, out, err = cli("eval", run.directory, "--store", store.path, "--json")
    assert code == 0, err
    assert json.loads(out) == pytest.approx(figures)
    assert splinterp.evaluate(run.sae, str(store.path)) == figures  # an SAE in memory, and a path
    assert cli("train", "--store", store.path, "--latents", 64, "--k", 4, "--out", tmp_path / "same")[0] == 0
    same = splinterp.load_sae(tmp_path / "same")
    assert torch.equal(same.W_dec, run.sae.W_dec)


def test_evaluate_with_a_model_and_another_encoder(store, run, gpt2_dir):
    figures = splinterp.evaluate(run, store, encoder="omp", k=2, model=str(gpt2_dir), tokens=300)
    assert figures["l0"] <= 2
    assert figures["encoder_settings"]["k"] == 2
    assert figures["ce_clean"] < 20


def test_rows_that_another_store_deals_out_otherwise_are_told(store, run, tmp_path, caplog):
    """Of a subset's held-out rows most were trained on."""
    part = stores.subset(store.path, tmp_path / "part.zarr", rows=1500)
    calls = (
        lambda rows: splinterp.evaluate(run, rows), lambda rows: splinterp.gap(run, rows, encoders=["omp"], rows=64),
        lambda rows: splinterp.spectrum(rows, [run], regions=2, epochs=1),
        lambda rows: splinterp.refit(run, rows, tmp_path / f"refit-{rows.rows}"),
    )  # fmt: skip
    for call in calls:
        caplog.clear()
        call(store)
        assert "is not the store that" not in caplog.text
        call(part)
        assert "is not the store that" in caplog.text


@pytest.mark.parametrize("extra", [{"tokens": 300}, {"dataset": "/no/such/file"}])
def test_text_without_a_model_is_refused(store, run, extra):
    with pytest.raises(SplinterpError, match="has no effect without --model"):
        splinterp.evaluate(run, store, **extra)


def test_another_model_than_the_rows_is_told(store, run, saved, tmp_path, gpt2_dir, caplog):
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    splinterp.evaluate(run, store, model=str(saved(other, tmp_path / "other", seed=5)), tokens=200)
    assert "are of the model" in caplog.text


def test_what_cannot_be_is_said_in_python_too(store, tmp_path, caplog):
    with pytest.raises(SplinterpError, match="what it goes through"):
        splinterp.sweep(store, "sw", k=[4, 8])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"no setting 'latnets' of a training.*Did you mean latents"):
        splinterp.train(store, tmp_path / "x", latnets=8)  # pyright: ignore[reportCallIssue]
    made = splinterp.train(store, tmp_path / "typo", latents=32, k=2, resume=True)
    assert "nothing to go on with" in caplog.text
    assert len(repr(made.sae)) < 100


def test_an_sae_that_explains_nothing_is_told(store, tmp_path, caplog):
    made = splinterp.train(store, tmp_path / "dead", method="adam", latents=16, k=2, lr=1e5, last_solve=False)
    assert made.summary["fvu"] > 1
    assert "explains nothing of the held-out rows" in caplog.text
    assert "fires on any held-out row" in doubts({**made.summary, "dead_fraction": 1.0})[0]
    assert doubts({"fvu": 0.5, "dead_fraction": 0.9, "last_solve": {"warning": None}}) == []


def test_every_other_command_is_a_call(store, run, tmp_path):
    seen = []
    codes = splinterp.encode(run, store, tmp_path / "codes.zarr", progress=lambda *told: seen.append(told))
    assert codes.shape == (2000, 64)
    assert seen[-1] == ("encode", 2000, 2000, {})
    again = splinterp.refit(run, store, tmp_path / "refit")
    assert again.summary["fvu"] <= run.summary["fvu"] + 1e-9
    report = splinterp.gap(run.sae, store, tmp_path / "gap", rows=64, k=2, encoders=["mp"])
    assert (tmp_path / "gap" / "gap.svg").read_text() == report.picture.svg
    assert report.as_json()["n_rows"] == 64
    assert splinterp.mlp(run, store, width=8, epochs=1).path.parent == run.directory
    assert splinterp.evaluate(run, store, encoder="mlp")["encoder"] == "mlp"
    assert splinterp.geometry(run, store, rows=32)["n_rows"] == 32
    assert len(splinterp.spectrum(store, run, tmp_path / "spectrum.svg", regions=2)["entries"]) == 3
    assert (tmp_path / "spectrum.svg").read_text().startswith("<svg")
    results = splinterp.sweep(store, {"k": [2, 3], "decoder_steps": [True]}, tmp_path / "sweep", latents=32)
    assert [one.member.name for one in results] == ["k=2,decoder-steps=yes", "k=3,decoder-steps=yes"]
    compared = splinterp.compare(run, tmp_path / "sweep", tmp_path / "refit")
    assert len(compared.runs) == 4
    assert "<svg" in compared._repr_html_()
    picture = splinterp.plot(compared, against="l0")
    assert picture.save(tmp_path / "p.svg").read_text().startswith("<svg")
    assert splinterp.plot(report) == report.picture
    assert splinterp.plot(run, tmp_path / "refit").svg == splinterp.compare(run, tmp_path / "refit").picture().svg


def test_importing_rows(tmp_path):
    import numpy as np

    np.save(tmp_path / "x.npy", np.ones((300, 4), np.float32))
    for i, files in enumerate((tmp_path / "x.npy", [tmp_path / "x.npy"])):
        assert splinterp.import_activations(files, tmp_path / f"{i}.zarr", site="s").sites["s"].rows == 300
    assert splinterp.open_store(tmp_path / "0.zarr").rows == 300


def test_sentences_go_to_the_log_and_errors_are_splinterps(store, run, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "splinterp"):
        splinterp.evaluate(run, store, encoder="fista")
    assert "chosen on" in caplog.text
    heard = []
    splinterp.evaluate(run, store, encoder="fista", tell=heard.append)
    assert heard
    for wrong in (
        lambda: splinterp.load_sae(tmp_path / "nowhere"),
        lambda: splinterp.evaluate(run, store, split="some"),
        lambda: splinterp.evaluate(run, store, encoder="none"),
        lambda: splinterp.evaluate(run.sae, store, encoder="mlp"),
        lambda: splinterp.mlp(run.sae, store),
        lambda: splinterp.train(store, run.directory),
        lambda: splinterp.train(store, tmp_path / "r", tokens=10, epochs=2),
        lambda: splinterp.sweep(store, {}, tmp_path / "r"),
        lambda: splinterp.sweep(store, {"sight": ["far"]}, tmp_path / "r"),
        lambda: splinterp.encode(run, store, "memory://codes/c"),
        lambda: splinterp.harvest("tiny", -1, out=tmp_path / "s"),
        lambda: splinterp.compare(tmp_path / "nowhere"),
        lambda: splinterp.plot(run, against="weather"),
        lambda: splinterp.plot(splinterp.compare(run), run),
    ):
        with pytest.raises(SplinterpError):
            wrong()
    assert not (tmp_path / "r").exists()
    with pytest.raises(TypeError, match="latent"):
        splinterp.train(store, tmp_path / "r", latent=3)
    assert list(itertools.chain(tmp_path.iterdir())) == []
