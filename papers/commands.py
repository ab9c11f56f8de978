"""`splinterp reproduce`: the papers' experiments."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import Interrupted
from ..options import JsonOption, quantity


class _Recipes(TyperGroup):
    """Takes `amortisation/known-codes` for `amortisation known-codes`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, [*args[0].split("/", 1), *args[1:]])


reproduce = typer.Typer(
    name="reproduce", cls=_Recipes, no_args_is_help=True, help="The papers' experiments, at a size that runs anywhere."
)

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
    as_json: JsonOption = False,
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


Presets = Annotated[
    list[str] | None,
    typer.Option("--preset", help="paper, paper-code or strong; may be repeated. \\[default: all three]", show_default=False),
]
Seeds = Annotated[str | None, typer.Option(help="With commas. \\[default: 0,1,2; with --quick 0,1]")]
Workers = Annotated[int | None, typer.Option(help="Trainings at a time. \\[default: as many as cores]")]


@reproduce.command()
def mnist(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with MNIST's IDX files (train-images-idx3-ubyte, t10k-…; .gz or not). With one of them alone its images are split. "
            "\\[default: MNIST from huggingface.co]",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for cells.jsonl (what it holds is not trained again), mnist.html and mnist.json.")
    ] = Path("mnist"),
    preset: Presets = None,
    seeds: Seeds = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes instead of hours: fewer epochs, values and seeds.")] = False,
    workers: Workers = None,
    as_json: JsonOption = False,
) -> None:
    """SplInterp's MNIST experiments (E2): as in the paper, as in its code, and with tuned methods; its claims, decided."""
    from .pam_sgd.recipe import run_mnist

    config = _recipe(preset, seeds, quick, workers)
    _run("mnist", out, as_json, lambda command, progress: run_mnist(config, data, out, command, progress))


@reproduce.command()
def llm(
    store: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="\\[default: the embedded model's activations, harvested into --out]"),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Of a store that has several.")] = None,
    latents: Annotated[
        int | None, typer.Option(parser=quantity, help="\\[default: 16 to 9 dimensions, as in the paper]")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for cells.jsonl (what it holds is not trained again), llm.html and llm.json.")
    ] = Path("llm"),
    preset: Presets = None,
    seeds: Seeds = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes instead of an hour: fewer epochs, values and seeds.")] = False,
    workers: Workers = None,
    as_json: JsonOption = False,
) -> None:
    """SplInterp's experiments on a model's activations (E3), in the paper's proportions; its claims, decided."""
    from rich.console import Console

    from .. import store as stores
    from ..demo import embedded_store
    from .pam_sgd.recipe import run_llm

    config = _recipe(preset, seeds, quick, workers)
    opened = stores.open(store) if store else embedded_store(out / "acts.zarr", ROWS, Console(stderr=True))[0]
    name = opened.site(site).name
    _run("llm", out, as_json, lambda command, progress: run_llm(config, opened, name, latents, out, command, progress))


def _recipe(preset: list[str] | None, seeds: str | None, quick: bool, workers: int | None) -> Any:
    from ..bench.commands import numbers
    from .pam_sgd.recipe import QUICK_SEEDS, SEEDS, Recipe
    from .pam_sgd.settings import PRESETS

    chosen = numbers(seeds, int, "--seeds") if seeds is not None else QUICK_SEEDS if quick else SEEDS
    known: Any = tuple(dict.fromkeys(preset)) if preset else PRESETS
    return Recipe(known, chosen, quick, workers)


def _run(name: str, out: Path, as_json: bool, run: Callable[[str, Callable[[int, int, str], None]], dict[str, Any]]) -> None:
    """Under a progress bar, and then its table, or its JSON."""
    from ..progress import Bar
    from .pam_sgd.page import claims_table, summary

    try:
        with Bar(name, None, unit="steps") as bar:
            result = run(_command(), lambda done, total, what: bar.update(done, what, total=total))
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted; {out} keeps the trainings that are done. The same command goes on.") from None
    if as_json:
        print(json.dumps(result))
    else:
        print(f"{summary(result)}\n\n{claims_table(result)}\n\nPage: {out / name}.html. Every figure: {out / name}.json.")


def _command() -> str:
    """As the user gave it."""
    return shlex.join(["splinterp", *sys.argv[1:]])


