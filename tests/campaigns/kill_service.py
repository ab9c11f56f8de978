"""Kill the service at random moments with jobs running and queued, and see that no job is lost, doubled, or comes out otherwise.

    python tests/campaigns/kill_service.py 50

Trainings, encodings and evaluations are submitted all the while, each under a name of its own (`request`), by a client that asks again where
a kill took the answer. The service gets SIGKILL after up to three seconds (one time in five all its jobs too, as when a machine goes down),
and is started again. After each restart every job that was ever answered for is there, once; ten times a second the processes at work
are counted, and no job may have two. At the end all jobs are done, and what they left equals what the same command lines leave when they
are run by hand: figures, metrics and settings but for times, weights and codes byte for byte. The suite runs a short form
(tests/test_service_kill.py). Exit code 1 if anything failed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from common import Outcome, contents, run_campaign
from runs import contents_of, without_times
from services import Served, at_work, make_store
from splinterp.service.client import ServiceError

TRAIN = "train --store acts.zarr --latents 64 --k 4 --tokens 40k --batch-size 128 --checkpoint-every 0.003 --out {out} --seed {seed}"
SEEDS = 3
PATIENCE = 900.0


class Watch:
    """Counts, ten times a second, how often a job had two processes at work for it."""

    def __init__(self, root: Path) -> None:
        self.root, self.seen, self.doubled, self._done = root, Counter[str](), Counter[str](), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(0.1):
            now = Counter(at_work(self.root))
            self.seen.update(now.keys())
            self.doubled.update(name for name, n in now.items() if n > 1)

    def close(self) -> None:
        self._done.set()
        self._thread.join()


def campaign(args: Namespace, folder: Path) -> Outcome:
    """(the summary's lines, what failed)."""
    rng, begun = random.Random(args.seed), time.monotonic()
    root = folder / "root"
    root.mkdir()
    make_store(root / "acts.zarr")
    failures: list[str] = []
    lines: dict[str, str] = {}  # by request
    known: dict[str, int] = {}
    kills, boxes = 0, 0
    with Served(root, "--threads", "2", "--job-threads", "1") as served:
        watch = Watch(root)

        def submit() -> None:
            """A training, and what is made of it: answered, or asked for again."""
            n = len(lines)
            seed = rng.randrange(SEEDS)
            line = [
                TRAIN.format(out=f"runs/{n}", seed=seed),
                "encode runs/{n} --store acts.zarr --out codes/{n}",
                "eval runs/{n} --store acts.zarr",
            ]
            before = n - n % 3
            lines[str(n)] = (line[n % 3]).replace("{n}", str(before))
            ask(str(n))

        def ask(request: str) -> None:
            command, *arguments = lines[request].split()
            try:
                made = served.client.submit(command, arguments, request=request)
            except ServiceError as error:
                if error.status:
                    failures.append(f"{lines[request]}: {error}")
                return
            if known.setdefault(request, made["id"]) != made["id"]:
                failures.append(f"request {request} made two jobs")

        def check() -> None:
            jobs = served.client.jobs(limit=1000)["jobs"]
            ids = [job["id"] for job in jobs]
            if len(set(ids)) != len(ids) or not set(known.values()) <= set(ids) or len(ids) > len(lines):
                failures.append(
                    f"{len(lines)} were submitted, {len(known)} answered for, and {len(ids)} are there: {sorted(ids)}"
                )

        while kills < args.kills and not failures:
            for request in lines.keys() - known.keys():
                ask(request)
            missing = args.open - sum(served.client.jobs()["counts"].get(s, 0) for s in ("queued", "starting", "running"))
            # The last submission is made while the kill comes.
            for _ in range(max(0, missing - 1)):
                submit()
            killer = threading.Timer(rng.uniform(0, 3), served.kill)
            killer.start()
            while killer.is_alive():
                if missing > 0 and rng.random() < 0.3:
                    submit()
                    missing -= 1
                time.sleep(0.05)
            killer.join()
            kills += 1
            if rng.random() < 0.2:
                served.kill_jobs()
                boxes += 1
            served.start()
            check()
        for request in lines.keys() - known.keys():
            ask(request)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and any(
            n for s, n in served.client.jobs()["counts"].items() if s not in ("done", "failed", "stopped")
        ):
            time.sleep(0.5)
        check()
        jobs = {job["id"]: job for job in served.client.jobs(limit=1000)["jobs"]}
        watch.close()
    failures += [f"job {job['id']} {job['state']}: {job['message']}" for job in jobs.values() if job["state"] != "done"]
    failures += [f"{name} had two processes at work, {n} times" for name, n in watch.doubled.items()]
    if not watch.seen:
        failures.append("no process was ever seen at work")
    if not failures:
        failures += _compare(root, folder / "by-hand", [(lines[request], jobs[id]) for request, id in known.items()])
    attempts = [job["attempt"] for job in jobs.values()]
    summary = {
        "jobs": str(len(jobs)),
        "kills of the service": str(kills),
        "of these with all its jobs": str(boxes),
        "attempts of a job": f"{sum(attempts) / max(1, len(attempts)):.2f} on average, {max(attempts, default=0)} at most",
        "jobs interrupted": str(sum(job["restarts"] > 0 for job in jobs.values())),
        "failures": str(len(failures)),
        "seconds": f"{time.monotonic() - begun:.0f}",
    }
    return summary, failures


def _compare(root: Path, by_hand: Path, done: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Run each different command line by hand, and name the jobs that left something else."""
    by_hand.mkdir()
    (by_hand / "acts.zarr").symlink_to(root / "acts.zarr")
    failures, references = list[str](), dict[str, Any]()

    def reference(kind: str, line: str) -> Any:
        if kind not in references:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            told = subprocess.run(
                [sys.executable, "-m", "splinterp", *line.split()],
                cwd=by_hand,
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            )
            references[kind] = told.stdout
        return references[kind]

    seeds = {line.split()[line.split().index("--out") + 1]: line.split()[-1] for line, _ in done if line.startswith("train")}
    for line, job in done:
        words = line.split()
        run = words[words.index("--out") + 1] if words[0] == "train" else words[1]
        seed = seeds[run]
        reference(f"train {seed}", TRAIN.format(out=f"train{seed}", seed=seed))
        if words[0] == "train":
            same = _of_run(root / run) == _of_run(by_hand / f"train{seed}")
        elif words[0] == "encode":
            reference(f"encode {seed}", f"encode train{seed} --store acts.zarr --out codes{seed}")
            same = _of_codes(root / words[-1]) == _of_codes(by_hand / f"codes{seed}")
        else:
            figures = json.loads(reference(f"eval {seed}", f"eval train{seed} --store acts.zarr --json"))
            same = job["result"] == figures
        failures += [] if same else [f"job {job['id']} ({line}) differs from the same by hand"]
    return failures


def _of_run(path: Path) -> dict[str, Any]:
    return {name: without_times(value) for name, value in contents_of(path).items()}


def _of_codes(path: Path) -> dict[str, bytes]:
    """The arrays of a store of codes; its root says which SAE they are of, by its path."""
    return {name: data for name, data in contents(path).items() if "/" in name}


if __name__ == "__main__":
    run_campaign(__doc__, "kills", 50, campaign, open=7)
