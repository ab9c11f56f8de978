"""What is promised in SECURITY.md: nothing is unpickled, nothing leads out, no shell, no network and no foreign code unless asked."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import splinterp
import torch
import zarr
from splinterp import store
from splinterp.errors import ModelError, SAEError, SplinterpError, StoreError, TextError
from splinterp.harvest import HarvestConfig, harvest
from splinterp.harvest.column import Column
from splinterp.harvest.formats import file_documents
from splinterp.infer.mlp import load_mlp
from splinterp.report.runs import read_runs
from splinterp.sae import SAE, SAEConfig, load_sae, save_sae
from splinterp.service.catalogue import Catalogue, run_at
from splinterp.service.paths import Root
from splinterp.service.progress import run_progress
from splinterp.train.checkpoint import read_checkpoint
from splinterp.train.sweep_directory import begun, remove_sweep

PACKAGE = Path(splinterp.__file__).parent
SOURCES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if not {"tests", "build", "tools"} & set(path.relative_to(PACKAGE).parts) and ".venv" not in str(path)
)
OUTSIDE = ["..", ".", "", "../outside", "/etc", "a/../../outside", "a/b", "\\\\host\\share", "nul\0"]


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


@pytest.fixture
def bomb(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    yield Bomb()
    assert not (tmp_path / "exploded").exists()


def test_the_bomb_is_one(tmp_path, monkeypatch):
    """Or nothing of what follows would prove a thing."""
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "exploded").is_dir()


def an_sae(path: Path) -> SAE:
    sae = SAE(SAEConfig("topk", 2, 3, 1), torch.ones(2, 3), torch.zeros(3), torch.ones(3, 2), torch.zeros(2))
    save_sae(sae, path)
    return sae


def test_no_file_of_ours_may_be_a_pickle(bomb, tmp_path, gpt2_dir):
    """Whatever we load, given a pickle in its place."""
    pickled = pickle.dumps(bomb)
    sae = an_sae(tmp_path / "sae")
    for name in ("sae_weights.safetensors", "cfg.json"):
        shutil.copytree(tmp_path / "sae", tmp_path / f"of-{name}")
        (tmp_path / f"of-{name}" / name).write_bytes(pickled)
        with pytest.raises(SAEError):
            load_sae(tmp_path / f"of-{name}")
    (tmp_path / "encoder-mlp-4.safetensors").write_bytes(pickled)
    (tmp_path / "encoder-mlp-4.json").write_text(json.dumps({"k": 1, "signed": False, "decoder": "", "hidden": 4}))
    with pytest.raises(SAEError):
        load_mlp(tmp_path / "encoder-mlp-4.safetensors", sae)
    (tmp_path / "checkpoint.safetensors").write_bytes(pickled)
    with pytest.raises(SplinterpError):
        read_checkpoint(tmp_path / "checkpoint.safetensors")
    for suffix in (".npy", ".npz", ".pt", ".pth", ".safetensors", ".idx"):
        (tmp_path / f"x{suffix}").write_bytes(pickled)
        with pytest.raises(StoreError):
            store.import_files([tmp_path / f"x{suffix}"], tmp_path / "out.zarr")
    np.save(tmp_path / "ids.npy", np.array([bomb], dtype=object), allow_pickle=True)
    for name in ("ids.npy", "x.npy"):
        with pytest.raises(TextError):
            list(file_documents([(name, tmp_path / name)], Column("text", tokens=True)))


def test_a_model_s_pickled_weights_are_not_loaded(bomb, tmp_path, gpt2_dir):
    shutil.copytree(gpt2_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"transformer.wte.weight": bomb}, tmp_path / "model" / "pytorch_model.bin")
    config = HarvestConfig(
        model=str(tmp_path / "model"), layers=(1,), dataset="stdlib", tokens=100, context=32, out=tmp_path / "acts.zarr"
    )
    with pytest.raises(ModelError, match="never pickles"):
        harvest(config)


@pytest.mark.parametrize("place", ["filters", "compressor", "object"])
def test_other_zarr_is_not_unpickled(bomb, tmp_path, place):
    """numcodecs has a codec that unpickles."""
    told = {
        "zarr_format": 2,
        "shape": [2, 2],
        "chunks": [2, 2],
        "dtype": "<f4",
        "order": "C",
        "fill_value": 0,
        "filters": None,
        "compressor": None,
    }
    told |= {"compressor": {"id": "pickle"}} if place == "compressor" else {"filters": [{"id": "pickle"}]}
    told |= {"dtype": "|O"} if place == "object" else {}
    path = tmp_path / "a.zarr"
    path.mkdir()
    (path / ".zarray").write_text(json.dumps(told))
    (path / "0.0").write_bytes(pickle.dumps(bomb))
    with pytest.raises(StoreError):
        store.open(path).acts(None, 0, 2)


def test_a_pickle_codec_that_zarr_lets_through_is_refused(tmp_path, monkeypatch):
    """zarr knows no float array with such a codec today, and says so first."""
    from splinterp.store import foreign_arrays

    zarr.create_array(tmp_path / "a", shape=(2, 2), dtype="f4", zarr_format=2, compressors=None)[:] = 1
    monkeypatch.setattr(foreign_arrays, "_PICKLES", ("blosc", "pickle"))
    assert store.open(tmp_path / "a").rows == 2
    zarr.create_array(tmp_path / "b", shape=(2, 2), dtype="f4", zarr_format=2)[:] = 1
    told = json.loads((tmp_path / "b" / ".zarray").read_text())
    (tmp_path / "b" / ".zarray").write_text(json.dumps(told | {"compressor": {"id": "blosc"}}))
    with pytest.raises(StoreError, match="pickled"):
        store.open(tmp_path / "b")


# Names in files.


def a_store(path: Path) -> None:
    with store.create(path, sites={"h": 2}, rows=4) as writer:
        writer.add({"h": torch.ones(4, 2)})
        writer.finish()


def renamed(path: Path, **changes: object) -> None:
    """A store whose root has other attributes, and a checksum that fits."""
    from splinterp.store.files import json_crc

    root = json.loads((path / "zarr.json").read_text())
    ours = root["attributes"]["splinterp"] | changes
    ours.pop("attributes_crc32c")
    root["attributes"]["splinterp"] = ours | {"attributes_crc32c": json_crc(ours)}
    (path / "zarr.json").write_text(json.dumps(root))


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_of_a_store_leads_out_of_it(tmp_path, name):
    a_store(tmp_path / "outside")
    for what in ({"sites": {name: 2}}, {"columns": [name]}):
        a_store(tmp_path / "acts.zarr")
        renamed(tmp_path / "acts.zarr", **what)
        with pytest.raises(StoreError, match="cannot be the name"):
            store.open(tmp_path / "acts.zarr")
        assert store.verify(tmp_path / "acts.zarr", full=True)
        (seen,) = [one for one in Catalogue(Root.at(tmp_path)).stores() if one.name == "acts.zarr"]
        assert (seen.health, seen.bytes) == ("damaged", 0)
        shutil.rmtree(tmp_path / "acts.zarr")
    with pytest.raises(StoreError, match="cannot be the name"):
        store.create(tmp_path / "new.zarr", sites={name: 2})
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    if name:  # an empty one is none given
        with pytest.raises(StoreError, match="cannot be the name"):
            store.import_files([tmp_path / "x.npy"], tmp_path / "new.zarr", site=name)
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize("kind", [2, 3])
def test_consolidated_metadata_lead_nowhere(tmp_path, kind):
    """A group's own list of what is in it is not believed."""
    zarr.create_array(tmp_path / "outside", shape=(2, 2), dtype="f4", zarr_format=kind, chunks=(2, 2))[:] = 7
    group = zarr.create_group(tmp_path / "g", zarr_format=kind)
    group.create_array("a", shape=(2, 2), dtype="f4", chunks=(2, 2))[:] = 1
    zarr.consolidate_metadata(tmp_path / "g", zarr_format=kind)
    file = tmp_path / "g" / (".zmetadata" if kind == 2 else "zarr.json")
    file.write_text(file.read_text().replace('"a/.zarray"', '"../outside/.zarray"').replace('"a":', '"../outside":'))
    assert list(store.open(tmp_path / "g").sites) == ["a"]
    assert float(store.open(tmp_path / "g").acts("a", 0, 1)[0, 0]) == 1


