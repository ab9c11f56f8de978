"""The command line: parses, calls a package, prints. Everything heavy is imported inside the commands."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from . import __version__
from .bench.commands import bench
from .errors import Interrupted, SaidElsewhere, SplinterpError
from .export_commands import export
from .geometry_commands import geometry, spectrum
from .notes import note
from .options import DeviceOption, ForceOption, JsonOption, SiteOption, StoreOption, quantity, whole
from .papers.commands import reproduce
from .quantities import counted, format_bytes, parse_bytes, parse_quantity
from .ranks import speaks_for_all
from .report_commands import report
from .sae_commands import SAEArgument, encode, evaluate, gap, mlp
from .service_commands import jobs, logs, resume, retry, serve, stop, submit

if TYPE_CHECKING:
    from .store import Store
    from .train import MemberResult

T = TypeVar("T")
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # typer itself has no name for it
# How allocators of the CPU and of a GPU, and whoever starts threads, say so: torch, which has classes for it, is not imported here.
_NO_MEMORY = ("can't start new thread", "can't allocate memory", "not enough memory", "out of memory")
_SAID_WITHIN = 5.0  # seconds that the first rank has for saying how a command is used

app = typer.Typer(
    name="splinterp", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False,
    help="Harvest a language model's activations once; train sparse autoencoders on them many times.",
)  # fmt: skip
app.add_typer(bench)
app.add_typer(reproduce)
out_console = Console()
err_console = Console(stderr=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done; 1 a problem, told in a sentence; 2 usage, of several ranks told by the first."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # names of files may hold bytes that are no text, or that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        # Cluster schedulers stop a job by SIGTERM: it ends as by Ctrl-C, with everything kept that can be.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        told = ["--debug"] * debug + [a for a in arguments if a != "--debug"]
        sys.exit(app(args=told, prog_name="splinterp", standalone_mode=speaks_for_all()))  # else usage errors come here
    except _UsageError:
        # torchrun ends all ranks (by SIGTERM) as soon as one has ended, and the first may not have come so far yet.
        with suppress(KeyboardInterrupt):
            time.sleep(_SAID_WITHIN)
        sys.exit(2)
    except SystemExit as end:
        if end.code != 130:  # Typer's code for a Ctrl-C that no command turned into a sentence of its own
            raise
        err_console.print("Interrupted.", style="yellow")
        sys.exit(1)
    except KeyboardInterrupt:  # before a command had begun
        sys.exit(1)
    except SaidElsewhere:
        if debug:
            raise
        sys.exit(1)
    except SplinterpError as error:
        if debug:
            raise
        style = "yellow" if isinstance(error, Interrupted) else "red"
        err_console.print(str(error), style=style, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        if debug or (error.filename is None and error.errno is None):
            raise
        where = f" ({error.filename})" if error.filename else ""
        err_console.print(
            f"The system refused: {error.strerror}{where}. Mend that and give the command again.",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if debug or not (isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)):
            raise
        told = "The system has no memory left for this: end other programs, or ask for less (--memory, --batch-size); then give the command again."
        err_console.print(told, style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _version(value: bool) -> None:
    if value:
        print(f"splinterp {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (may stand anywhere on the line).")] = False,
) -> None:
    """Options of every command. `main` has acted on --debug; logging of libraries is kept down without it."""
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@app.command()
def harvest(
    model: Annotated[
        str, typer.Option(help="tiny (embedded), a Hugging Face directory, or a name such as gpt2, gemma-2-2b.")
    ] = "tiny",
    layer: Annotated[
        list[int] | None,
        typer.Option(
            parser=whole, metavar="INTEGER", help="Block to harvest at, from 0; may be repeated. \\[default: 2 for tiny]"
        ),
    ] = None,
    hook: Annotated[
        list[str] | None,
        typer.Option(
            help="Where in the block: resid_pre, resid_mid, resid_post; attn_out, mlp_out (what they add to the stream); mlp_in (what the "
            "MLP takes); attn_z, mlp_post (before their output projections). May be repeated. \\[default: resid_post]"
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="stdlib, a file (.txt, .jsonl, either with .gz or .zst, .parquet; .npy of token ids), a directory, or a hub data "
            "set; may be repeated for a mixture, each with ::WEIGHT behind it (a/b.jsonl::0.3), in proportion of documents. "
            "\\[default: stdlib for tiny, monology/pile-uncopyrighted for others]"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    text_column: Annotated[str, typer.Option(help="Column that holds the text (hub data sets, .jsonl, .parquet).")] = "text",
    tokens_column: Annotated[
        str | None, typer.Option(help="Column that holds lists of token ids, to be harvested in place of text.")
    ] = None,
    tokens: Annotated[int, typer.Option(parser=quantity, help="Rows a site in the store: 20000, 10k, 1M, …")] = 1_000_000,
    context: Annotated[
        int, typer.Option(parser=quantity, help="Tokens in a packed row of the model's input, BOS included.")
    ] = 128,
    packing: Annotated[
        str, typer.Option(help="packed: documents end to end; document: one a row, what goes beyond --context left out.")
    ] = "packed",
    batch_size: Annotated[str, typer.Option(help="Packed rows a forward pass: auto, or a number.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the store: bfloat16, float16 or float32.")] = "bfloat16",
    model_dtype: Annotated[
        str, typer.Option(help="Of the forward pass: auto (float32 on CPU), bfloat16, float16 or float32.")
    ] = "auto",
    compile_blocks: Annotated[
        bool, typer.Option("--compile", help="torch.compile the model first: tens of seconds, then a faster forward pass.")
    ] = False,
    device: DeviceOption = "auto",
    out: Annotated[
        str, typer.Option(metavar="PATH", help="The store to write: a path, or a URL such as s3://bucket/acts.zarr.")
    ] = "acts.zarr",
    seed: Annotated[int, typer.Option(help="Of the order of the rows.")] = 0,
    keep_bos: Annotated[bool, typer.Option("--keep-bos", help="Keep the rows of BOS tokens.")] = False,
    skip_token: Annotated[
        list[int] | None, typer.Option(help="Id of a token whose rows are left out of the store; may be repeated.")
    ] = None,
    skip_special: Annotated[bool, typer.Option("--skip-special", help="Leave out the rows of all special tokens.")] = False,
    positions: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Positions whose rows are stored, in a row of the model's input, where 0 is BOS's: last (the last token of the text), "
            "5, 1:64, 64:, :64, several with commas between them. \\[default: all]",
        ),
    ] = None,
    every: Annotated[
        int,
        typer.Option(
            parser=quantity, help="Store only every so many-th of the tokens that would be stored, counted through the text."
        ),
    ] = 1,
    drop_outliers: Annotated[
        float | None,
        typer.Option(
            metavar="FACTOR",
            help="Leave out rows with a norm above so many times the median norm of the first batch, at any site, and store others in "
            "their place. \\[default: none is left out]",
        ),
    ] = None,
    separator: Annotated[str, typer.Option(help="Between packed documents: bos, eos or none.")] = "bos",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a hub model brings along.")
    ] = False,
    memory: Annotated[str, typer.Option(help="Of the shuffle pool: 1GiB, 500MB, …")] = "1GiB",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted harvest.")] = False,
    force: ForceOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it will take, in bytes and (from some seconds of it) in time.")
    ] = False,
) -> None:
    """Stream a model's activations on a text into a store."""
    from .harvest import HarvestConfig, plan, probe
    from .harvest import harvest as run
    from .progress import Bar
    from .report.tables import harvest_figures, harvest_speed, print_plan, print_probe
    from .store.places import place

    config = HarvestConfig(
        model=model, layers=tuple(layer or ()), hooks=tuple(hook or ("resid_post",)), dataset=tuple(dataset or ()) or None, split=split,
        text_column=text_column, tokens_column=tokens_column, packing=packing, skip_tokens=tuple(skip_token or ()), skip_special=skip_special, tokens=tokens, context=context, batch_size=_unless_auto(batch_size, parse_quantity, "--batch-size"), dtype=dtype,
        model_dtype=model_dtype, compile=compile_blocks, device=device, out=place(out), seed=seed, keep_bos=keep_bos, separator=separator, revision=revision,
        trust_remote_code=trust_remote_code, resume=resume, force=force, memory=parse_bytes(memory),
        positions=positions, every=every, drop_outliers=drop_outliers,
    )  # fmt: skip
    planned = plan(config)
    ranks = planned.ranks
    if ranks.rank == 0:
        print_plan(out_console, planned)
    if dry_run:
        print_probe(out_console, planned, probe(planned))
        return
    spent: dict[str, object] = {}
    with Bar("harvest" if not ranks.several else f"harvest, rank {ranks.rank} of {ranks.world}", tokens // ranks.world) as bar:

        def progress(done: int, figures: dict[str, object]) -> None:
            spent.update(figures)
            bar.update(done, harvest_figures(figures))

        store = run(config, progress, planned=planned, tell=bar.tell)
    if store is not None:
        _say_store(store, asked=tokens)
    if spent.get("forward_share") and ranks.rank == 0:  # the first pass, which a short harvest ends with, is not timed
        out_console.print(f"  {harvest_speed(spent)}", highlight=False, soft_wrap=True)


@app.command("import")
def import_(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES...",
            help=".npy .npz .safetensors .pt .idx[.gz] files, Zarr arrays, or SAELens cached-activation directories; their rows are joined in this order.",
        ),
    ],
    out: Annotated[str, typer.Option(metavar="PATH", help="The store to write.")],
    site: Annotated[
        str | None, typer.Option(help="Name of the site in the store. \\[default: imported, or the source's own]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32. \\[default: the files' own; float32 for float64]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the rows.")] = 0,
    force: ForceOption = False,
) -> None:
    """Make a store of rows that lie in files."""
    from . import store as stores
    from .progress import Bar

    told: list[str] = []
    with Bar("import", None) as bar:
        store = stores.import_files(
            files, out, site=site, dtype=dtype, seed=seed, force=force, progress=lambda done, total: bar.update(done, total=total),
            tell=told.append,
        )  # fmt: skip
    _say_store(store, more=told)


