"""See that what training takes of memory does not grow with the store.

    python tests/campaigns/training_memory.py 2 16 --limit 1.2

For each size in GB: a store of bfloat16 rows (d=2304) is written, and one epoch of PAM-SGD (256 latents, k=8), its last solve and its figures
run over it by the command line, in a process of its own. The figures are peaks of resident memory in MiB. With `--limit` (GB) the largest is
trained on once more by a process that may not have more private memory than that. Exit code 1 if the largest store takes over 5 % more than
the smallest, or the limit was not enough.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import peak_memory
from splinterp import store

D, PIECE, LATENTS = 2304, 2**14, 256

TRAIN = """
import sys
from splinterp import cli
try:
    cli.main(["train", "--latents", sys.argv[3], "--k", "8", "--batch-size", "4096", "--store", sys.argv[1], "--out", sys.argv[2]])
except SystemExit as end:
    assert not end.code
"""


def write(path: Path, gb: float) -> int:
    """A store of random rows, the same ones over and over; how many."""
    rows = int(gb * 1e9 / (2 * D))
    x = torch.randn(PIECE, D).bfloat16()
    with store.create(path, sites={"hook": D}, rows=rows, chunk_rows=2**14) as writer:
        while not writer.full:
            writer.add({"hook": x})
        writer.finish()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gb", type=float, nargs="+")
    parser.add_argument("--limit", type=float, help="GB of private memory, for one more run on the largest store")
    parser.add_argument("--folder", type=Path, help="where to write  [default: the system's temporary folder]")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="splinterp-memory-", dir=args.folder))
    peaks = []
    print("| store | rows | dense codes of all rows | peak MiB | seconds |")
    print("|---|---|---|---|---|")
    try:
        for gb in sorted(args.gb):
            path = folder / f"{gb}.zarr"
            rows = write(path, gb)
            limits = [None, args.limit] if args.limit and gb == max(args.gb) else [None]
            for limit in limits:
                begun = time.monotonic()
                peak = peak_memory(TRAIN, path, folder / f"run-{gb}-{limit}", LATENTS, limit=limit and int(limit * 1e9))
                peaks += [peak] if limit is None else []
                name = f"{gb:g} GB" + (f", private memory limited to {limit:g} GB" if limit else "")
                print(
                    f"| {name} | {rows:,} | {4e-9 * rows * LATENTS:.1f} GB | {peak} | {time.monotonic() - begun:.0f} |",
                    flush=True,
                )
            shutil.rmtree(path)
    finally:
        shutil.rmtree(folder)
    sys.exit(peaks[-1] > 1.05 * peaks[0])


if __name__ == "__main__":
    main()
