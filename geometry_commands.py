"""The commands on an SAE's geometry, and on what lies at its two ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .notes import note
from .options import DeviceOption, ForceOption, JsonOption, SiteOption, StoreOption, quantity
from .quantities import json_safe, parse_bytes
from .sae_commands import SAEArgument, split_of

out_console = Console()


def geometry(
    sae: SAEArgument,
    store: StoreOption,
    site: SiteOption = None,
    split: Annotated[str, typer.Option(help="held_out, validation, train or all.")] = "held_out",
    rows: Annotated[int, typer.Option(parser=quantity, help="To look at, at most; the first of the split.")] = 4096,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """An SAE's regions: a power diagram, verified row by row; the maps on them, how many are visited, how far their borders are."""
    from .api import geometry as run
    from .progress import Bar

    with Bar("geometry", None) as bar:
        found = run(sae, store, site=site, split=split_of(split), rows=rows, device=device, progress=bar.report)
    if as_json:
        print(json.dumps(json_safe(found), allow_nan=False))
        return
    from .report.geometry import print_geometry

    print_geometry(out_console, found)


def spectrum(
    store: StoreOption,
    site: SiteOption = None,
    sae: Annotated[
        list[str] | None,
        typer.Option("--sae", metavar="SAE", help="A run directory, or an SAE in SAELens's format; may be repeated."),
    ] = None,
    regions: Annotated[int, typer.Option(parser=quantity, help="Of k-means and local PCA; 1: the mean, and PCA.")] = 256,
    epochs: Annotated[int, typer.Option(parser=quantity, help="Of mini-batch k-means over the training rows.")] = 3,
    coefficients: Annotated[
        float | None,
        typer.Option(help="That local PCA may have a row, on average. \\[default: as many as each SAE; without one 32]"),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--lambda", help="Eigenvalues above it are kept. \\[default: by --coefficients, on validation rows]"),
    ] = None,
    bits: Annotated[float, typer.Option(help="Of a coefficient, in the description length.")] = 8,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="That covariances may take. \\[default: half of the machine's]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of k-means.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a plot too: spectrum.svg.")] = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """k-means, SAEs and local PCA side by side: FVU against description length on held-out rows."""
    from .api import spectrum as run
    from .progress import Bar
    from .report.geometry import print_spectrum

    with Bar("spectrum", None) as bar:
        result = run(
            store, sae or (), out, site=site, regions=regions, epochs=epochs, coefficients=coefficients, price=price, bits=bits,
            memory=None if memory is None else parse_bytes(memory), seed=seed, force=force, progress=bar.report, tell=note,
        )  # fmt: skip
    print(json.dumps(json_safe(result), allow_nan=False)) if as_json else print_spectrum(out_console, result)
