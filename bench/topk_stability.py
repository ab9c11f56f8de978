"""Whether TopK is stable at every k, where the paper (SplInterp, arXiv 2505.11836) found it so only above 8 to 15 % of the latents.

    python bench/topk_stability.py --store demo/acts.zarr --rows 20k --latents 4096 --k 16 32 64 128 320

Prints one line a k: held-out FVU as trained and after the last solve, how far it ever rose above its lowest before on the way (measured ten
times), L0, and the ridge that was chosen; then whether a run diverged, and whether FVU falls with k. Exactly so many rows are trained and solved on.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

from splinterp import store as stores  # pyright: ignore[reportMissingImports]  (found once installed)
from splinterp.bench.sizes import part_of  # pyright: ignore[reportMissingImports]
from splinterp.bench.temporary import train_once  # pyright: ignore[reportMissingImports]
from splinterp.quantities import parse_quantity  # pyright: ignore[reportMissingImports]
from splinterp.train import TrainConfig, auto_batch_size, auto_lr  # pyright: ignore[reportMissingImports]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--site")
    parser.add_argument("--rows", type=parse_quantity, default=20_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--latents", type=parse_quantity, default=4096)
    parser.add_argument("--k", type=int, nargs="+", default=[16, 32, 64, 128, 320])
    parser.add_argument("--method", default="pam")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    store = stores.open(args.store)
    site = store.site(args.site)
    fvus: list[float | None] = []
    with part_of(store, site.name, args.rows) as part:
        rows = part.split_rows("train")
        print(f"{site.name}, d_in {site.d}, {args.latents:,} latents, {rows:,} rows, {args.epochs} epochs, {args.method}\n")
        print(
            "| k | FVU as trained | largest rise on the way | FVU after the last solve | L0 | ridge |\n|---|---|---|---|---|---|"
        )
        for k in sorted(args.k):
            config = TrainConfig(
                method=args.method, activation="topk", d_sae=args.latents, k=k, rows=rows * args.epochs, different_rows=rows,
                batch_size=auto_batch_size(rows * args.epochs), lr=auto_lr(site.d), seed=args.seed,
            )  # fmt: skip
            run = train_once(part, site.name, config)
            fvus.append(run.summary["fvu"] if run else None)
            if run is None:
                print(f"| {k} | diverged | | | | |", flush=True)
                continue
            s = run.summary
            way = [line["held_out_fvu"] for line in run.metrics if "held_out_fvu" in line]
            rise = max((b / min(way[: i + 1]) - 1 for i, b in enumerate(way[1:])), default=0.0)
            ridge = s["last_solve"]["ridge"]
            print(
                f"| {k} | {s['before_last_solve']['fvu']:.4f} | {max(rise, 0):.1%} | {s['fvu']:.4f} | {s['l0']:.1f} "
                f"| {'the present decoder stays' if ridge is None else f'{ridge:g}'} |",
                flush=True,
            )
    falls = all(a is not None and b is not None and b < a for a, b in pairwise(fvus))
    print(f"\nDiverged: {fvus.count(None)} of {len(fvus)}. FVU falls with k throughout: {'yes' if falls else 'no'}.")


if __name__ == "__main__":
    main()
