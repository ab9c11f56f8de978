"""Kill a writer with SIGKILL at random moments, resume it, and see that nothing was lost, doubled or changed.

    python tests/campaigns/kill_writer.py 200

A run: a process writes 3,393 finite rows (of 3,500, the others not) into a store of 34 chunks; it is killed at a random moment and
started again, up to 12 times, and at last left to finish. After every kill what is committed is read through
`open(unfinished=True)` and must be rows of the source, each once, at the values of the source. At the end every file must equal,
byte for byte, that of a run nobody interrupted (so the multiset of rows is the same), and `verify --full` must find nothing.
The suite runs the short form (tests/test_store_crash.py). Exit code 1 if anything failed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from common import Outcome, contents, differing, ended, forked, run_campaign
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store import writer as writer_module

SITE = "hook"
ROWS, BATCH, MOST_KILLS = 3500, 130, 12
OPTIONS = {"sites": {SITE: 3}, "columns": ("i",), "chunk_rows": 100, "memory": 2 * 4 * 100 * 10, "seed": 5}


def source() -> torch.Tensor:
    """[ROWS, 3] rows that say their own number exactly in bfloat16; every 33rd is not finite."""
    i = torch.arange(ROWS)
    x = torch.stack([i % 128, i // 128, torch.ones(ROWS)], 1).float()
    x[::33, 2] = float("nan")
    return x


def write(path: Path, x: torch.Tensor) -> None:
    # The pool is kept in its file after every batch, now and then, or never.
    writer_module.SPILL_SECONDS = [0.0, 0.01, 300.0][os.getpid() % 3]
    with store.create(path, **OPTIONS, resume=True) as writer:
        for a in range(writer.resume_offered, len(x), BATCH):
            b = min(a + BATCH, len(x))
            writer.add({SITE: x[a:b]}, {"i": np.arange(a, b)})
        writer.finish()


def start(path: Path, x: torch.Tensor) -> int:
    """A forked writer."""

    def work() -> None:
        try:
            write(path, x)
        except StoreError as error:
            # Killed after the last rename, before it could exit: finished is finished.
            if "is complete" not in str(error):
                raise

    return forked(work)


def check_committed(path: Path, x: torch.Tensor) -> tuple[int, list[str]]:
    """(rows that a reader sees in a store being written, what is wrong with them)."""
    try:
        opened = store.open(path, unfinished=True)
    except StoreError as error:
        # Killed before the first chunk counted, or even before the store was begun.
        early = "holds no rows yet" in str(error) or "There is no store" in str(error) or "holds no zarr.json" in str(error)
        # Begun, but killed while its metadata were being laid out.
        early = early or ("is missing" in str(error) and not any(path.glob("*/acts/c.*")))
        return 0, [] if early else [str(error)]
    numbers = opened.column("i").astype(np.int64)
    wrong = []
    if len(set(numbers.tolist())) < len(numbers):
        wrong.append("rows doubled")
    if not torch.equal(opened.acts(SITE, 0, opened.rows).float(), x[torch.from_numpy(numbers)]):
        wrong.append("rows changed")
    return opened.rows, wrong


def campaign(args: Namespace, folder: Path) -> Outcome:
    """(the summary's lines, what failed)."""
    x, rng, failures = source(), random.Random(args.seed), []
    begun, wholes = time.monotonic(), []
    for i in range(5):
        at = time.monotonic()
        if ended(start(folder / f"reference{i}", x)):
            return {}, ["the uninterrupted run failed"]
        wholes.append(time.monotonic() - at)
    whole = min(wholes)  # a kill must not come too late, however busy the machine was
    reference = contents(folder / "reference0")
    rows = store.open(folder / "reference0").rows
    kills, seen, resumed_at = Counter[int](), [], Counter[str]()
    for k in range(args.runs):
        path, killed = folder / f"run{k}", 0
        while True:
            pid = start(path, x)
            if killed < MOST_KILLS:
                time.sleep(rng.uniform(0, whole))
                os.kill(pid, signal.SIGKILL)
            status = ended(pid)
            if status == 0:
                break
            if status != -signal.SIGKILL:
                failures.append(f"run {k}: a writer failed with exit code {status}")
                break
            killed += 1
            committed, wrong = check_committed(path, x)
            failures += [f"run {k}, kill {killed}: {what}" for what in wrong]
            resumed_at[
                "nothing" if not committed else "some rows" if committed < rows else "all rows, unpublished or just published"
            ] += 1
            if seen and seen[-1][0] == k and committed < seen[-1][1]:
                failures.append(f"run {k}, kill {killed}: {seen[-1][1]} rows were committed, and now {committed}")
            seen.append((k, committed))
        kills[killed] += 1
        failures += [f"run {k}: {name} differs from the uninterrupted run" for name in differing(contents(path), reference)]
        failures += [f"run {k}: {problem}" for problem in store.verify(path, full=True)]
        shutil.rmtree(path)
    total = sum(n * times for n, times in kills.items())
    summary = {
        "runs": str(args.runs),
        "kills": f"{total} ({kills[0]} runs ended before theirs; at most {max(kills, default=0)} in a run)",
        **{f"killed with {what} committed": str(n) for what, n in sorted(resumed_at.items())},
        "rows a store, rows dropped as non-finite": f"{rows}, {ROWS - rows}",
        "failures": str(len(failures)),
        "seconds": f"{time.monotonic() - begun:.0f}",
    }
    return summary, failures


if __name__ == "__main__":
    run_campaign(__doc__, "runs", 200, campaign)
