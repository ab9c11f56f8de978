"""The command that writes a run's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import DeviceOption, ForceOption, JsonOption, SiteOption, quantity
from .quantities import counted, format_bytes

out_console = Console()


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or any SAE in SAELens's format.")],
    store: Annotated[
        str | None, typer.Option(metavar="PATH", help="The store to look at. \\[default: the one that the run was trained on]")
    ] = None,
    site: SiteOption = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("report.html"),
    baseline: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="A run to compare figures and curves with; may be repeated.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR",
            help="Whose unembedding says which tokens a latent raises and lowers. \\[default: the store's, where it is tiny or a local directory]",
        ),
    ] = None,
    latents: Annotated[int, typer.Option(parser=quantity, help="How many to show, the most interesting ones.")] = 100,
    latent: Annotated[
        list[int] | None, typer.Option(metavar="ID", help="A latent to show before the others; may be repeated.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """One HTML page on a run: figures, curves, histograms, and latents with the contexts they fire in."""
    from .progress import Bar
    from .report import write_report

    with Bar("report", None) as bar:
        figures = write_report(
            run, store, out, site=site, model=model, baselines=baseline or (), latents=latents, ids=latent or (), device=device, force=force,
            progress=lambda stage, done, total: bar.update(done, description=stage, total=total),
        )  # fmt: skip
    if as_json:
        print(json.dumps(figures, allow_nan=False))
        return
    out_console.print(
        f"{out}: {len(figures['latents']):,} of {counted(figures['sae']['d_sae'], 'latent')}, {figures['dead']:,} dead, "
        f"{counted(figures['n_rows'], 'row')}, {format_bytes(figures['bytes'])}. Any browser opens it.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
