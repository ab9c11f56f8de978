"""Who may ask what: tokens, hosts, origins, sizes, and requests that nobody would send by mistake."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from services import Served, make_store
from splinterp.errors import SplinterpError
from splinterp.service.app import make_app
from splinterp.service.client import Client, ServiceError
from splinterp.service.guard import LARGEST_BODY, Access, kept_token
from splinterp.service.schedule import Slots
from splinterp.service.service import Service
from starlette.testclient import TestClient

TOKEN = "t" * 43


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service whose manager's loop does not run: what is queued stays so."""
    root = tmp_path_factory.mktemp("guard")
    make_store(root / "acts.zarr")
    (root / "secret.html").symlink_to("/etc/hostname")
    (root / "run").mkdir()
    (root / "run" / "run.json").write_text(json.dumps({"settings": {"<script>": "<img src=x>"}, "store": "/etc/x.zarr"}))
    (root / "run" / "report.html").write_text("<script>fetch('/api/jobs')</script>")
    service = Service(root, Slots((), 2), most_jobs=200)
    yield service
    service.close()


@pytest.fixture
def client(service):
    return TestClient(make_app(service, Access(None)), base_url="http://127.0.0.1")


@pytest.fixture
def guarded(service):
    return TestClient(make_app(service, Access(TOKEN)), base_url="http://box.example", follow_redirects=False)


JOB = {"command": "train", "arguments": ["--store", "acts.zarr"]}


