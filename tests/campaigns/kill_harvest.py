"""Kill a harvest at random moments, resume it, and see that the finished store is that of a harvest nobody touched.

    python tests/campaigns/kill_harvest.py 100

Each harvest of the embedded model (30,000 rows of two sites, about 20 pool generations) is stopped up to 10 times: by SIGKILL, or, one time
in four, by SIGTERM or SIGINT, which keep the rows that wait in the pool. It is resumed each time, and at last left to finish; then every file
must equal, byte for byte, that of the uninterrupted harvest, and `verify --full` must find nothing. Harvests go on until there have been
as many kills as asked for. The suite runs a short form (tests/test_harvest_run.py). Exit code 1 if anything failed.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path

from common import SIGNALS, Outcome, command_line, contents, differing, ended, forked, run_campaign, told
from splinterp import store
from splinterp.errors import StoreError

MOST_KILLS, TOKENS = 10, 30_000


def start(out: Path, tokens: int) -> int:
    """A forked harvest, as the command line runs it."""
    command = f"harvest --layer 0 --layer 1 --tokens {tokens} --batch-size 8 --memory 2MiB --out".split()
    return forked(command_line([*command, str(out), "--resume"]))


def is_whole(path: Path) -> bool:
    try:
        return bool(store.open(path).rows)
    except StoreError:
        return False


def campaign(args: Namespace, folder: Path) -> Outcome:
    """(the summary's lines, what failed)."""
    # Imported before the first fork, so that a child is at work within a second.
    import transformer_lens.model_bridge  # noqa: F401
    import transformers  # noqa: F401

    rng, failures, done, harvests = random.Random(args.seed), [], Counter[str](), 0
    begun = time.monotonic()
    if ended(start(folder / "reference", TOKENS)):
        return {}, ["the uninterrupted harvest failed"]
    whole = time.monotonic() - begun
    reference = contents(folder / "reference")
    while sum(done.values()) < args.kills and not failures:
        out, killed = folder / f"harvest{harvests}", 0
        harvests += 1
        while True:
            pid, sent = start(out, TOKENS), None
            if killed < MOST_KILLS and sum(done.values()) < args.kills:
                time.sleep(rng.uniform(0, whole))
                sent = rng.choice(SIGNALS)
                os.kill(pid, sent)
            status = ended(pid)
            # A harvest killed between its last rename and its end is told that it is complete, and cleaned up behind.
            if status == 0 or (sent is None and status == 1 and is_whole(out)):
                break
            # 1: it ended by a sentence; by a signal's number: before it could, while it was being imported or by SIGKILL.
            if sent is None or status not in (1, -sent):
                failures.append(f"harvest {harvests}: exit code {status} after {sent}")
                break
            killed += 1
            done[sent.name] += 1
        if not is_whole(out):
            failures.append(f"harvest {harvests}: it never came to its end")
            break
        failures += [
            f"harvest {harvests}: {name} differs from the uninterrupted one" for name in differing(contents(out), reference)
        ]
        failures += [f"harvest {harvests}: {problem}" for problem in store.verify(out, full=True)]
        shutil.rmtree(out)
    summary = {
        "harvests, each resumed until it was whole": str(harvests),
        "kills": told(done),
        "rows a site": str(store.open(folder / "reference").rows),
        "failures": str(len(failures)),
        "seconds": f"{time.monotonic() - begun:.0f}",
    }
    return summary, failures


if __name__ == "__main__":
    run_campaign(__doc__, "kills", 100, campaign)
