"""A service in a process of its own, and the jobs of its queue as the system sees them: for the campaign, the bench and the suite."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from splinterp import store
from splinterp.service.client import Client

D_IN, ROWS = 16, 4096
PATIENCE = 120.0


def make_store(path: Path, rows: int = ROWS) -> None:
    """A small store of rows with sparse codes."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(rows, 64, generator=generator) * (torch.rand(rows, 64, generator=generator) < 0.05)
    with store.create(path, sites={"hook": D_IN}, dtype="float32", rows=rows) as writer:
        writer.add({"hook": codes @ torch.randn(64, D_IN, generator=generator)}, {})
        writer.finish()


class Served:
    """`splinterp serve` on a free port of this machine; a context manager, which ends it with its jobs.

    Attributes:
        url: where it listens; the same port after each `start`. client: of it.
    """

    def __init__(self, root: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.root, self._options, self._environment = root, options, dict(environment or {})
        self._port, self._process = 0, None
        self.start()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.kill_jobs()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **self._environment}
        command = [
            sys.executable,
            "-m",
            "splinterp",
            "serve",
            "--root",
            str(self.root),
            "--port",
            str(self._port),
            *self._options,
        ]
        self.output = self.root.parent / f"{self.root.name}-serve.log"
        with self.output.open("ab") as log:
            begin = log.tell()
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self._process.poll() is None:
            told = self.output.read_bytes()[begin:].decode()
            if match := re.search(r"at (http://[^ ]*?:(\d+)) ", told):
                self.url, self._port = match[1], int(match[2])
                self.token = found[1] if (found := re.search(r"SPLINTERP_TOKEN: (\S+)", told)) else None
                self.client = Client(self.url, self.token)
                return
            time.sleep(0.05)
        raise AssertionError(f"the service does not start: {self.output.read_text()[begin:]}")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """End the service, and nothing else; returns its exit code."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
        return self._process.wait(timeout=PATIENCE)

    def kill_jobs(self) -> None:
        """End every job's processes, as a machine that goes down does."""
        for told in self.root.glob(".splinterp/jobs/*/*/keeper.json"):
            if not (told.parent / "exit.json").exists():
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(json.loads(told.read_text())["keeper"][0], signal.SIGKILL)


def at_work(root: Path) -> list[str]:
    """The command lines that run in `root` now, keepers left out, and without what a further attempt has besides."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            words = Path(entry.path, "cmdline").read_bytes().decode().split("\0")
            if "splinterp" not in words or "serve" in words or any(word.endswith("keeper.py") for word in words):
                continue
            if os.readlink(f"{entry.path}/cwd") != str(root.resolve()):
                continue
        except OSError:
            continue
        found.append(" ".join(word for word in words[words.index("splinterp") + 1 :] if word not in ("--resume", "--force")))
    return found


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    told = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+)", told)[1]) / 1024  # type: ignore[index]
