"""Harvest, train, encode, report in one process, again and again: memory, handles, threads and disk must not grow.

    python tests/campaigns/long_run.py 60

For so many minutes (or, with `--loops`, so many times) the embedded model is harvested into a store, after the dry run of it; an SAE is trained, by
methods and activations in turn; every third time rows are encoded and a report is written; then everything is removed. A line a minute says what the
process holds at the end of a loop: resident memory, its peak within the loop, open file handles, threads; what the store took beside what the dry run
said; and what is left of temporary files. Exit code 1 if, once it is warm (a fifth of the loops, at least two rounds of all methods), memory or its
peak grew by more than `--growth` MiB, handles or threads became more, anything was left on the disk, or a store took other than predicted.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import splinterp
import torch
from splinterp import store as stores
from splinterp.harvest import HarvestConfig, plan, probe
from splinterp.quantities import format_bytes

MIB = 2**20
METHODS = (
    {"method": "pam", "k": 16}, {"method": "adam", "k": 16}, {"method": "pam", "activation": "batchtopk", "k": 16},
    {"method": "pursuit", "k": 16}, {"method": "adam", "activation": "relu"}, {"method": "pam", "activation": "jumprelu", "k": 16},
)  # fmt: skip
WARM_UP = 2 * len(METHODS)  # loops, at least: each kind of training has then run twice
SLACK = 0.02, 2 * MIB  # of the bytes predicted: a share, and tokenizer, manifest and metadata


@dataclass(frozen=True)
class Loop:
    """What the process held at the end of a loop.

    seconds: since the start. rss, peak: bytes. store, predicted: bytes of the store, and what the dry run said. left: bytes of files that stayed
    behind once everything had been removed.
    """

    seconds: float
    rss: int
    peak: int
    handles: int
    threads: int
    store: int
    predicted: int
    left: int


def status(name: str) -> int:
    """A figure of this process by /proc; sizes in bytes."""
    found = re.search(rf"^{name}:\s*(\d+)( kB)?", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * (1024 if found[2] else 1)


def disk(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def loop(number: int, folder: Path, rows: int, begun: float) -> Loop:
    """One harvest, one training, and every third time what comes after, in a folder that is emptied again."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    store, run = folder / "acts.zarr", folder / "run"
    config = HarvestConfig(tokens=rows, layers=(number % 4,), seed=number, out=store, memory=64 * MIB)
    planned = plan(config)
    if number % 3 == 0:
        probe(planned)
    splinterp.harvest(tokens=rows, layers=(number % 4,), seed=number, out=store, memory=64 * MIB)
    took = disk(store)
    splinterp.train(store, run, latents=384, seed=number, **METHODS[number % len(METHODS)])
    if number % 3 == 0:
        splinterp.encode(run, store, folder / "codes.zarr", split="held_out")
        splinterp.report(run, out=folder / "report.html")
        assert not stores.verify(store, full=True)
    for path in (store, run, folder / "codes.zarr"):
        shutil.rmtree(path, ignore_errors=True)
    (folder / "report.html").unlink(missing_ok=True)
    gc.collect()
    return Loop(
        time.monotonic() - begun, status("VmRSS"), status("VmHWM"), len(os.listdir("/proc/self/fd")), status("Threads"), took,
        planned.bytes, disk(folder),
    )  # fmt: skip


def grown(loops: Sequence[Loop], growth: int) -> list[str]:
    """What grew, in sentences: the middle of the last third of the loops against that of as many after the warm-up."""
    warm = loops[min(max(WARM_UP, len(loops) // 5), len(loops) // 2) :]
    part = max(1, len(warm) // 3)
    early, late = warm[:part], warm[-part:]
    failures = []
    for name, allowed in (("rss", growth * MIB), ("peak", growth * MIB), ("handles", 0), ("threads", 0)):
        figure: Callable[[Loop], int] = lambda one, name=name: getattr(one, name)  # noqa: E731
        before, after = (median(map(figure, some)) for some in (early, late))
        if after - before > allowed:
            failures.append(f"{name} grew from {before:,.0f} to {after:,.0f}")
    share, more = SLACK
    for one in loops:
        if abs(one.store - one.predicted) > share * one.predicted + more:
            failures.append(f"a store took {format_bytes(one.store)} where the dry run said {format_bytes(one.predicted)}")
        if one.left:
            failures.append(f"{format_bytes(one.left)} stayed behind on the disk")
    return failures


def line(number: int, one: Loop) -> str:
    cells = (
        f"{one.seconds / 60:.0f}", f"{number + 1:,}", f"{one.rss / MIB:.0f}", f"{one.peak / MIB:.0f}", one.handles, one.threads,
        f"{one.store / MIB:.2f}", f"{one.predicted / MIB:.2f}", one.left,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "| minute | loops | RSS, MiB | peak in a loop, MiB | handles | threads | store, MiB | predicted, MiB | left, bytes |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def run(minutes: float, loops: int | None, rows: int, folder: Path, tell: Callable[[str], None]) -> list[Loop]:
    """Loops until the time is over, or so many; a line of the table a minute, and one for the last."""
    tell(HEAD)
    begun, found, told = time.monotonic(), list[Loop](), -60.0
    while (len(found) < loops) if loops else (time.monotonic() - begun < 60 * minutes):
        found.append(loop(len(found), folder, rows, begun))
        if found[-1].seconds - told >= 60:
            told = found[-1].seconds
            tell(line(len(found) - 1, found[-1]))
    tell(line(len(found) - 1, found[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, nargs="?", default=60)
    parser.add_argument("--loops", type=int, help="so many loops, instead of minutes")
    parser.add_argument("--rows", type=int, default=20_000, help="rows a harvest [default: %(default)s]")
    parser.add_argument("--growth", type=int, default=32, help="MiB that memory may grow by [default: %(default)s]")
    parser.add_argument("--folder", type=Path, help="where to write [default: the system's temporary folder]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="splinterp-long-", dir=args.folder))
    tempfile.tempdir = str(folder)  # whatever is left of temporary files shows
    try:
        found = run(args.minutes, args.loops, args.rows, folder, lambda text: print(text, flush=True))
    finally:
        shutil.rmtree(folder)
    failures = grown(found, args.growth)
    for failure in failures:
        print(failure)
    print(f"{len(found):,} loops in {found[-1].seconds / 60:.0f} minutes: {'failed' if failures else 'nothing grew'}.")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
