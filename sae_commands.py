"""Commands on a finished SAE: figures of it, its codes, and how much its encoder leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .errors import Interrupted
from .notes import note
from .options import (
    DeviceOption,
    EncoderOption,
    ForceOption,
    JsonOption,
    KOption,
    L1Option,
    ResidualOption,
    SignedOption,
    SiteOption,
    StartOption,
    StepsOption,
    StoreOption,
    quantity,
)
from .quantities import json_safe

SAEArgument = Annotated[
    str,
    typer.Argument(metavar="SAE", help="A run directory, any SAE in SAELens's format, or hf://user/repo/folder on the hub."),
]
SPLITS = ("held_out", "validation", "train", "all")
out_console = Console()


def evaluate(
    sae: SAEArgument,
    store: StoreOption,
    site: SiteOption = None,
    split: Annotated[str, typer.Option(help=f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]}.")] = "held_out",
    encoder: EncoderOption = "native",
    k: KOption = None,
    l1: L1Option = None,
    residual: ResidualOption = None,
    signed: SignedOption = None,
    steps: StepsOption = None,
    start: StartOption = None,
    model: Annotated[str | None, typer.Option(help="Also take the cross-entropy of this model with the SAE in place.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Text for --model. \\[default: the store's]")] = None,
    tokens: Annotated[int | None, typer.Option(parser=quantity, help="Tokens of text for --model. \\[default: 20k]")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Figures of an SAE on a store's held-out rows."""
    from .api import evaluate as run
    from .progress import Bar

    with Bar("eval", None) as bar:
        figures = run(
            sae, store, site=site, split=split_of(split), encoder=encoder, k=k, l1=l1, residual=residual, signed=signed, steps=steps, start=start,
            model=model, dataset=dataset, tokens=tokens, device=device, progress=bar.report, tell=note,
        )  # fmt: skip
    if as_json:
        print(json.dumps(json_safe(figures), allow_nan=False))
        return
    from .report.tables import print_figures

    settings = figures.pop("encoder_settings", {})
    print_figures(out_console, figures | settings)


def encode(
    sae: SAEArgument,
    store: StoreOption,
    out: Annotated[str, typer.Option(metavar="PATH", help="The store of codes to write: CSR in a Zarr group.")],
    site: SiteOption = None,
    split: Annotated[str, typer.Option(help="all (row i is the store's), held_out, validation or train.")] = "all",
    encoder: EncoderOption = "native",
    k: KOption = None,
    l1: L1Option = None,
    residual: ResidualOption = None,
    signed: SignedOption = None,
    steps: StepsOption = None,
    start: StartOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Write the codes of a store's rows, by the SAE's encoder or a better one, for zarr and scipy to read."""
    from .api import encode as run
    from .progress import Bar
    from .quantities import format_count

    begun = time.monotonic()
    try:
        with Bar("encode", None) as bar:
            made = run(
                sae, store, out, site=site, split=split_of(split), encoder=encoder, k=k, l1=l1, residual=residual, signed=signed, steps=steps,
                start=start, device=device, force=force, progress=bar.report, tell=note,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted; nothing was written to {out}. The same command begins anew.") from None
    rate = format_count(made.shape[0] / (time.monotonic() - begun))
    out_console.print(
        f"{made.path}: codes of {made.shape[0]:,} rows by {made.attributes['encoder']}, L0 {made.nnz / max(1, made.shape[0]):.1f}, {rate} rows/s.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def gap(
    sae: SAEArgument,
    store: StoreOption,
    site: SiteOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for gap.svg, gap.md and gap.json. \\[default: none is written]")
    ] = None,
    rows: Annotated[
        int,
        typer.Option(parser=quantity, help="Held-out rows to measure on; an eighth of them for ista, fista, cd, lca and ito."),
    ] = 4096,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", help="Latents a row to look at; may be repeated. \\[default: k/4, k/2, k, 2k of the SAE]"),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="Encoders to look at beside the native one; may be repeated (see eval --encoder). \\[default: ls, mp, gradient-pursuit, omp, "
            "fista, and mlp where there is one]"
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """The amortisation gap: FVU against L0 of better encoders than the SAE's own, with the same dictionary."""
    from .api import gap as run
    from .progress import Bar
    from .report.gap import print_gap

    with Bar("gap", None, unit="points") as bar:
        found = run(
            sae,
            store,
            out,
            site=site,
            rows=rows,
            k=k or (),
            encoders=encoder or (),
            device=device,
            force=force,
            progress=bar.report,
            tell=note,
        )
    if as_json:
        print(json.dumps(found.as_json(), allow_nan=False))
        return
    print_gap(out_console, found.gap)
    if out is not None:
        out_console.print(f"Plot: {out / 'gap.svg'}.", markup=False, highlight=False, soft_wrap=True)


def mlp(
    sae: SAEArgument,
    store: StoreOption,
    site: SiteOption = None,
    width: Annotated[int | None, typer.Option(parser=quantity, help="Hidden units. \\[default: 4 times d_in]")] = None,
    tokens: Annotated[
        int | None, typer.Option(parser=quantity, help="Rows to train on, epochs counted; instead of --epochs.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(parser=quantity, help="Passes over the training rows. \\[default: 1]")] = None,
    batch_size: Annotated[int, typer.Option(parser=quantity, help="Rows a step.")] = 512,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. \\[default: 0.001]")] = None,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the order of the rows, and of the units that begin at random.")] = 0,
    force: ForceOption = False,
) -> None:
    """Train an MLP as an encoder of an SAE's dictionary, beside the SAE: for `--encoder mlp` and for `gap`."""
    from .api import mlp as run
    from .progress import Bar
    from .quantities import format_seconds

    if tokens and epochs:
        raise typer.BadParameter("give --tokens or --epochs, not both")
    try:
        with Bar("mlp", None) as bar:
            result = run(
                sae, store, site=site, width=width, tokens=tokens, epochs=epochs, batch_size=batch_size, lr=lr, device=device, seed=seed,
                force=force, progress=bar.report,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted("Interrupted; nothing was written. The same command begins anew.") from None
    s = result.summary
    if s["note"]:
        note(s["note"])
    out_console.print(
        f"FVU on {s['n_rows']:,} held-out rows: {s['native']['fvu']:.4f} at L0 {s['native']['l0']:.1f} by the SAE's encoder, {s['fvu']:.4f} at L0 "
        f"{s['l0']:.1f} by the MLP; {format_seconds(s['seconds'])} -> {result.path}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def split_of(name: str) -> str:
    """The name of a split. Raises typer.BadParameter for another one."""
    if name not in SPLITS:
        raise typer.BadParameter(f"--split is {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    return name
