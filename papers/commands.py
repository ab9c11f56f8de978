"""`splinterp reproduce`: the papers' experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import Interrupted
from ..options import quantity

reproduce = typer.Typer(name="reproduce", no_args_is_help=True, help="The papers' experiments, at a size that runs anywhere.")

ROWS = 60_000  # of the embedded model's, where no store is given


@reproduce.callback()
def common() -> None:
    """The papers' experiments, at a size that runs anywhere."""


@reproduce.command("topk-peak")
def topk_peak(
    out: Annotated[
        Path,
        typer.Option(help="Folder for cells.jsonl (what it holds is not trained again), topk-peak.json and topk-peak.svg."),
    ] = Path("topk-peak"),
    store: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="\\[default: the embedded model's activations, harvested into --out]"),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Of a store that has several.")] = None,
    latents: Annotated[
        int | None, typer.Option(parser=quantity, help="\\[default: 16 to 9 dimensions, as in the paper]")
    ] = None,
    epochs: Annotated[int, typer.Option(parser=quantity, help="Of training.")] = 50,
    seeds: Annotated[str, typer.Option(help="With commas.")] = "0,1,2",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")] = False,
) -> None:
    """Why TopK's test error peaks at 45 % of the data (SplInterp, open question 3), and that a chosen ridge has no peak."""
    from rich.console import Console

    from .. import store as stores
    from ..bench.commands import numbers
    from ..demo import embedded_store
    from ..progress import Bar
    from .topk_peak import NAME, TopKPeak, run, table

    config = TopKPeak(latents=latents, epochs=epochs, seeds=numbers(seeds, int, "--seeds"))
    opened = stores.open(store) if store else embedded_store(out / "acts.zarr", ROWS, Console(stderr=True))[0]
    try:
        with Bar(NAME, None, unit="cells") as bar:
            result = run(
                config, opened, opened.site(site).name, out, lambda done, total, cell: bar.update(done, cell, total=total)
            )
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted; {out} keeps the cells that are done. The same command goes on.") from None
    if as_json:
        print(json.dumps(result))
    else:
        print(f"{table(result)}\n\nPlot: {out / NAME}.svg. Every figure: {out / NAME}.json.")
