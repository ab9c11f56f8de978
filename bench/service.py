"""The service under a full queue and many eyes: answering times and memory.

    python -m splinterp.bench.service --jobs 1000 --watchers 50

A service on this machine, with one training at work and the rest queued. Half of the watchers have the jobs' page open, half a job's: each holds
the page's stream of events and fetches its part every three seconds, as a browser does. Meanwhile pages and the API are asked for, one after the
other. The watchers run in this process, and take their share of the same cores.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import torch

from .. import store
from ..service.client import Client

EVERY = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="splinterp-service-") as folder:
        root = Path(folder)
        with store.create(root / "acts.zarr", sites={"hook": 16}, dtype="float32", rows=4096) as writer:
            writer.add({"hook": torch.randn(4096, 16)}, {})
            writer.finish()
        command = [sys.executable, "-m", "splinterp", "serve", "--root", folder, "--port", "0", "--threads", "1"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        served = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert served.stdout is not None
            found = re.search(r"at (http\S+)", served.stdout.readline())
            assert found, "the service does not start"
            _measure(found[1], served.pid, args)
        finally:
            with suppress(Exception):
                Client(found[1]).stop(1, now=True)  # type: ignore[index]
                time.sleep(2)
            served.terminate()
            served.wait()


def _measure(url: str, pid: int, args: argparse.Namespace) -> None:
    client, submitting = Client(url), []
    for i in range(args.jobs + 1):
        begun = time.perf_counter()
        client.submit("train", store="acts.zarr", latents=64, k=4, tokens="1B" if i == 0 else "100k", out=f"runs/{i}")
        submitting.append(time.perf_counter() - begun)
    while client.job(1)["progress"]["done"] is None:
        time.sleep(0.5)
    done = threading.Event()
    for i in range(args.watchers):
        part, events = ("/part/jobs", "/api/events/queue") if i % 2 else ("/part/job/1", "/api/events/runs/runs/0")
        threading.Thread(target=_hold, args=(url + events, done), daemon=True).start()
        threading.Thread(target=_look, args=(url + part, done, i * EVERY / args.watchers), daemon=True).start()
    time.sleep(2 * EVERY)
    asked: dict[str, Callable[[], object]] = {
        "page: the jobs": lambda: _get(url + "/"),
        "page: a job at work, with its curve": lambda: _get(url + "/job/1"),
        "page: the runs": lambda: _get(url + "/runs"),
        "page: the form": lambda: _get(url + "/new/train"),
        "API: 100 jobs": lambda: _get(url + "/api/jobs"),
        "API: 1,000 jobs": lambda: _get(url + "/api/jobs?limit=1000"),
        "API: a job": lambda: _get(url + "/api/jobs/500"),
        "API: the stores": lambda: _get(url + "/api/stores"),
        "API: another job queued": lambda: client.submit("train", store="acts.zarr", latents=64, k=4, label="one more"),
    }
    print(
        f"{args.jobs:,} jobs queued, one at work, {args.watchers} watchers; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| asked for | median, ms | slowest of ten, ms | the service's processor time, about, ms |\n|---|---:|---:|---:|")
    _row("API: a job queued, nobody watching", submitting)
    times: dict[str, list[float]] = {name: [] for name in asked}
    spent: dict[str, float] = dict.fromkeys(asked, 0.0)
    before, begun = _cpu(pid), time.perf_counter()
    time.sleep(10)
    share = (_cpu(pid) - before) / (time.perf_counter() - begun)
    for _ in range(args.rounds):
        for name, ask in asked.items():
            begun, before = time.perf_counter(), _cpu(pid)
            ask()
            spent[name] += max(0.0, _cpu(pid) - before - share * (time.perf_counter() - begun))
            times[name].append(time.perf_counter() - begun)
    for name, found in times.items():
        _row(name, found, spent[name] / args.rounds)
    status = Path(f"/proc/{pid}/status").read_text()
    resident, peak = (int(re.search(rf"{name}:\s*(\d+)", status)[1]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    print(f"\nThe watchers alone: {share:.0%} of a core in the service. Its memory: {resident:.0f} MB, {peak:.0f} MB at most.")
    done.set()


def _row(name: str, found: list[float], cpu: float | None = None) -> None:
    ordered, told = sorted(1000 * one for one in found), "" if cpu is None else f"{1000 * cpu:.0f}"
    print(f"| {name} | {statistics.median(ordered):.0f} | {ordered[int(0.9 * (len(ordered) - 1))]:.0f} | {told} |", flush=True)


def _cpu(pid: int) -> float:
    """Seconds that a process has spent."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _get(url: str) -> bytes:
    with urlopen(url, timeout=60) as answer:
        return answer.read()


def _hold(url: str, done: threading.Event) -> None:
    """Read a stream of events."""
    with suppress(OSError), urlopen(url, timeout=120) as answer:
        while not done.is_set() and answer.readline():
            pass


def _look(url: str, done: threading.Event, first: float) -> None:
    """Fetch a part of a page, again and again."""
    done.wait(first)
    while not done.wait(EVERY):
        with suppress(OSError):
            _get(url)


if __name__ == "__main__":
    main()
