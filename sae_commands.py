"""Commands on a finished SAE: figures of it, its codes, and how much its encoder leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer
from rich.console import Console

from .errors import Interrupted, SplinterpError
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
from .sites import site_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .infer import Encoder, EncoderOptions
    from .progress import Bar
    from .sae import SAE
    from .store import Site, Store
    from .store.batches import Split

SAEArgument = Annotated[Path, typer.Argument(help="A run directory, or any SAE in SAELens's format.")]
SPLITS = ("held_out", "validation", "train", "all")
GAP_FILES = ("gap.svg", "gap.md", "gap.json")
out_console = Console()
err_console = Console(stderr=True)


class Opened(NamedTuple):
    """An SAE and a site of a store whose rows it takes."""

    sae: SAE
    directory: Path
    store: Store
    site: Site
    device: torch.device

    def rows(self, split: Split) -> Iterator[Tensor]:
        """Rows of a split in the store's order, float32 [≤ 4096, d_in]."""
        from .train import raw_rows

        return raw_rows(self.store, self.site.name, self.device, split)

    def sample(self) -> Tensor:
        """Some training rows."""
        return next(self.rows("train"))

    def encoder(self, options: EncoderOptions) -> Encoder:
        """The encoder that the options speak of; what was chosen for it is told."""
        from .infer import make_encoder

        encoder = make_encoder(self.sae, options, self.directory, self.sample)
        for note in encoder.notes:
            err_console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return encoder