@reproduce.command()
def amortisation(
    experiment: Annotated[
        str,
        typer.Argument(
            help="known-codes, known-dictionary, unknown, scaling, l1, topk, mlp-width or bias, as in the paper; or theorem, ours.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for cells.jsonl (what it holds is not trained again), EXPERIMENT.json and EXPERIMENT*.svg."),
    ] = Path("amortisation"),
    seeds: Annotated[str, typer.Option(help="Of the weights, with commas.")] = "0,1,2,3,4",
    data: Annotated[
        str,
        typer.Option(
            help="paper: the authors' own data sets. fresh: for each seed one of its own, from the same distribution."
        ),
    ] = "paper",
    weights: Annotated[
        str,
        typer.Option(help="To begin with. ours: of --seeds. paper: the authors' own; --seeds are their runs, 0,1,2 mostly."),
    ] = "ours",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A fifth of the steps where the paper takes 100k (l1, topk: a tenth; scaling: half, and K=3 alone).",
        ),
    ] = False,
    flops: Annotated[str, typer.Option(help="counted, or paper: by the authors' formulas.")] = "counted",
    steps: Annotated[
        int | None, typer.Option(parser=quantity, help="At most so many, of training and inference. \\[default: the paper's]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """SAE, MLP, sparse coding and inference-time optimisation on synthetic codes, beside the published figures (arXiv 2411.13117)."""
    from ..bench.commands import numbers
    from ..progress import Bar
    from .amortisation.recipe import Amortisation, run
    from .amortisation.tables import table

    settings: dict[str, Any] = {"data": data, "weights": weights, "quick": quick, "flops": flops, "steps": steps}
    config = Amortisation(experiment, numbers(seeds, int, "--seeds"), **settings)
    try:
        with Bar(experiment, None, unit="cells") as bar:
            result = run(config, out, lambda done, total, arm: bar.update(done, arm, total=total))
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted; {out} keeps the arms that are done. The same command goes on.") from None
    if as_json:
        print(json.dumps(result))
    else:
        print(f"{table(result)}\n\nPlots: {out / experiment}*.svg. Every figure: {out / experiment}.json.")


@reproduce.command()
def toy(
    out: Annotated[Path, typer.Option(help="Folder for toy.html, toy.json and the pictures.")] = Path("toy"),
    preset: Annotated[
        str, typer.Option(help="paper: our SAEs, by the paper's mathematics. paper-code: as the authors' scripts have them.")
    ] = "paper,paper-code",
    seeds: Annotated[str, typer.Option(help="Of the points and of what training begins with, with commas.")] = "0,1,2,3,4",
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the training.")] = False,
    as_json: JsonOption = False,
) -> None:
    """k-means, SAEs and k-means + local PCA on points of the plane (SplInterp, E1): regions, MSEs, and whether SAEs lie between."""
    from ..bench.commands import numbers
    from ..progress import Bar
    from .toy.recipe import NAME, Toy, run, table

    config = Toy(tuple(preset.split(",")), numbers(seeds, int, "--seeds"), quick)
    with Bar(NAME, 100, unit="%") as bar:
        result = run(config, out, lambda arm, done: bar.update(round(100 * done), arm))
    print(
        json.dumps(result)
        if as_json
        else f"{table(result)}\n\nPage with all pictures: {out / NAME}.html. Every figure: {out / NAME}.json."
    )


@reproduce.command()
def figures(
    out: Annotated[Path, typer.Option(help="Folder for figures.html, figures.json, and a PNG and an SVG of each.")] = Path(
        "figures"
    ),
    as_json: JsonOption = False,
) -> None:
    """Figures 5, 6 and 7 of SplInterp and their variations: Voronoi and power diagrams with exact borders, each checked on a grid."""
    from .figures.recipe import NAME, run, table

    result = run(out)
    print(json.dumps(result) if as_json else f"{table(result)}\n\nPage: {out / NAME}.html. Every figure: PNG and SVG in {out}.")


@reproduce.command()
def convergence(
    out: Annotated[Path, typer.Option(help="Folder for convergence.html, .json, .png and .svg.")] = Path("convergence"),
    store: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="\\[default: the embedded model's activations, harvested into --out]"),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Of a store that has several.")] = None,
    rows: Annotated[int, typer.Option(parser=quantity, help="To alternate on.")] = 1024,
    latents: Annotated[int, typer.Option(parser=quantity)] = 256,
    turns: Annotated[int, typer.Option(parser=quantity, help="Of the alternation.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the encoder and the batches.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """The alternation's objective after every half-step (SplInterp, Theorems 3.1 and C.6): with all rows it never rises, with batches it may."""
    from rich.console import Console

    from .. import store as stores
    from ..demo import embedded_store
    from ..progress import Bar
    from .convergence.recipe import NAME, Convergence, run, table

    config = Convergence(rows, latents, turns, seed)
    opened = stores.open(store) if store else embedded_store(out / "acts.zarr", 2 * rows, Console(stderr=True))[0]
    with Bar(NAME, None, unit="turns") as bar:
        result = run(config, opened, opened.site(site).name, out, lambda done, total, arm: bar.update(done, arm, total=total))
    print(json.dumps(result) if as_json else f"{table(result)}\n\nPlot: {out / NAME}.png. Every figure: {out / NAME}.json.")
