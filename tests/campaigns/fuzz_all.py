"""Fuzz every parser that we own for some time, and tell what was found.

    python tests/campaigns/fuzz_all.py --seconds 3600 --keep fuzzing

The time is shared between the targets, each in a process of its own, one after the other. Valid inputs are made on the fly; with --keep the corpus stays, so that
the next campaign goes on from it, and so do the inputs that brought about a finding. Needs `pip install "splinterp[fuzz]"` (CPython 3.11 to 3.13,
Linux on x86-64). Exits with 1 if there was a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
START = 300.0  # seconds that a process may take to import everything
STUCK = 180.0  # that it may take between two signs of life
ASLEEP = 5.0  # that this process does not sleep of itself


def fuzz(name: str, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    """What one target's process came to: runs, seconds, findings by place. A process that died or hung is a finding, too."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "stats.json", *folder.glob("findings/*")):
        old.unlink(missing_ok=True)
    command = [sys.executable, "-m", "fuzz.one_target", name, str(folder), str(int(seconds)), str(seed)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=HERE, stdout=log, stderr=log, env=os.environ | _paths())
        stuck = not _ended(process, folder)
    told = (
        json.loads((folder / "stats.json").read_bytes())
        if (folder / "stats.json").exists()
        else {"runs": 0, "seconds": 0, "findings": {}}
    )
    if stuck or process.returncode:
        place = "hung" if stuck else f"ended with {process.returncode}"
        told["findings"][place] = 1
        (folder / "findings").mkdir(exist_ok=True)
        if (folder / "now").exists():
            (folder / "now").replace(folder / "findings" / "died")
    return told


def _paths() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]), "OMP_NUM_THREADS": "1"}


def _ended(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait for a process; False where it gave no sign of life, and was killed."""
    before = seen = time.monotonic()
    last = None
    while process.poll() is None:
        time.sleep(0.2)
        now, stats = time.monotonic(), folder / "stats.json"
        at = stats.stat().st_mtime_ns if stats.exists() else None
        if at != last or now - before > ASLEEP:  # all of us were stopped, perhaps
            last, seen = at, now
        before = now
        if now - seen > (STUCK if last else START):
            process.kill()
            process.wait()
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all [default: %(default)s]")
    parser.add_argument("--targets", nargs="*", help="some of them by name [default: all]")
    parser.add_argument("--seed", type=int, default=1, help="[default: %(default)s]")
    parser.add_argument("--keep", type=Path, help="folder for corpora and findings [default: one that is gone afterwards]")
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from fuzz.targets import ALL

    names = args.targets or list(ALL)
    found = 0
    with tempfile.TemporaryDirectory(prefix="splinterp-fuzz-") as temporary:
        keep = args.keep or Path(temporary)
        print("| target | reads | executions | seconds | findings |\n|---|---|---|---|---|", flush=True)
        total, spent = 0, 0.0
        for name in names:
            told = fuzz(name, (keep / name.replace(" ", "-")).resolve(), args.seconds / len(names), args.seed)
            total, spent, found = total + told["runs"], spent + told["seconds"], found + len(told["findings"])
            print(
                f"| {name} | {ALL[name].reads} | {told['runs']:,} | {told['seconds']:.0f} | {len(told['findings'])} |",
                flush=True,
            )
            for place, times in sorted(told["findings"].items()):
                print(f"    {place} ({times} times; {keep / name.replace(' ', '-') / 'findings'})", flush=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"| all | | {total:,} | {spent:.0f} | {found} |\n\n{used.ru_utime + used.ru_stime:.0f} s of CPU time.", flush=True
        )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
