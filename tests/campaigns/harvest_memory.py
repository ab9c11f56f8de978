"""See that what a harvest takes of memory does not grow with its length.

    python tests/campaigns/harvest_memory.py 1 5 10 20

For each number: a harvest of the embedded model, by a process of its own, whose rows fill the shuffle pool (16 MiB) that many times over.
The figures are peaks of resident memory in MiB. Exit code 1 if the longest harvest takes over 10 % more than the shortest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import peak_memory

MEMORY = 2**24
ROW_BYTES = 192 * 2

HARVEST = """
import sys
from splinterp import cli
try:
    cli.main(["harvest", "--tokens", sys.argv[1], "--memory", sys.argv[2], "--out", sys.argv[3]])
except SystemExit as end:
    assert not end.code
"""


def peak(pools: float, folder: Path) -> tuple[int, int]:
    """(rows, peak in MiB)."""
    rows = int(pools * MEMORY / ROW_BYTES)
    return rows, peak_memory(HARVEST, rows, f"{MEMORY}B", folder / f"{pools}.zarr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=float, nargs="+")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="splinterp-memory-") as folder:
        found = [peak(pools, Path(folder)) for pools in sorted(args.pools)]
    print("| pools | rows | peak MiB |")
    print("|---|---|---|")
    for pools, (rows, mib) in zip(sorted(args.pools), found, strict=True):
        print(f"| {pools:g} | {rows:,} | {mib} |")
    sys.exit(found[-1][1] > 1.1 * found[0][1])


if __name__ == "__main__":
    main()