@app.command()
def info(store: Annotated[str, typer.Argument(metavar="STORE", help="A store.")], as_json: JsonOption = False) -> None:
    """Describe a store."""
    from . import store as stores

    facts = stores.open(store, unfinished=True).info()
    if as_json:
        print(json.dumps(facts))
        return
    from .report.tables import print_info

    print_info(out_console, facts)


@app.command()
def verify(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store.")],
    full: Annotated[bool, typer.Option("--full", help="Read every chunk and check its checksum.")] = False,
) -> None:
    """Check that a store is whole; exit code 1 if it is not."""
    from . import store as stores
    from .progress import Bar

    with Bar("verify", None, unit="chunks") as bar:
        problems = stores.verify(store, full=full, progress=lambda done, total: bar.update(done, total=total))
    if problems:
        raise SplinterpError("\n".join(problems))
    checked = "every checksum" if full else "sizes and metadata; --full checks every checksum"
    out_console.print(f"{store} is whole ({checked}).", markup=False, soft_wrap=True)


@app.command()
def merge(
    parts: Annotated[
        list[str], typer.Argument(metavar="PARTS...", help="Stores with the same sites, widths, dtype and columns.")
    ],
    out: Annotated[str, typer.Option(metavar="PATH", help="The store to write.")],
    seed: Annotated[int, typer.Option(help="Of the order of the rows.")] = 0,
    force: ForceOption = False,
) -> None:
    """Join stores into one."""
    from . import store as stores
    from .progress import Bar

    with Bar("merge", None) as bar:
        made = stores.merge(parts, out, seed=seed, force=force, progress=lambda done, total: bar.update(done, total=total))
    _say_store(made)


