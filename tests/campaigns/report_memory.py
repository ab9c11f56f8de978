"""See that a report takes no more memory of a larger store, and that 5 million rows and 16,384 latents fit into 2 GB.

    python tests/campaigns/report_memory.py 500k 5M

For each number of rows: a store of random bfloat16 rows (d=32) with a tokenizer, in sequences of 128 tokens, and the report of a random SAE
(16,384 latents, TopK, k=8) on it by the command line, in a process of its own, whose peak of resident memory (MiB) and time are printed. Exit
code 1 if a peak is above `--limit` (MiB), or the largest store takes over a quarter more than the smallest: chunks of large stores are larger.
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
from splinterp.quantities import parse_quantity
from splinterp.sae import SAE, SAEConfig, save_sae

D, LATENTS, K, CONTEXT, VOCABULARY, PIECE = 32, 16384, 8, 128, 4096, 2**17

REPORT = """
import sys, torch
torch.set_num_threads(1)
from splinterp import cli
try:
    cli.main(["report", sys.argv[1], "--store", sys.argv[2], "--out", sys.argv[3]])
except SystemExit as end:
    assert not end.code
"""


def write(path: Path, rows: int) -> None:
    """A store of so many rows, shuffled as a harvest's, with the embedded model's tokenizer."""
    from splinterp import models

    columns = ("token_id", "position", "document", "sequence")
    generator = torch.Generator().manual_seed(0)
    with store.create(path, sites={"hook": D}, rows=rows, columns=columns) as writer:
        for a in range(0, rows, PIECE):
            index = torch.arange(a, min(a + PIECE, rows))
            sequence = index // CONTEXT
            tokens = torch.randint(1, VOCABULARY, index.shape, generator=generator)
            told = dict(zip(columns, (tokens, index % CONTEXT, sequence // 8, sequence), strict=True))
            writer.add({"hook": torch.randn(len(index), D, generator=generator)}, told)
        writer.finish()
    (path / "tokenizer").mkdir()
    shutil.copy(Path(models.__file__).parent / "tiny" / "tokenizer.json", path / "tokenizer")


def random_sae(path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    W = torch.nn.functional.normalize(torch.randn(LATENTS, D, generator=generator), dim=1)
    save_sae(SAE(SAEConfig("topk", D, LATENTS, K), W.T.contiguous(), torch.zeros(LATENTS), W, torch.zeros(D)), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=parse_quantity, nargs="+")
    parser.add_argument("--limit", type=int, default=2000, help="MiB  [default: %(default)s]")
    parser.add_argument("--folder", type=Path, help="where to write  [default: the system's temporary folder]")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="splinterp-memory-", dir=args.folder))
    peaks = []
    print("| rows | codes of all rows, sparse | peak MiB | seconds | page |\n|---|---|---|---|---|")
    try:
        random_sae(folder / "sae")
        for rows in sorted(args.rows):
            path, page = folder / f"{rows}.zarr", folder / f"{rows}.html"
            write(path, rows)
            begun = time.monotonic()
            peaks.append(peak_memory(REPORT, folder / "sae", path, page))
            seconds, size = time.monotonic() - begun, page.stat().st_size / 1e6
            print(f"| {rows:,} | {1e-9 * 8 * K * rows:.2f} GB | {peaks[-1]} | {seconds:.0f} | {size:.1f} MB |", flush=True)
            shutil.rmtree(path)
    finally:
        shutil.rmtree(folder)
    sys.exit(max(peaks) > args.limit or peaks[-1] > 1.25 * peaks[0])


if __name__ == "__main__":
    main()
