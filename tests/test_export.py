"""SAEs to SAELens and to a hub of our own on loopback, and back; without being asked nothing goes out."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import splinterp
import torch
from splinterp.errors import SAEError
from splinterp.sae import SAE, SAEConfig, save_sae

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_sae(**metadata) -> SAE:
    g = torch.Generator().manual_seed(0)
    config = SAEConfig("topk", 6, 20, 3, metadata={"hook_name": "blocks.1.hook_resid_post", **metadata})
    return SAE(config, *(torch.randn(*s, generator=g) for s in ((6, 20), (20,), (20, 6), (6,))))


@pytest.fixture
def run(tmp_path):
    save_sae(make_sae(model_name="/home/somebody/secret/model", dataset_path=["/data/private.txt", "stdlib"]), tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"fvu": 0.125, "l0": 3.0, "n_rows": 512}))
    (tmp_path / "run" / "run.json").write_text("{}")
    return tmp_path / "run"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as pushing and loading take."""

    def log_message(self, *args):
        pass

    def _answer(self, code: int = 200, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            self._answer(
                body=json.dumps(
                    {"url": f"http://127.0.0.1:{self.server.server_port}/user/saes", "name": json.loads(body)["name"]}
                ).encode()
            )
        elif "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            self._answer(body=json.dumps({"files": files}).encode())
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            told = {
                "commitUrl": f"http://127.0.0.1:{self.server.server_port}/user/saes/commit/{COMMIT}",
                "commitOid": COMMIT,
                "commitMessage": "",
                "success": True,
            }
            self._answer(body=json.dumps(told).encode())
        else:
            self._answer(404)

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/user/saes/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.server.files.items()
            ]
            self._answer(body=json.dumps(tree).encode())
        elif path.startswith("/api/models/user/saes"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._answer(body=json.dumps({"id": "user/saes", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/user/saes/resolve/"):
            data = self.server.files.get(path.split("/", 5)[5])
            if data is None:
                self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            else:
                self._answer(body=data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self._answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked = {}, []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def with_hub(hub, tmp_path, code: str) -> subprocess.CompletedProcess:
    """Python in a process of its own: huggingface_hub reads its settings when it is imported."""
    told = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_ours", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **told}, capture_output=True, text=True, check=False)


def test_a_push_arrives_and_is_loaded_again(run, hub, tmp_path):
    dry = splinterp.push_to_hub(run, "user/saes", dry_run=True)
    assert hub.asked == []
    code = f"""
import splinterp, torch
from splinterp.errors import SAEError
pushed = splinterp.push_to_hub({str(run)!r}, "user/saes")
assert pushed.url.endswith({COMMIT!r}), pushed.url
ours, again = splinterp.load_sae({str(run)!r}), splinterp.load_sae("hf://user/saes/run")
assert all(torch.equal(getattr(ours, n), getattr(again, n)) for n in ("W_enc", "b_enc", "W_dec", "b_dec"))
assert again.config.k == 3
for name in ("hf://user/saes/other", "hf://nobody/nothing/run"):
    try:
        splinterp.load_sae(name)
    except SAEError as error:
        print(error)
"""
    done = with_hub(hub, tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert hub.files == dry.files  # what the dry run told, byte for byte
    assert {token for _, token in hub.asked} == {"Bearer hf_ours"}
    assert "no SAE in other" in done.stdout
    assert "no model 'nobody/nothing'" in done.stdout


def test_a_dry_run_tells_files_sizes_and_card_and_asks_no_network(run, cli, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    code, out, err = cli("export", run, "--to", "hub", "--repo", "user/saes", "--dry-run")
    assert code == 0, err
    upload = splinterp.push_to_hub(run, "user/saes", dry_run=True)
    assert list(upload.files) == ["run/cfg.json", "run/sae_weights.safetensors", "run/README.md"]
    assert all(name in out for name in upload.files)
    assert "| FVU (held out) | 0.125 |" in out
    assert 'SAE.from_pretrained("user/saes", "run")' in out
    assert "Nothing was sent" in out
    everything = b"".join(upload.files.values())
    assert b"somebody" not in everything
    assert b"/data" not in everything
    assert b"private.txt" in everything


def test_names_that_cannot_be_are_refused(run, cli):
    for repo, path in (("saes", None), ("a/b/c", None), ("user/saes", "../up"), ("user/saes", ""), ("user/sa es", None)):
        with pytest.raises(SAEError, match="no place on the hub"):
            splinterp.push_to_hub(run, repo, path, dry_run=True)
    spaced = shutil.copytree(run, run.with_name("my run"))
    with pytest.raises(SAEError, match=r"folder 'my run' is no place on the hub; .* \(--path\)"):
        splinterp.push_to_hub(spaced, "user/saes", dry_run=True)
    assert "my-run/cfg.json" in splinterp.push_to_hub(spaced, "user/saes", "my-run", dry_run=True).files
    with pytest.raises(SAEError, match="in memory"):
        splinterp.push_to_hub(make_sae(), "user/saes", dry_run=True)
    for name in ("hf://user", "hf://user/../x", "hf://"):
        with pytest.raises(SAEError, match="names no SAE on the hub"):
            splinterp.load_sae(name)
    for wrong in (["--to", "moon"], ["--to", "hub"], ["--to", "saelens"], ["--to", "saelens", "--out", "x", "--repo", "a/b"]):
        assert cli("export", run, *wrong)[0] == 2


def test_offline_the_hub_is_a_sentence():
    with pytest.raises(SAEError, match="cannot be reached"):
        splinterp.load_sae("hf://user/saes/run")


def test_an_sae_is_exported_alone_and_saelens_loads_it(run, cli, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    code, _, err = cli("export", run, "--to", "saelens", "--out", tmp_path / "out")
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    x = torch.randn(50, 6)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "out"))
    assert (theirs(x) - splinterp.load_sae(run)(x)).abs().max() <= 1e-5
    assert "exists already" in cli("export", run, "--to", "saelens", "--out", tmp_path / "out")[2]


def test_a_store_is_exported_as_activations(cli, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((600, 4)).astype(np.float32))
    splinterp.import_activations(tmp_path / "x.npy", tmp_path / "s.zarr", site="s")
    arguments = ["export", tmp_path / "s.zarr", "--to", "saelens-activations", "--out", tmp_path / "out"]
    code, out, err = cli(*arguments, "--context", 50)
    assert code == 0, err
    assert "600 rows" in out
    assert "left out" not in out
    for context, told in (
        (64, "24 rows that fill no context are left out."),
        (599, "1 row that fills no context is left out."),
    ):
        assert told in cli(*arguments, "--context", context, "--force")[1]
    assert cli(*arguments, "--context", 50, "--force")[0] == 0
    again = splinterp.import_activations(tmp_path / "out", tmp_path / "again.zarr")
    ours = splinterp.open_store(tmp_path / "s.zarr")
    assert sorted(again.acts("s", 0, 600).tolist()) == sorted(ours.acts("s", 0, 600).tolist())
