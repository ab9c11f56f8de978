"""The service as a whole, by its own client and by the command line: jobs that are started, stopped, resumed, and found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from services import Served, at_work, make_store, memory_mib
from splinterp.service.client import Client, ServiceError

TRAIN = ("--store", "acts.zarr", "--latents", "64", "--k", "4", "--batch-size", "128")


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("service") / "root"
    root.mkdir()
    make_store(root / "acts.zarr")
    return root


@pytest.fixture(scope="module")
def served(stored):
    with Served(stored, "--threads", "2", "--job-threads", "1", "--grace", "60") as served:
        yield served


def test_a_training_is_stopped_and_resumed_and_ends_as_one_by_hand(served, stored, tmp_path):
    from runs import contents_of, without_times

    client = served.client
    made = client.submit(
        "train", store="acts.zarr", latents=64, k=4, tokens="300k", batch_size=128, out="runs/stopped", label="x"
    )
    again = client.submit("eval", ["runs/stopped", "--store", "acts.zarr"])
    events = client.events("runs/stopped")
    seen = [next(events)]
    while sum(name == "metrics" for name, _ in seen) < 2:
        seen.append(next(events))
    events.close()
    client.stop(made["id"])
    stopped = client.wait(made["id"])
    assert stopped["state"] == "stopped"
    assert "holds a checkpoint" in stopped["message"]
    client.wait(again["id"])
    client.resume(made["id"])
    with pytest.raises(ServiceError, match="has not ended"):
        client.resume(made["id"])
    assert client.wait(made["id"])["state"] == "done"
    assert "--resume" in client.job(made["id"])["command_line"]
    client.retry(again["id"])
    evaluated = client.wait(again["id"])
    assert evaluated["state"] == "done"
    text = "".join(client.follow_log(made["id"]))
    assert "runs/stopped" in text
    command = [
        "train",
        "--store",
        "acts.zarr",
        "--latents",
        "64",
        "--k",
        "4",
        "--tokens",
        "300k",
        "--batch-size",
        "128",
        "--out",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "splinterp", *command, str(tmp_path / "hand")],
        cwd=stored,
        env=environment,
        check=True,
        capture_output=True,
    )
    assert without_times(contents_of(stored / "runs/stopped")) == without_times(contents_of(tmp_path / "hand"))
    summary = json.loads((tmp_path / "hand" / "summary.json").read_text())
    assert evaluated["result"]["fvu"] == pytest.approx(summary["fvu"], rel=1e-6)
    assert client.run("runs/stopped")["figures"]["fvu"] == summary["fvu"]
    assert client.metrics("runs/stopped")["lines"][-1]["rows"] == 300_000
    assert client.compare(["runs/stopped"])["runs"][0]["finished"]
    assert [store["health"] for store in client.stores() if store["name"] == "acts.zarr"] == ["whole"]


def test_jobs_outlive_the_service_and_are_found_again(served, stored):
    client = served.client
    made = client.submit("train", [*TRAIN, "--tokens", "100M", "--out", "runs/long"])
    until = time.monotonic() + 60
    while client.job(made["id"])["progress"]["done"] is None and time.monotonic() < until:
        time.sleep(0.2)
    served.kill()
    assert any("runs/long" in line for line in at_work(stored))
    served.start()
    found = client.job(made["id"])
    assert (found["state"], found["attempt"], found["restarts"]) == ("running", 1, 0)
    client.stop(made["id"])
    assert client.wait(made["id"])["state"] == "stopped"
    assert not any("runs/long" in line for line in at_work(stored))


def test_a_ctrl_c_ends_it_quietly_though_somebody_watches(served):
    events = served.client.events("runs/none")
    next(events)
    assert served.kill(signal.SIGINT) == 0
    assert "Traceback" not in served.output.read_text()
    served.start()


def test_the_service_is_light_and_alone(served, stored):
    assert memory_mib(served.pid) < 300
    maps = Path(f"/proc/{served.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "numpy" not in maps
    done = subprocess.run(
        [sys.executable, "-m", "splinterp", "serve", "--root", str(stored), "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "served by another process" in done.stderr


def test_the_command_line_speaks_with_it(served, cli, monkeypatch):
    monkeypatch.setenv("SPLINTERP_SERVER", served.url)
    code, out, _ = cli("submit", "verify", "acts.zarr", "--full", "--label", "check", "--priority", 3)
    assert code == 0
    number = out.split()[1].rstrip(":")
    code, out, err = cli("logs", "-f", number)
    assert code == 0
    assert "is whole (every checksum)" in out
    assert "done" in err
    code, out, _ = cli("jobs")
    assert "check" in out
    assert "splinterp verify acts.zarr --full" in out
    assert json.loads(cli("jobs", "--json", "--state", "done")[1])["counts"]["done"] >= 1
    for arguments, words in (
        (("submit", "train", "--store", "../x"), "plain names"),
        (("submit", "train", "--store", "nothing.zarr"), "no job that will write it"),
        (("stop", 999_999), "There is no job"),
        (("resume", number), "cannot be resumed"),
        (("jobs", "--server", "http://127.0.0.1:9"), "No service answers"),
    ):
        code, out, err = cli(*arguments)
        assert code == 1
        assert words in err
        assert "Traceback" not in err
    assert Client(served.url).about()["runner"] == "local"
