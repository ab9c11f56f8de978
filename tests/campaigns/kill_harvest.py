"""Kill a harvest at random moments, resume it, and see that the finished store is that of a harvest nobody touched.

    python tests/campaigns/kill_harvest.py 100

Each harvest of the embedded model (30,000 rows of two sites, about 20 pool generations) is stopped up to 10 times: by SIGKILL, or, one time
in four, by SIGTERM or SIGINT, which keep the rows that wait in the pool. It is resumed each time, and at last left to finish; then every file
must equal, byte for byte, that of the uninterrupted harvest, and `verify --full` must find nothing. Harvests go on until there have been
as many kills as asked for. The suite runs a short form (tests/test_harvest_run.py). Exit code 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from splinterp import cli, store
from splinterp.errors import StoreError

MOST_KILLS = 10
SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGTERM, signal.SIGINT)


def start(out: Path, tokens: int) -> int:
    """A forked harvest, as the command line runs it, with its output thrown away."""
    pid = os.fork()
    if pid == 0:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            torch.set_num_threads(1)
            command = f"harvest --layer 0 --layer 1 --tokens {tokens} --batch-size 8 --memory 2MiB --out".split()
            cli.main([*command, str(out), "--resume"])
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 3)
        except KeyboardInterrupt:  # before the command line had begun
            os._exit(1)
        except BaseException:
            os._exit(3)
        os._exit(0)
    return pid


def contents(path: Path) -> dict[str, bytes]:
    """Every file but the lock's, which a harvest killed after its last rename leaves behind."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file() and f.name != ".lock"}


def is_whole(path: Path) -> bool:
    try:
        return bool(store.open(path).rows)
    except StoreError:
        return False


def campaign(
    kills: int, seed: int, folder: Path, tokens: int = 30_000, most: int = MOST_KILLS
) -> tuple[dict[str, str], list[str]]:
    """(the summary's lines, what failed)."""
    # Imported before the first fork, so that a child is at work within a second.
    import transformer_lens.model_bridge  # noqa: F401
    import transformers  # noqa: F401

    rng, failures, done, harvests = random.Random(seed), [], Counter[str](), 0
    begun = time.monotonic()
    if os.waitstatus_to_exitcode(os.waitpid(start(folder / "reference", tokens), 0)[1]):
        return {}, ["the uninterrupted harvest failed"]
    whole = time.monotonic() - begun
    reference = contents(folder / "reference")
    while sum(done.values()) < kills and not failures:
        out, killed = folder / f"harvest{harvests}", 0
        harvests += 1
        while True:
            pid, sent = start(out, tokens), None
            if killed < most and sum(done.values()) < kills:
                time.sleep(rng.uniform(0, whole))
                sent = rng.choice(SIGNALS)
                os.kill(pid, sent)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
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
        found = contents(out)
        differing = sorted(name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name))
        failures += [f"harvest {harvests}: {name} differs from the uninterrupted one" for name in differing]
        failures += [f"harvest {harvests}: {problem}" for problem in store.verify(out, full=True)]
        shutil.rmtree(out)
    summary = {
        "harvests, each resumed until it was whole": str(harvests),
        "kills": f"{sum(done.values())} ({', '.join(f'{n} {name}' for name, n in sorted(done.items()))})",
        "rows a site": str(store.open(folder / "reference").rows),
        "failures": str(len(failures)),
        "seconds": f"{time.monotonic() - begun:.0f}",
    }
    return summary, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="splinterp-kill-") as folder:
        summary, failures = campaign(args.kills, args.seed, Path(folder))
    for name, value in summary.items():
        print(f"| {name} | {value} |")
    for failure in failures:
        print(failure)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
