"""Dead latents with AuxK, with resampling and with nothing done for them, on a store: what `--revive`'s default rests on.

    python bench/dead_latents.py --store acts.zarr --rows 100k --seed 0 1

Prints one line a run: the FVU as trained and after the last solve, L0, the share of latents that fired on no held-out row, and those that
training counted as dead at its end. All settings see the same rows.
"""

from __future__ import annotations

import argparse
from itertools import product

from splinterp import store as stores  # pyright: ignore[reportMissingImports]  (found once installed)
from splinterp.bench.temporary import train_once  # pyright: ignore[reportMissingImports]
from splinterp.quantities import parse_quantity  # pyright: ignore[reportMissingImports]
from splinterp.train import TrainConfig, auto_lr  # pyright: ignore[reportMissingImports]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--site")
    parser.add_argument("--rows", type=parse_quantity, default=100_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--l1", type=float, default=5.0)
    parser.add_argument("--dead-after", type=parse_quantity, default=20_000)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--method", nargs="+", default=["pam"])
    parser.add_argument("--activation", nargs="+", default=["topk", "jumprelu", "relu"])
    parser.add_argument("--revive", nargs="+", default=["auxk", "resample", "none"])
    args = parser.parse_args()
    store = stores.open(args.store)
    site = store.site(args.site)
    print(
        f"{site.name}, d_in {site.d}, {args.rows:,} rows, batch {args.batch_size}, {args.expansion * site.d} latents, k={args.k}, "
        f"l1={args.l1:g} (relu), dead after {args.dead_after:,} rows\n"
    )
    print(
        "| activation | method | seed | revive | FVU as trained | FVU after the last solve | L0 | dead, % | dead in training |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for activation, method, seed, revive in product(args.activation, args.method, args.seed, args.revive):
        config = TrainConfig(
            method=method, activation=activation, d_sae=args.expansion * site.d, k=None if activation == "relu" else args.k,
            l1=args.l1 if activation == "relu" else 0.0, rows=args.rows, batch_size=args.batch_size, lr=auto_lr(site.d), revive=revive,
            dead_after=args.dead_after, seed=seed,
        )  # fmt: skip
        run = train_once(store, site.name, config)
        if run is None:
            print(f"| {activation} | {method} | {seed} | {revive} | diverged | | | | |", flush=True)
            continue
        s = run.summary
        print(
            f"| {activation} | {method} | {seed} | {revive} | {s['before_last_solve']['fvu']:.4f} | {s['fvu']:.4f} | {s['l0']:.1f} "
            f"| {100 * s['dead_fraction']:.1f} | {s['dead_in_training']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