def a_sweep(path: Path, name: str) -> None:
    path.mkdir(parents=True)
    (path / "sweep.json").write_text(json.dumps({"state": "training", "started": "", "members": {name: {"settings": {}}}}))


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_of_a_sweep_leads_out_of_it(tmp_path, name):
    """--force removes the runs that the file names."""
    runs = tmp_path / "runs"
    a_sweep(runs / "sweep", name)
    for path in (tmp_path, tmp_path / "outside", runs, runs / "outside"):
        path.mkdir(exist_ok=True)
        (path / "run.json").write_text("{}")
        (path / "metrics.jsonl").write_text('{"rows": 1, "seconds": 1.0, "held_out_fvu": 0.5}\n')
    before = sorted(tmp_path.rglob("*"))
    for act in (lambda: remove_sweep(runs / "sweep"), lambda: begun(runs / "sweep"), lambda: read_runs([runs / "sweep"])):
        with pytest.raises(SplinterpError, match="damaged"):
            act()
    assert sorted(tmp_path.rglob("*")) == before
    assert run_progress(runs / "sweep").done is None
    seen = run_at(Root.at(runs), runs / "sweep")
    assert seen is not None
    assert seen.members == ()


def test_a_sweep_s_links_are_left_alone(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    a_sweep(tmp_path / "sweep", "k=1")
    (tmp_path / "sweep" / "k=1").symlink_to(tmp_path / "other")
    with pytest.raises(SplinterpError, match="is a link"):
        remove_sweep(tmp_path / "sweep")
    assert (tmp_path / "other" / "run.json").exists()


def test_a_member_of_an_archive_is_never_written_to_a_disk(tmp_path):
    """.npz and .pt are zip files: they are read where they are, whatever their members are called."""
    import zipfile

    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "../outside.npy")
    (tmp_path / "inside").mkdir()
    before = sorted(tmp_path.rglob("*"))
    opened = store.import_files([tmp_path / "x.npz"], tmp_path / "inside" / "acts.zarr")
    assert list(opened.sites) == ["imported"]
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "acts.zarr" not in path.parts] == []


