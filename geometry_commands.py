"""The commands on an SAE's geometry, and on what lies at its two ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .errors import SplinterpError
from .options import DeviceOption, ForceOption, JsonOption, SiteOption, StoreOption, quantity
from .quantities import json_safe, parse_bytes
from .sae_commands import open_both, split_of
from .sites import site_of

out_console = Console()


def geometry(
    sae: Annotated[Path, typer.Argument(help="A run directory, or any SAE in SAELens's format.")],
    store: StoreOption,
    site: SiteOption = None,
    split: Annotated[str, typer.Option(help="held_out, validation, train or all.")] = "held_out",
    rows: Annotated[int, typer.Option(parser=quantity, help="To look at, at most; the first of the split.")] = 4096,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """An SAE's regions: a power diagram, verified row by row; the maps on them, how many are visited, how far their borders are."""
    from .devices import suitable_threads
    from .geometry import survey
    from .progress import Bar

    named, opened = split_of(split), open_both(sae, store, site, device)
    if not (there := opened.store.split_rows(named)):
        raise SplinterpError(
            f"{store} has no rows in its split {named}, with {opened.store.rows:,} in all; name another --split."
        )
    with Bar("geometry", min(rows, there)) as bar, suitable_threads(opened.sae.W_enc.numel(), opened.device):
        found = {**survey(opened.sae, opened.rows(named), rows, bar.update), "split": named}
    if as_json:
        print(json.dumps(json_safe(found), allow_nan=False))
        return
    from .report.geometry import print_geometry

    print_geometry(out_console, found)


def spectrum(
    store: StoreOption,
    site: SiteOption = None,
    sae: Annotated[
        list[Path] | None,
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
    import torch

    from . import store as stores
    from .devices import suitable_threads, total_memory
    from .geometry import SpectrumOptions
    from .geometry import spectrum as run
    from .progress import Bar
    from .report.geometry import draw_spectrum, print_spectrum
    from .sae import load_sae
    from .train import check_width

    cpu = torch.device("cpu")
    options = SpectrumOptions(
        regions=regions, epochs=epochs, seed=seed, price=price, coefficients=coefficients, bits=bits,
        memory=total_memory(cpu) // 2 if memory is None else parse_bytes(memory),
    )  # fmt: skip
    if out is not None and out.exists() and not force:
        raise SplinterpError(f"{out} exists already; give another --out, or --force to replace it.")
    loaded, opened = {str(path): load_sae(path) for path in sae or []}, stores.open(store)
    chosen = opened.site(site or next(filter(None, (site_of(one, opened) for one in loaded.values())), None))
    for name, one in loaded.items():
        check_width(one.config.d_in, name, opened, chosen.name)
    with Bar("spectrum", None) as bar, suitable_threads(chosen.d * regions, cpu):
        result = run(
            options, opened, chosen.name, loaded, lambda stage, done, total: bar.update(done, description=stage, total=total)
        )
    if out is not None:
        out.write_text(draw_spectrum(result) + "\n", encoding="utf-8")
    print(json.dumps(json_safe(result), allow_nan=False)) if as_json else print_spectrum(out_console, result)
