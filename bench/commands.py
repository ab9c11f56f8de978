"""`splinterp bench`: measure this machine, and see the ratios that RESULTS.md quotes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(name="bench", no_args_is_help=True, help="Measure on this machine what our figures rest on.")


@bench.callback()
def common() -> None:
    """Measure on this machine what our figures rest on."""


@bench.command()
def store(
    gb: Annotated[float, typer.Option(help="Size of the rows in GB; the disk needs seven times that.")] = 1.0,
    d: Annotated[int, typer.Option(help="Width of the rows.")] = 768,
    dtype: Annotated[list[str] | None, typer.Option(help="May be repeated. \\[default: bfloat16, float32]")] = None,
    rounds: Annotated[int, typer.Option(help="How often each contender runs.")] = 5,
    rows_of: Annotated[
        str | None,
        typer.Option(
            "--store", metavar="STORE", help="Take the rows and dtype of this store. \\[default: normal random numbers]"
        ),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Of that store, where it has several.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="On the disk to be measured. \\[default: the system's temporary folder]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")] = False,
) -> None:
    """Our store against raw file writing, a memory map's copy, and plain zarr: cold and warm, in one run, as ratios."""
    from ..progress import Bar
    from .store import StoreBench, run, table

    chosen = {} if dtype is None else {"dtypes": tuple(dtype)}
    config = StoreBench(gb=gb, d=d, rounds=rounds, store=rows_of, site=site, folder=folder, **chosen)
    done, results = 0, {}
    total = config.steps * (1 if rows_of else len(config.dtypes))
    with Bar("bench", total, unit="runs") as bar:

        def step() -> None:
            nonlocal done
            done += 1
            bar.update(done)

        for result in run(config, step):
            results[result["dtype"]] = result
            if not as_json:
                print(table(result), end="\n\n", flush=True)
    if as_json:
        print(json.dumps({"ratios": {name: result["ratios"] for name, result in results.items()}, "results": results}))