@pytest.mark.parametrize("index", ["../outside.safetensors", "/etc/passwd"])
def test_an_index_of_weights_leads_out_of_nothing(tmp_path, gpt2_dir, index):
    shutil.copytree(gpt2_dir, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "outside.safetensors", "pt") as file:
        names = list(file.keys())
    told = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, index)}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(told))
    config = HarvestConfig(
        model=str(tmp_path / "model"), layers=(1,), dataset="stdlib", tokens=100, context=32, out=tmp_path / "acts.zarr"
    )
    with pytest.raises(ModelError):
        harvest(config)


@pytest.mark.parametrize("name", ["hf://a/b/../../c", "hf://../x", "hf:///etc/passwd", "hf://a", "hf://a/b@../../x"])
def test_no_name_on_the_hub_is_a_path(name):
    with pytest.raises(SAEError, match="names no SAE on the hub"):
        splinterp.load_sae(name)


# No shell, and no code of others.


def calls_in(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a file, by its dotted name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_there_is_no_shell_no_eval_and_no_pickle_in_the_package():
    assert len(SOURCES) > 200
    forbidden = {
        "eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pickle.load", "pickle.loads", "marshal.loads",
        "shelve.open", "joblib.load", "dill.loads", "yaml.load", "yaml.unsafe_load", "tarfile.open", "shutil.unpack_archive", "extractall",
    }  # fmt: skip
    for path in SOURCES:
        for name, call in calls_in(path):
            told = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert name not in forbidden, (path, name)
            assert not name.endswith((".extractall", ".extract")), (path, name)
            assert told.get("shell", "False") == "False", (path, name)
            assert told.get("allow_pickle", "False") == "False", (path, name)
            if name == "torch.load":
                assert told.get("weights_only") == "True", path
            if name == "np.load":
                assert told.get("allow_pickle") == "False", path
            assert told.get("trust_remote_code", "trust_remote_code") in (
                "trust_remote_code",
                "config.trust_remote_code",
                "False",
            ), path


def test_a_model_s_own_code_does_not_run_unless_it_is_trusted(tmp_path, gpt2_dir):
    model = tmp_path / "model"
    shutil.copytree(gpt2_dir, model)
    mark = tmp_path / "ran"
    (model / "own.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nfrom transformers import GPT2Config, GPT2LMHeadModel\n"
        "class OwnConfig(GPT2Config):\n    model_type = 'own'\nclass OwnModel(GPT2LMHeadModel):\n    config_class = OwnConfig\n"
    )
    told = json.loads((model / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    for kind in ("gpt2", "own"):
        (model / "config.json").write_text(json.dumps(told | {"model_type": kind, "auto_map": own}))
        config = HarvestConfig(
            model=str(model), layers=(1,), dataset="stdlib", tokens=100, context=32, out=tmp_path / f"{kind}.zarr"
        )
        if kind == "gpt2":  # transformers knows it by itself
            assert harvest(config).rows == 100
        else:
            with pytest.raises(ModelError, match="--trust-remote-code"):
                harvest(config)
    assert not mark.exists()
    # And the mark is one:
    with pytest.raises(SplinterpError):
        harvest(
            HarvestConfig(
                model=str(model),
                layers=(9,),
                dataset="stdlib",
                tokens=100,
                context=32,
                out=tmp_path / "t.zarr",
                trust_remote_code=True,
            )
        )
    assert mark.exists()


OFFLINE = """
import socket, sys

def refused(*arguments, **named):
    print("THE NETWORK WAS ASKED", arguments[-1:], file=sys.stderr)
    raise OSError("the network was asked")

real = socket.socket.connect
socket.socket.connect = lambda self, address: real(self, address) if self.family == socket.AF_UNIX else refused(address)
socket.socket.connect_ex = socket.socket.sendto = socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refused
"""


def test_nothing_asks_the_network_unless_it_is_named(tmp_path):
    """The demo's steps, shortened, with sockets that tell."""
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_")
    }  # offline of itself, and not by being told so
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    script = """
import socket
try:
    socket.getaddrinfo("localhost", 80)
except OSError:
    print("forbidden", flush=True)
from splinterp.cli import main
lines = '''harvest --tokens 1000 --out acts.zarr
train --store acts.zarr --latents 64 --k 4 --out run
eval run --store acts.zarr --model tiny --tokens 300
refit run --store acts.zarr --out refitted
compare run refitted --out compare.html
report run --latents 3 --out report.html
verify acts.zarr --full'''
for line in lines.splitlines():
    try:
        main(line.split())
    except SystemExit as end:
        assert not end.code, (line, end.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("forbidden")
    assert done.stderr.count("THE NETWORK WAS ASKED") == 1  # by the script itself
    for name in ("compare.html", "report.html"):
        page = (tmp_path / name).read_text()
        assert 'src="http' not in page
        assert 'href="http' not in page


def test_the_papers_pages_are_escaped():
    """As the report's, the comparison's and the service's are (test_report, test_compare, test_service_guard)."""
    from splinterp.papers.pages import html_page, html_picture, html_table
    from splinterp.papers.pam_sgd.page import _claims
    from splinterp.report.plots import Axis, Series, plot

    hostile = "<script>alert('&\"')</script>"
    claim = {"claim": hostile, "where": hostile, "verdict": hostile, "evidence": {"paper": {"holds": True, "told": hostile}}}
    drawn = plot(hostile, Axis(hostile), Axis(hostile), [Series(hostile, [(1.0, 2.0)])])
    page = html_page(
        hostile,
        [
            html_picture(drawn, hostile, hostile),
            html_table([hostile], [[hostile]]),
            _claims({"presets": ["paper"], "claims": [claim]}),
        ],
    )
    assert hostile not in page + drawn
    assert page.count("&lt;script&gt;") > 8


# Dependencies.

# Of packages that read what strangers send, the first version without the weaknesses that we know of.
FLOORS = {
    "torch": "2.6.0", "transformers": "4.53.0", "pyarrow": "14.0.1", "pillow": "12.1.1", "protobuf": "6.33.5", "Jinja2": "3.1.6", "starlette": "0.49.1", "h11": "0.16.0",
    "aiohttp": "3.13.3", "urllib3": "2.6.3", "requests": "2.32.4", "certifi": "2024.7.4", "cryptography": "46.0.5", "idna": "3.7", "fonttools": "4.60.2", "filelock": "3.20.3",
    "nltk": "3.9.3", "Werkzeug": "3.1.5", "tqdm": "4.66.3", "pytest": "9.0.3", "pyasn1": "0.6.2", "scikit-learn": "1.5.0", "Pygments": "2.15.0", "PyYAML": "5.4",
}  # fmt: skip


def pinned() -> dict[str, str]:
    lines = (PACKAGE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_every_dependency_is_pinned_above_the_weaknesses_that_we_know_of():
    from packaging.version import Version

    versions = pinned()
    assert len(versions) > 150
    assert sorted(versions, key=str.lower) == sorted(set(versions), key=str.lower)
    old = {name: versions[name] for name, floor in FLOORS.items() if Version(versions[name]) < Version(floor)}
    assert not old