@app.command()
def subset(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="The store to write.")],
    rows: Annotated[
        int | None, typer.Option(parser=quantity, help="How many, drawn at random. \\[default: all that match]")
    ] = None,
    token_id: Annotated[list[int] | None, typer.Option(help="Keep this token; may be repeated.")] = None,
    position: Annotated[list[int] | None, typer.Option(help="Keep this position; may be repeated.")] = None,
    document: Annotated[list[int] | None, typer.Option(help="Keep this document; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sample and the order.")] = 0,
    force: ForceOption = False,
) -> None:
    """Make a store of some of a store's rows."""
    from . import store as stores
    from .progress import Bar

    with Bar("subset", None) as bar:
        made = stores.subset(
            store, out, rows=rows, token_ids=token_id or None, positions=position or None, documents=document or None,
            seed=seed, force=force, progress=lambda done, total: bar.update(done, total=total),
        )  # fmt: skip
    _say_store(made)


@app.command()
def copy(
    src: Annotated[str, typer.Argument(help="A store, or a compressed archive of one.")],
    dst: Annotated[str, typer.Argument(help="The copy to write.")],
    compress: Annotated[
        bool,
        typer.Option("--compress", help="Make a compressed archive: smaller, and slower to read. Without it: a plain store."),
    ] = False,
    force: ForceOption = False,
) -> None:
    """Copy a store, into a compressed archive or back."""
    from . import store as stores
    from .progress import Bar

    with Bar("copy", None) as bar:
        made = stores.copy(
            src, dst, compress=compress, force=force, progress=lambda done, total: bar.update(done, total=total)
        )  # fmt: skip
    _say_store(made)
    before, after = stores.open(src).info()["bytes"], made.info()["bytes"]
    ratio = f"{max(before, after) / min(before, after):.2f} times {'smaller' if after < before else 'larger'}"
    out_console.print(
        f"{format_bytes(before)} -> {format_bytes(after)}, {'the same' if after == before else ratio}.", highlight=False
    )