def open_both(sae: Path, store: str, site: str | None, device: str) -> Opened:
    """Raises SplinterpError where one of them is missing, or they do not go together."""
    from . import store as stores
    from .devices import choose_device
    from .sae import load_sae
    from .train import check_width

    on = choose_device(device)
    loaded, opened = load_sae(sae, on), stores.open(store)
    chosen = opened.site(site or site_of(loaded, opened))
    check_width(loaded.config.d_in, str(sae), opened, chosen.name)
    return Opened(loaded, sae, opened, chosen, on)


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
    tokens: Annotated[int, typer.Option(parser=quantity, help="Tokens of text for --model.")] = 20_000,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Figures of an SAE on a store's held-out rows."""
    from .evaluate import evaluate_rows
    from .infer import EncoderOptions
    from .progress import Bar

    chosen = split_of(split)
    options = EncoderOptions(name=encoder, k=k, l1=l1, residual=residual, signed=signed, steps=steps, start=start)
    opened = open_both(sae, store, site, device)
    by = opened.encoder(options)
    with Bar("eval", opened.store.split_rows(chosen)) as bar:
        figures: dict[str, Any] = {
            **evaluate_rows(opened.sae, counted(opened.rows(chosen), bar), opened.site.mean, by.encode),
            "encoder": by.name,
        }
    if by.settings:
        figures["encoder_settings"] = by.settings
    if model:
        from .evaluate import cross_entropies
        from .harvest.evaluation import AS_HARVESTED, evaluation_batches

        told = opened.store.attributes
        text = dataset or told.get("dataset")
        if not text:
            raise SplinterpError(f"{store} does not say what text it was harvested from; name one with --dataset.")
        as_harvested = {key: told[key] for key in AS_HARVESTED if key in told}
        if dataset:  # a text of its own has no such column
            as_harvested.pop("tokens_column", None)
        revision = told.get("revision") if model == told.get("model") else None
        bridge, batches = evaluation_batches(model, text, tokens, **as_harvested, revision=revision, device=device)
        figures |= cross_entropies(bridge, opened.site.name, opened.sae, opened.site.mean, batches, by.encode)._asdict()
    if as_json:
        print(json.dumps(json_safe(figures), allow_nan=False))
        return
    from .report.tables import print_figures

    print_figures(out_console, {**figures, **figures.pop("encoder_settings", {})})


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
    from .infer import EncoderOptions
    from .infer.codes_store import check_free
    from .infer.encode import encode_store
    from .progress import Bar
    from .quantities import format_count

    chosen, path = split_of(split), local_path(out)
    options = EncoderOptions(name=encoder, k=k, l1=l1, residual=residual, signed=signed, steps=steps, start=start)
    opened = open_both(sae, store, site, device)
    check_free(path, force)
    by, begun = opened.encoder(options), time.monotonic()
    try:
        with Bar("encode", opened.store.split_rows(chosen)) as bar:
            made = encode_store(
                opened.sae, str(sae), by, opened.store, opened.site.name, chosen, path, opened.device, force=force, progress=bar.update
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted; nothing was written to {path}. The same command begins anew.") from None
    rate = format_count(made.shape[0] / (time.monotonic() - begun))
    out_console.print(
        f"{path}: codes of {made.shape[0]:,} rows by {by.name}, L0 {made.nnz / max(1, made.shape[0]):.1f}, {rate} rows/s.",
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
    import torch

    from .evaluate.gap import measure_gap
    from .progress import Bar
    from .report import gap as report

    if out is not None and out.exists() and not force and any((out / name).exists() for name in GAP_FILES):
        raise SplinterpError(f"{out} has a gap already; give another --out, or --force to replace it.")
    opened = open_both(sae, store, site, device)
    found = list(_first(opened.rows("held_out"), rows))
    x = torch.cat(found) if found else torch.empty(0, opened.site.d)
    with Bar("gap", None, unit="points") as bar:
        result = measure_gap(
            opened.sae, sae, x, opened.site.mean, opened.sample, encoders=encoder or (), budgets=k or (),
            told=lambda done, total, name: bar.update(done, name, total=total),
        )  # fmt: skip
    told = {
        "sae": str(sae), "store": store, "store_fingerprint": opened.store.fingerprint, "site": opened.site.name, "n_rows": len(x),
        **report.as_json(result),
    }  # fmt: skip
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        contents = (report.gap_plot(result), report.markdown(result), json.dumps(told, indent=2, allow_nan=False) + "\n")
        for name, content in zip(GAP_FILES, contents, strict=True):
            (out / name).write_text(content, encoding="utf-8")
    if as_json:
        print(json.dumps(told, allow_nan=False))
        return
    report.print_gap(out_console, result)
    if out is not None:
        out_console.print(f"Plot: {out / GAP_FILES[0]}.", markup=False, highlight=False, soft_wrap=True)


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
    from .progress import Bar, shown
    from .quantities import format_seconds
    from .train.mlp import LR, MlpConfig, train_mlp

    if tokens and epochs:
        raise typer.BadParameter("give --tokens or --epochs, not both")
    opened = open_both(sae, store, site, device)
    rows = tokens or (epochs or 1) * opened.store.split_rows("train")
    config = MlpConfig(
        hidden=width or 4 * opened.sae.config.d_in, rows=rows, batch_size=batch_size, lr=LR if lr is None else lr, seed=seed
    )
    try:
        with Bar("mlp", rows) as bar:
            result = train_mlp(
                opened.sae, sae, opened.store, opened.site.name, config, opened.device,
                progress=lambda stage, done, total, figures: bar.update(done, shown(figures)), force=force,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted("Interrupted; nothing was written. The same command begins anew.") from None
    s = result.summary
    if s["note"]:
        err_console.print(s["note"], style="yellow", markup=False, highlight=False, soft_wrap=True)
    out_console.print(
        f"FVU on {s['n_rows']:,} held-out rows: {s['native']['fvu']:.4f} at L0 {s['native']['l0']:.1f} by the SAE's encoder, {s['fvu']:.4f} at L0 "
        f"{s['l0']:.1f} by the MLP; {format_seconds(s['seconds'])} -> {result.path}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def local_path(path: str) -> Path:
    """A path on disk. Raises SplinterpError for a URL."""
    from .store.places import place

    found = place(path)
    if not isinstance(found, Path):
        raise SplinterpError(f"Codes are written to a local disk, not to {path}; copy the folder there afterwards.")
    return found


def counted(batches: Iterable[Tensor], bar: Bar) -> Iterator[Tensor]:
    """The batches, each counted by the bar once it has been dealt with."""
    done = 0
    for x in batches:
        yield x
        done += len(x)
        bar.update(done)


def _first(batches: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """The first so many rows."""
    left = rows
    for x in batches:
        yield x[:left]
        left -= len(x)
        if left <= 0:
            return


def split_of(name: str) -> Split:
    """A split by its name. Raises typer.BadParameter for another one."""
    if name not in SPLITS:
        raise typer.BadParameter(f"--split is {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    return cast("Split", name)
