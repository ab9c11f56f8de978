"""See that what reading takes of memory does not grow with the store.

    python tests/campaigns/reading_memory.py 1 8

For each size in GB: a store of bfloat16 rows (d=768) is written, then read by processes of their own: an epoch of shuffled batches, and every
row in order through `acts`. The figures are peaks of resident memory in MiB; with `acts` they hold pages of the page cache too, of the up to
four chunks that are mapped at a time, so all stores have chunks of the size of large ones. Exit code 1 if the largest store takes over 10 % more
than the smallest.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from common import peak_memory
from splinterp import store

D, PIECE, CHUNK_ROWS = 768, 2**15, 2**16

BATCHES = "for x in opened.batches('hook', 4096): pass"
ACTS = "for a in range(0, opened.rows, 4096): opened.acts('hook', a, min(a + 4096, opened.rows)).sum()"
READ = """
import sys, torch
torch.set_num_threads(1)
from splinterp import store
opened = store.open(sys.argv[1])
{what}
"""


def write(path: Path, gb: float) -> None:
    rows = int(gb * 1e9 / (2 * D))
    x = torch.randn(PIECE, D).bfloat16()
    with store.create(path, sites={"hook": D}, rows=rows, chunk_rows=CHUNK_ROWS) as writer:
        while not writer.full:
            writer.add({"hook": x})
        writer.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gb", type=float, nargs="+")
    parser.add_argument("--folder", type=Path, help="where to write  [default: the system's temporary folder]")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="splinterp-memory-", dir=args.folder))
    peaks: dict[str, list[int]] = {"shuffled batches": [], "acts in order": []}
    try:
        for gb in sorted(args.gb):
            path = folder / f"{gb}.zarr"
            write(path, gb)
            for name, what in zip(peaks, (BATCHES, ACTS), strict=True):
                peaks[name].append(peak_memory(READ.format(what=what), path))
            shutil.rmtree(path)
    finally:
        shutil.rmtree(folder)
    print(f"| peak MiB | {' | '.join(f'{gb:g} GB' for gb in sorted(args.gb))} |")
    print(f"|---|{'---|' * len(args.gb)}")
    for name, found in peaks.items():
        print(f"| {name} | {' | '.join(str(n) for n in found)} |")
    sys.exit(any(found[-1] > 1.1 * found[0] for found in peaks.values()))


if __name__ == "__main__":
    main()