@app.command()
def train(
    context: typer.Context,
    store: StoreOption,
    site: SiteOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run directory; of a sweep the one that holds them. \\[default: runs/<store>-<method>-<date>]"),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="pam (closed-form decoder), adam (the baseline) or pursuit (a dictionary for better codes than the encoder's)."
        ),
    ] = "pam",
    activation: Annotated[
        str, typer.Option(help="topk, batchtopk (k a row on average; saved as jumprelu), jumprelu or relu.")
    ] = "topk",
    latents: Annotated[int | None, typer.Option(parser=quantity, help="Number of latents; instead of --expansion.")] = None,
    expansion: Annotated[int | None, typer.Option(parser=quantity, help="Latents per input dimension. \\[default: 8]")] = None,
    k: Annotated[
        int | None,
        typer.Option(
            parser=quantity,
            help="Latents kept a row (topk), on average over a batch (batchtopk), aimed at (jumprelu). \\[default: 32]",
        ),
    ] = None,
    k_start: Annotated[int | None, typer.Option(parser=quantity, help="k at the beginning. \\[default: k]")] = None,
    k_anneal: Annotated[
        float | None, typer.Option(help="Share of the run over which --k-start comes down to --k. \\[default: 0.2]")
    ] = None,
    l1: Annotated[float | None, typer.Option(help="Weight of the sparsity penalty (relu). \\[default: 5]")] = None,
    l0: Annotated[float | None, typer.Option(help="Weight of the penalty on L0/k - 1 (jumprelu). \\[default: 3]")] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(help="Window around a threshold that its gradient comes from, in √(d_in/k) (jumprelu). \\[default: 0.2]"),
    ] = None,
    revive: Annotated[
        str,
        typer.Option(help="Dead latents: auxk (a loss), resample (they begin anew, towards badly reconstructed rows) or none."),
    ] = "auxk",
    tokens: Annotated[
        int | None, typer.Option(parser=quantity, help="Rows to train on, epochs counted; instead of --epochs.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(parser=quantity, help="Passes over the training rows. \\[default: 1]")] = None,
    batch_size: Annotated[str, typer.Option(help="Rows a step: auto (up to 4096, 500 steps wanted), or a number.")] = "auto",
    lr: Annotated[str, typer.Option(help="Peak learning rate: auto, or a number.")] = "auto",
    warmup: Annotated[
        float | None,
        typer.Option(help="Share of the run over which the rate rises. \\[default: 0.05, at most 1000 steps]"),
    ] = None,
    decay: Annotated[float, typer.Option(help="Share of the run over which the rate falls to zero at the end.")] = 1.0,
    encoder_steps: Annotated[int, typer.Option(parser=quantity, help="M of Algorithm 3.1: gradient steps on each batch.")] = 1,
    mu_enc: Annotated[
        float | None, typer.Option(help="Pull of W_enc towards its value before the M steps (M > 1). \\[default: 0]")
    ] = None,
    nu_enc: Annotated[
        float | None, typer.Option(help="Pull of b_enc towards its value before the M steps (M > 1). \\[default: 0]")
    ] = None,
    mu_dec: Annotated[
        float | None, typer.Option(help="Pull of W_dec towards its value before the solve. \\[default: 0]")
    ] = None,
    nu_dec: Annotated[
        float | None, typer.Option(help="Pull of b_dec towards its value before the solve. \\[default: 0]")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight decay of W_dec in the solve. \\[default: 0]")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight decay of b_dec in the solve. \\[default: 0]")] = None,
    ridge: Annotated[
        str,
        typer.Option(
            help="Pull towards the present decoder in every solve, relative to the codes' mean variance: auto (0.1 in training; in the last solve chosen on validation rows), or a number."
        ),
    ] = "auto",
    decoder_steps: Annotated[
        bool | None,
        typer.Option(
            "--decoder-steps/--solve-only",
            help="Whether PAM's decoder takes gradient steps, and is solved for at the end; "
            "or solves alone, Algorithm 3.1 as published. \\[default: decoder-steps]",
        ),
    ] = None,
    pursuit: Annotated[
        float | None,
        typer.Option(
            help="Weight of the encoder's pull towards better codes, a step of pursuit from its own, by which up to half of the "
            "decoder's gradient goes too (topk); 0: none. \\[default: 0.3 for pursuit and pam, but for pam with --solve-only, or with fewer rows than latents and little jitter]",
        ),
    ] = None,
    jitter: Annotated[
        str,
        typer.Option(
            metavar="SHARE",
            help="Share of noise, with the rows' own covariance, in every training row, against learning few rows by heart: auto (none up to 8 "
            "epochs and with relu, else more the more epochs and the fewer rows a latent there are), or a number from 0, none, to below 1.",
        ),
    ] = "auto",
    solve_every: Annotated[
        int | None,
        typer.Option(
            parser=quantity,
            help="Batches between two solves. \\[default: none on the way; with --method pursuit, --solve-only or --memory-rows one in a memory's length]",
        ),
    ] = None,
    memory_rows: Annotated[
        int | None, typer.Option(parser=quantity, help="Rows the statistics remember. \\[default: 6 per latent]")
    ] = None,
    last_solve: Annotated[
        bool | None,
        typer.Option(
            "--last-solve/--no-last-solve", help="Solve the finished encoder's decoder over all rows. \\[default: for pam]"
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="That the decoder's statistics and solves may take: 8GiB, 500MB, …; where a Gram matrix takes more, topk is solved by conjugate gradients on sparse codes. \\[default: half of the machine's]",
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="Of the products x·W_enc and pursuit's while training: auto (tf32 on a GPU, float32 on a CPU), float32, tf32 or bfloat16. All else is "
            "float32 or float64."
        ),
    ] = "auto",
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the initialisation and, without --order-seed, of the order of the rows.")] = 0,
    order_seed: Annotated[int | None, typer.Option(help="Of the order of the rows. \\[default: --seed]")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Train several SAEs, reading each batch once: k=16,32,64 for each of these values of --k; may be repeated, for all "
            "combinations. Takes the name of any option here that does not change the rows.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, which was interrupted.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="MINUTES", min=0, help="Between checkpoints, which take a twentieth of the time at most.")
    ] = 10.0,
    logger: Annotated[str, typer.Option(help="Besides metrics.jsonl: none, tensorboard or wandb.")] = "none",
    force: ForceOption = False,
) -> None:
    """Train a sparse autoencoder on a store, or (--sweep) several in one pass."""
    from .progress import Bar
    from .report.tables import print_results, print_sweep, print_train_plan
    from .train import TrainOptions, job
    from .train.axes import SWEPT
    from .train.doubts import doubts

    if tokens and epochs:
        raise typer.BadParameter("give --tokens or --epochs, not both")
    if resume and out is None:
        raise typer.BadParameter("--resume needs the --out of the run to go on with")
    for name in (axis.partition("=")[0] for axis in sweep or []):
        source = context.get_parameter_source(name.replace("-", "_"))
        if (
            name in SWEPT and name != "seed" and source and source.name == "COMMANDLINE"
        ):  # --seed still is that of the rows' order
            raise typer.BadParameter(f"give --{name} or --sweep {name}=…, not both")
    options = TrainOptions(
        method=method, activation=activation, latents=latents, expansion=expansion, k=k, k_start=k_start, k_anneal=k_anneal, l1=l1, l0=l0,
        bandwidth=bandwidth, revive=revive,
        tokens=tokens, epochs=epochs, batch_size=_unless_auto(batch_size, parse_quantity, "--batch-size"), lr=_unless_auto(lr, float, "--lr"),
        warmup=warmup, decay=decay, encoder_steps=encoder_steps, mu_enc=mu_enc, nu_enc=nu_enc, mu_dec=mu_dec, nu_dec=nu_dec, alpha=alpha,
        beta=beta, ridge=_unless_auto(ridge, float, "--ridge"), decoder_steps=decoder_steps, pursuit=pursuit, jitter=_unless_auto(jitter, float, "--jitter"), solve_every=solve_every, memory_rows=memory_rows,
        last_solve=last_solve, memory=None if memory is None else parse_bytes(memory), precision=precision, seed=seed, order_seed=order_seed,
    )  # fmt: skip
    results: list[MemberResult] = []
    with job(store, site, options, sweep or (), out, device) as todo:
        if todo.group.first:
            print_train_plan(
                out_console,
                todo.config,
                todo.saes,
                f"{todo.site.name} of {store}",
                todo.site.d,
                todo.rows,
                todo.out,
                todo.group.world,
            )
        with Bar("train", todo.config.rows, shown=todo.group.first) as bar:
            how: dict[str, Any] = {
                "force": force, "resume": resume, "checkpoint_every": 60 * checkpoint_every, "logger": logger
            }  # fmt: skip
            if todo.saes:
                results = todo.train_sweep(bar.report, bar.tell, **how)
                summaries = {f"{one.member.name}: ": dict(one.summary) for one in results if one.summary}
            else:
                summaries = {"": todo.train(bar.report, bar.tell, **how).summary}
    if not todo.group.first:
        return
    print_sweep(out_console, results) if todo.saes else print_results(out_console, {method: summaries[""]})
    for name, summary in summaries.items():
        for doubt in doubts(summary):
            note(f"{name}{doubt}")


