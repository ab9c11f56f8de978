"""Held-out FVU of PAM-SGD and Adam over learning rates, on a store: what `--lr auto` and the decoder's defaults rest on.

    python bench/lr_sweep.py --store demo/acts.zarr --rows 60k --batch-size 256 --lr 2e-3 4e-3 8e-3 1.6e-2

Prints one line a run: the FVU as trained and after the last solve, dead latents, rows a second. Both methods see the same rows.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from splinterp import store as stores  # pyright: ignore[reportMissingImports]  (found once installed)
from splinterp.devices import choose_device  # pyright: ignore[reportMissingImports]
from splinterp.quantities import parse_quantity  # pyright: ignore[reportMissingImports]
from splinterp.train import TrainConfig, train  # pyright: ignore[reportMissingImports]
from splinterp.train.config import Method  # pyright: ignore[reportMissingImports]

# What is compared: the method, and whether the decoder takes gradient steps.
METHODS: dict[str, tuple[Method, bool]] = {
    "Adam": ("adam", True),
    "PAM-SGD": ("pam", True),
    "PAM-SGD, solve only": ("pam", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--site")
    parser.add_argument("--rows", type=parse_quantity, default=60_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--lr", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3, 1.6e-2])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    store = stores.open(args.store)
    site = store.site(args.site)
    print(
        f"{site.name}, d_in {site.d}, {args.rows:,} rows, batch {args.batch_size}, {args.expansion * site.d} latents, k={args.k}"
    )
    print("| lr | method | FVU as trained | FVU after the last solve | dead in training | rows/s |\n|---|---|---|---|---|---|")
    for lr in args.lr:
        for name, (method, decoder_steps) in METHODS.items():
            config = TrainConfig(
                method=method, activation="topk", d_sae=args.expansion * site.d, k=args.k, rows=args.rows, batch_size=args.batch_size,
                lr=lr, decoder_steps=decoder_steps, seed=args.seed,
            )  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                s = train(store, site.name, config, Path(folder) / "run", choose_device("auto")).summary
            print(
                f"| {lr:g} | {name} | {s['before_last_solve']['fvu']:.4f} | {s['fvu']:.4f} | {s['dead_in_training']} "
                f"| {s['rows_per_second']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
