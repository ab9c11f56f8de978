"""Faults other than kills: what is tried how often, what is lost, what comes out wrong, and what the user sees.

    python tests/campaigns/faults.py 20

The number is how often each fault is tried, with each of the commands that it can meet. `--only` and `--commands` take some.
Exit code 1 if a row was lost, a result was wrong, or a user saw something else than a sentence.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import faults_damage
import faults_disk
import faults_runs
import torch
from commands import COMMANDS, Workshop
from tallies import Fault, Tally

FAULTS: tuple[Fault, ...] = (*faults_disk.FAULTS, *faults_damage.FAULTS, *faults_runs.FAULTS)


def campaign(folder: Path, faults: tuple[Fault, ...], commands: tuple[str, ...], tries: int, seed: int) -> list[Tally]:
    shop, found = Workshop(folder, commands), []
    for fault in faults:
        begun = time.monotonic()
        tally = fault(shop, random.Random(seed), tries)
        found.append(tally)
        print(f"| {tally.fault} | {tally.tried} | {tally.lost} | {tally.wrong} | {time.monotonic() - begun:.0f} s |")
        for sentence, n in tally.said.most_common():
            print(f"    {n} × {sentence}")
        for failure in tally.failures:
            print(f"    FAILED: {failure}")
        sys.stdout.flush()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tries", type=int, nargs="?", default=20)
    parser.add_argument("--only", help="names of faults, with commas between them  [default: all]")
    parser.add_argument("--commands", help="names of commands, with commas between them  [default: all]")
    parser.add_argument("--seed", type=int, default=0, help="[default: %(default)s]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    faults = tuple(fault for fault in FAULTS if not args.only or fault.__name__ in args.only.split(","))
    commands = tuple(args.commands.split(",")) if args.commands else tuple(COMMANDS)
    with tempfile.TemporaryDirectory(prefix="splinterp-faults-") as folder:
        found = campaign(Path(folder), faults, commands, args.tries, args.seed)
    sys.exit(any(tally.failures for tally in found))


if __name__ == "__main__":
    main()