app.command("eval")(evaluate)
app.command()(encode)
app.command()(gap)
app.command()(mlp)


@app.command()
def refit(
    sae: SAEArgument,
    store: StoreOption,
    site: SiteOption = None,
    out: Annotated[Path | None, typer.Option(help="The directory to write. \\[default: runs/<store>-refit-<date>]")] = None,
    ridge: Annotated[
        str,
        typer.Option(
            help="Pull towards the present decoder, relative to the codes' mean variance: auto (chosen on validation rows), or a number."
        ),
    ] = "auto",
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="That the solve may take. \\[default: half of the machine's]")
    ] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Give an SAE, whoever trained it, the decoder that is optimal for its codes."""
    from .api import refit as run
    from .progress import Bar
    from .report.tables import print_refit

    size = None if memory is None else parse_bytes(memory)
    with Bar("refit", None) as bar:
        result = run(
            sae, store, out, site=site, ridge=_unless_auto(ridge, float, "--ridge"), memory=size, device=device, force=force,
            progress=bar.report, tell=note,
        )  # fmt: skip
    print_refit(out_console, result.directory, result.summary)


app.command()(geometry)
app.command()(spectrum)
app.command()(export)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS...", help="Run directories, finished or not; of a sweep all its runs. SAEs in SAELens's format."
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page too, with curves: compare.html.")] = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Lay runs side by side: figures, curves, and the settings in which they differ."""
    from .api import compare as run
    from .report.compare import print_comparison

    if out is not None and out.exists() and not force:
        raise SplinterpError(f"{out} exists already; give another --out, or --force to replace it.")
    found = run(*runs)
    if out is not None:
        out.write_text(found.page(), encoding="utf-8", errors="replace")
    if as_json:
        print(json.dumps(found.as_json(), allow_nan=False))
        return
    print_comparison(out_console, found.runs)
    for sentence in found.notes:
        note(sentence)


