"""`splinterp bench`: measure this machine, and see the ratios that RESULTS.md quotes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ..errors import Interrupted
from ..options import JsonOption, quantity
from ..quantities import parse_bytes

N = TypeVar("N", int, float)

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
    writing: Annotated[bool, typer.Option("--writing", help="Only the table of writing.")] = False,
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
    as_json: JsonOption = False,
) -> None:
    """Our store against raw file writing, a memory map's copy, and plain zarr: cold and warm, in one run, as ratios."""
    from .store import StoreBench, run, table

    chosen = {} if dtype is None else {"dtypes": tuple(dtype)}
    config = StoreBench(gb=gb, d=d, reading=not writing, rounds=rounds, store=rows_of, site=site, folder=folder, **chosen)
    results = {}
    with _bar(config.steps * (1 if rows_of else len(config.dtypes))) as step:
        for result in run(config, step):
            results[result["dtype"]] = result
            if not as_json:
                print(table(result), end="\n\n", flush=True)
    if as_json:
        print(json.dumps({"ratios": {name: result["ratios"] for name, result in results.items()}, "results": results}))


@bench.command()
def harvest(
    architecture: Annotated[str, typer.Option(help="Random weights of it: gpt2 or gemma-2-2b.")] = "gpt2",
    model: Annotated[str | None, typer.Option(metavar="DIR", help="A Hugging Face directory instead.")] = None,
    layer: Annotated[int, typer.Option(help="Block to harvest at, from 0.")] = 6,
    context: Annotated[int, typer.Option(help="Tokens in a packed row, BOS included.")] = 128,
    tokens: Annotated[int, typer.Option(parser=quantity, help="That each contender forwards in a round.")] = 32768,
    free_tokens: Annotated[
        int, typer.Option(parser=quantity, help="Rows of 2304 to write in a round with a free forward pass; 0: none.")
    ] = 1_000_000,
    batch_size: Annotated[int | None, typer.Option(help="Packed rows a forward pass. \\[default: as harvest chooses]")] = None,
    model_dtype: Annotated[str, typer.Option(help="Of the forward pass: auto, bfloat16, float16 or float32.")] = "auto",
    compile_blocks: Annotated[bool, typer.Option("--compile", help="Ours with torch.compile.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    rounds: Annotated[int, typer.Option(help="How often each contender runs.")] = 3,
    folder: Annotated[
        Path | None, typer.Option(help="On the disk to be measured. \\[default: the system's temporary folder]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Harvesting against the bare forward pass, TransformerLens and SAELens's runner (where installed), and against raw writing."""
    from .harvest import HarvestBench, run, table

    config = HarvestBench(
        architecture=architecture, model=model, layer=layer, context=context, tokens=tokens, free_tokens=free_tokens,
        batch_size=batch_size, model_dtype=model_dtype, compile=compile_blocks, device=device, rounds=rounds, folder=folder,
    )  # fmt: skip
    with _bar(config.steps) as step:
        result = run(config, step)
    print(json.dumps(result) if as_json else table(result))


@bench.command()
def train(
    rows: Annotated[int, typer.Option("--rows", "-N", help="Rows a step.")] = 2048,
    d_in: Annotated[int, typer.Option(help="Width of the rows.")] = 768,
    latents: Annotated[int, typer.Option(help="Of the SAE.")] = 8192,
    k: Annotated[int, typer.Option(help="Latents kept a row.")] = 32,
    rounds: Annotated[int, typer.Option(help="How often each contender takes a step.")] = 5,
    threads: Annotated[int | None, typer.Option(help="CPU threads. \\[default: as torch chooses]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    precision: Annotated[
        str,
        typer.Option(help="Of the product in our steps: auto (tf32 on a GPU, float32 on a CPU), float32, tf32 or bfloat16."),
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="For the decoder's statistics, as in `train`. \\[default: half of the machine's]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A training step (PAM-SGD, Adam) against the bare product x·W_enc, plain dense Adam and SAELens (where installed)."""
    from .train import TrainBench, run, table

    config = TrainBench(
        rows=rows, d_in=d_in, latents=latents, k=k, rounds=rounds, threads=threads, device=device,
        precision=precision, memory=None if memory is None else parse_bytes(memory),  # type: ignore[arg-type]
    )  # fmt: skip
    with _bar(config.steps) as step:
        result = run(config, step)
    print(json.dumps(result) if as_json else table(result))


@bench.command()
def infer(
    latents: Annotated[int, typer.Option(parser=quantity, help="Atoms of the dictionary.")] = 1536,
    d_in: Annotated[int, typer.Option(help="Width of the rows.")] = 384,
    k: Annotated[int, typer.Option(help="Atoms chosen a row.")] = 32,
    rows: Annotated[int, typer.Option("--rows", "-N", parser=quantity, help="That ours code in a round.")] = 4096,
    sklearn_rows: Annotated[int, typer.Option(help="That scikit-learn codes in a round.")] = 64,
    rounds: Annotated[int, typer.Option(help="How often each contender runs.")] = 5,
    threads: Annotated[int | None, typer.Option(help="CPU threads of ours. \\[default: as torch chooses]")] = None,
    device: Annotated[str, typer.Option(help="Of ours: auto, cpu, cuda, …")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Orthogonal matching pursuit, gradient pursuit and matching pursuit against scikit-learn (where installed)."""
    from .infer import InferBench, run, table

    config = InferBench(
        latents=latents, d_in=d_in, k=k, rows=rows, sklearn_rows=sklearn_rows, rounds=rounds, threads=threads, device=device
    )
    with _bar(config.steps) as step:
        result = run(config, step)
    print(json.dumps(result) if as_json else table(result))


@bench.command()
def quality(
    store: Annotated[
        list[str], typer.Option(metavar="STORE", help="May be repeated. MNIST: `splinterp import` its IDX files first.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the cells, a line each (what is there is not trained again), the tables and the plots."),
    ] = Path("quality"),
    site: Annotated[str | None, typer.Option(help="Of stores that have several.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="pam, adam, saelens (its own TopK trainer) or another contender of bench/contenders.py; +refit behind it for the same with "
            "an optimal decoder. May be repeated. \\[default: pam, adam, adam+refit, saelens, saelens+refit]"
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(help="To train on in one pass: 60k, or all; may be repeated. \\[default: all, unless there is --share]"),
    ] = None,
    share: Annotated[
        str | None, typer.Option(metavar="SHARES", help="Of the rows, to train on in several epochs: 0.01,0.05,0.25.")
    ] = None,
    share_of: Annotated[
        int | None, typer.Option(parser=quantity, help="That --share is of. \\[default: the store's training rows]")
    ] = None,
    epochs: Annotated[
        str, typer.Option(help="Of --share: auto (about 2,000 steps), or numbers such as 10,30,100, tuned like the rate.")
    ] = "auto",
    seeds: Annotated[str, typer.Option(help="With commas; the first tunes the rates.")] = "0,1,2",
    rates: Annotated[
        str, typer.Option(help="The grid, as factors of the automatic rate; it grows while the best rate lies at an end.")
    ] = "0.25,0.5,1,2",
    fractions: Annotated[
        str | None,
        typer.Option(help="Of --rows, on which our methods are trained too, to see after how many they are level: 0.5,0.7."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(parser=quantity, help="Rows a step. \\[default: as train chooses for so many rows]")
    ] = None,
    latents: Annotated[int | None, typer.Option(parser=quantity, help="Of the SAEs; instead of --expansion.")] = None,
    expansion: Annotated[int, typer.Option(help="Latents per dimension.")] = 8,
    k: Annotated[int, typer.Option(help="Latents kept a row.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Held-out FVU of PAM-SGD, Adam and SAELens's trainer (where installed), each at its best rate, over seeds and data sizes."""
    from ..progress import Bar, shown
    from .quality import QualityBench, run
    from .quality_report import draw, for_json, tables

    config = QualityBench(
        stores=tuple(store), out=out, site=site, rows=tuple(None if n == "all" else quantity(n) for n in rows or ()),
        shares=numbers(share, float, "--share"), share_of=share_of, seeds=numbers(seeds, int, "--seeds"),
        epochs=() if epochs == "auto" else numbers(epochs, int, "--epochs"), factors=numbers(rates, float, "--rates"),
        fractions=numbers(fractions, float, "--fractions"), batch_size=batch_size, latents=latents, expansion=expansion, k=k, device=device,
        **({"methods": tuple(method)} if method else {}),
    )  # fmt: skip
    results, drawn = [], []
    try:
        with Bar("quality", None) as bar:
            for result in run(
                config,
                bar.tell,
                lambda done, expected, cell, figures: bar.update(round(done), shown(figures), cell, round(expected)),
            ):
                results.append(result)
                if not as_json:
                    print(tables(result), end="\n\n", flush=True)
                (out / "tables.md").write_text("\n\n".join(map(tables, results)) + "\n", encoding="utf-8")
                drawn = draw(results, out)
    except (Interrupted, KeyboardInterrupt):  # a run's own sentence is of its temporary directory
        raise Interrupted(f"Interrupted; {out} keeps the cells that are done. The same command goes on.") from None
    if as_json:
        print(json.dumps({"results": for_json(results)}, allow_nan=False))
    else:
        print(f"Plots: {', '.join(map(str, drawn))}.")


def numbers(text: str | None, parse: Callable[[str], N], option: str) -> tuple[N, ...]:
    """The values of an option that takes several with commas between them; typer.BadParameter otherwise."""
    try:
        return tuple(parse(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a list of numbers with commas between them.", param_hint=option) from None


@contextmanager
def _bar(runs: int) -> Iterator[Callable[[], None]]:
    """A progress bar of contenders' runs, and what is to be called after each."""
    from ..progress import Bar

    done = count(1)
    with Bar("bench", runs, unit="runs") as bar:
        yield lambda: bar.update(next(done))