def test_without_the_token_nothing_is_told(guarded):
    for path in (
        "/api/jobs",
        "/api/openapi.json",
        "/",
        "/runs",
        "/report/run/report.html",
        "/static/page.js",
        "/api/events/queue",
    ):
        assert guarded.get(path).status_code == 401
        assert guarded.get(path, headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
        assert guarded.get(path, headers={"Authorization": f"Basic {TOKEN}"}).status_code == 401
        assert guarded.get(path, headers={"Cookie": f"splinterp={TOKEN}"}).status_code == 401  # a session is not the token
    assert guarded.post("/api/jobs", json=JOB).status_code == 401
    assert guarded.get("/api/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert guarded.get("/", headers={"Accept": "text/html"}).headers["location"] == "/login"


def test_a_browser_gets_a_session_for_the_token(guarded):
    assert guarded.post("/login", data={"token": "wrong"}).status_code == 401
    answer = guarded.post("/login", data={"token": TOKEN})
    assert answer.status_code == 303
    told = answer.headers["set-cookie"].lower()
    assert "httponly" in told
    assert "samesite=strict" in told
    assert TOKEN not in told
    assert guarded.get("/api/jobs").status_code == 200  # by its cookie


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8321", "127.0.0.1.evil.example", "", "[", "localhost.evil"])
def test_on_loopback_only_loopback_s_names_are_answered(client, host):
    """A page of another site whose name was rebound to this machine."""
    assert client.get("/api/jobs", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8321", "[::1]:8321"])
def test_loopback_s_own_names_are(client, host):
    assert client.get("/api/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_sites_change_nothing(client, service, headers):
    before = service.queue.count()
    for path, body in (("/api/jobs", JOB), ("/api/jobs/1/stop", {}), ("/new/train", {}), ("/job/1/stop", {})):
        assert client.post(path, json=body, headers=headers).status_code == 403
    assert service.queue.count() == before
    assert client.post("/api/jobs", json={**JOB, "request": "same"}, headers={"Origin": "http://127.0.0.1"}).status_code == 201


def test_every_answer_bears_the_policy(client):
    for path in ("/", "/api/jobs", "/nothing", "/static/page.css", "/new/train"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    report = client.get("/report/run/report.html")
    assert report.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in report.headers["content-security-policy"]


def test_bodies_have_a_size(client):
    assert client.post("/api/jobs", content=b"x" * (LARGEST_BODY + 1)).status_code == 413
    assert client.post("/api/jobs", content=(b"x" * 1024 for _ in range(100))).status_code == 413  # whatever length it says
    assert client.post("/api/jobs", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    assert client.post("/api/jobs", json={"command": "train", "arguments": ["x" * 5000]}).status_code == 422
    assert client.post("/api/jobs", json={**JOB, "nope": 1}).status_code == 422


PATHS = ["../secret", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "//etc/passwd", ".splinterp/token", "run/../../x", "a%00b", "secret.html", "run%5c..%5cx", "é" * 300]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "at", ["/api/stores/", "/api/runs/", "/api/metrics/", "/report/", "/run/", "/part/run/", "/static/", "/api/compare?run="]
)
def test_no_path_leads_out(client, at, path):
    answer = client.get(at + path)
    assert answer.status_code in (404, 422)
    assert "root:" not in answer.text
    assert Path("/etc/hostname").read_text().strip() not in answer.text


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "secret.html", "acts.zarr/../../x", ".splinterp/queue.sqlite", "s3://bucket/x"]
)
def test_no_job_leads_out(client, service, path):
    before = service.queue.count()
    for body in (
        {"command": "train", "options": {"store": path}}, {"command": "train", "options": {"store": "acts.zarr", "out": path}},
        {"command": "eval", "arguments": [path, "--store", "acts.zarr"]}, {"command": "harvest", "options": {"dataset": [path]}},
        {"command": "harvest", "options": {"model": path}}, {"command": "eval", "options": {"sae": "run", "store": "acts.zarr", "encoder": f"mlp:{path}"}},
    ):  # fmt: skip
        assert client.post("/api/jobs", json=body).status_code == 422
    assert service.queue.count() == before


def test_what_files_say_is_text_and_never_markup(client):
    assert "<img" not in client.get("/run/run").text
    assert "<script>" not in client.get("/run/run").text
    hostile = "<script>alert(1)</script>"
    made = client.post("/api/jobs", json={**JOB, "label": hostile}).json()
    for path in ("/", f"/job/{made['id']}", f"/new/train?store={hostile}"):
        assert hostile not in client.get(path).text
    assert client.post("/new/train", data={"store": hostile}).status_code == 422


def test_the_queue_has_an_end(client, service):
    answers = {client.post("/api/jobs", json=JOB).status_code for _ in range(service.queue.most - service.queue.count() + 1)}
    assert answers == {201, 429}


def test_a_form_without_a_body_or_with_a_strange_one_is_no_server_error(client):
    for body in (
        b"",
        b"\xff\xfe",
        b"a=" + b"&a=" * 500,
        b"store=acts.zarr&job_priority=x",
        b"store=acts.zarr&decoder_steps=perhaps",
    ):
        assert client.post("/new/train", content=body).status_code == 422
    assert client.post("/job/1/nonsense").status_code == 404
    assert client.post("/job/999999/stop").status_code == 404
    assert client.post("/new/demo").status_code in (404, 422)


def test_the_token_is_made_once_and_for_its_owner_alone(tmp_path):
    token, fresh = kept_token(tmp_path / "token")
    assert fresh
    assert len(token) >= 43
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert kept_token(tmp_path / "token") == (token, False)
    os.chmod(tmp_path / "token", 0o644)
    with pytest.raises(SplinterpError, match="Others may read"):
        kept_token(tmp_path / "token")


def test_beyond_loopback_a_token_is_asked_for_and_shown_once(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with Served(root, "--host", "0.0.0.0", "--gpus", "0") as served:
        port = urlsplit(served.url).port
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(ServiceError, match="token"):
            Client(url).jobs()
        assert Client(url, served.token).jobs()["total"] == 0
        first = served.token
        served.kill()
        served.start()
        assert served.token is None  # it is not shown again
        assert Client(url, first).jobs()["total"] == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        from splinterp.service.serve import ServeConfig, serve

        with pytest.raises(SplinterpError, match="cannot be listened on"):
            serve(ServeConfig(root, port=taken.getsockname()[1], gpus=0), print)
