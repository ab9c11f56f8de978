"""Dead latents with AuxK, with resampling and with nothing done for them, on a store: what `--revive`'s default rests on.

    python bench/dead_latents.py --store acts.zarr --rows 190k --batch-size 256 --dead-after 20k --seeds 3

Prints one line a setting, its seeds' figures one after the other: the FVU as trained and after the last solve, L0, the share of latents that
fired on no held-out row, and those that training counted as dead at its end. All settings see the same rows.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from splinterp import store as stores  # pyright: ignore[reportMissingImports]  (found once installed)
from splinterp.devices import choose_device  # pyright: ignore[reportMissingImports]
from splinterp.quantities import parse_quantity  # pyright: ignore[reportMissingImports]
from splinterp.train import TrainConfig, auto_lr, train  # pyright: ignore[reportMissingImports]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--site")
    parser.add_argument("--rows", type=parse_quantity, default=190_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--l1", type=float, default=5.0)
    parser.add_argument("--dead-after", type=parse_quantity, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", nargs="+", default=["pam"])
    parser.add_argument("--activation", nargs="+", default=["topk", "jumprelu", "relu"])
    parser.add_argument("--revive", nargs="+", default=["auxk", "resample", "none"])
    args = parser.parse_args()
    store = stores.open(args.store)
    site = store.site(args.site)
    print(
        f"{site.name}, d_in {site.d}, {args.rows:,} rows, batch {args.batch_size}, {args.expansion * site.d} latents, k={args.k}, "
        f"l1={args.l1:g} (relu), dead after {args.dead_after:,} rows, seeds 0 to {args.seeds - 1}\n"
    )
    print("| activation | method | revive | FVU as trained | FVU after the last solve | L0 | dead, % | dead in training |")
    print("|---|---|---|---|---|---|---|---|")
    for activation in args.activation:
        for method in args.method:
            for revive in args.revive:
                runs = []
                for seed in range(args.seeds):
                    config = TrainConfig(
                        method=method, activation=activation, d_sae=args.expansion * site.d, k=None if activation == "relu" else args.k,
                        l1=args.l1 if activation == "relu" else 0.0, rows=args.rows, batch_size=args.batch_size, lr=auto_lr(site.d),
                        revive=revive, dead_after=args.dead_after, seed=seed,
                    )  # fmt: skip
                    with tempfile.TemporaryDirectory() as folder:
                        runs.append(train(store, site.name, config, Path(folder) / "run", choose_device("auto")).summary)
                figures = (
                    [f"{run['before_last_solve']['fvu']:.4f}" for run in runs],
                    [f"{run['fvu']:.4f}" for run in runs],
                    [f"{run['l0']:.1f}" for run in runs],
                    [f"{100 * run['dead_fraction']:.1f}" for run in runs],
                    [str(run["dead_in_training"]) for run in runs],
                )
                print(f"| {activation} | {method} | {revive} | {' | '.join(' '.join(f) for f in figures)} |", flush=True)


if __name__ == "__main__":
    main()