app.command()(report)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Where to leave the store and the runs.")] = Path("demo")) -> None:
    """The whole of it on the embedded model: harvest, train two ways, compare, and look at some latents."""
    from .demo import run_demo

    run_demo(out, out_console)


app.command()(serve)
# What it does not know itself belongs to the job.
app.command(context_settings={"ignore_unknown_options": True})(submit)
for _command in (jobs, logs, stop, resume, retry):
    app.command()(_command)


def _unless_auto(text: str, parse: Callable[[str], T], option: str) -> T | None:
    try:
        return None if text == "auto" else parse(text)
    except (ValueError, SplinterpError):
        raise typer.BadParameter(f"'{text}' is neither auto nor a number.", param_hint=option) from None


def _say_store(store: Store, asked: int | None = None, more: Sequence[str] = ()) -> None:
    facts = store.info()
    told = f"{store.path}: {counted(store.rows, 'row')}, {', '.join(store.sites)}, {format_bytes(facts['bytes'])}"
    if n := facts["dropped_non_finite"]:
        told += f", {counted(n, 'row')} left out, as not finite (in {next(iter(store.sites.values())).dtype})"
    if n := facts["dropped_outliers"]:
        told += f", {counted(n, 'outlier')} left out"
    out_console.print(" ".join([f"{told}.", *more]), markup=False, soft_wrap=True)
    if asked is not None and store.rows < asked:
        why = "the text was too short" if facts["short"] else "ranks do not make up for rows that are left out"
        note(f"{why}, so the store has {counted(store.rows, 'row')} and not {asked:,}.")
