"""Commands on a finished SAE: figures of it, its codes, and how much its encoder leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer
from rich.console import Console

from .errors import SplinterpError
from .options import (
    DeviceOption,
    EncoderOption,
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

    chosen = _split(split)
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
        print(json.dumps({key: number(value) for key, value in figures.items()}, allow_nan=False))
        return
    from .report.tables import print_figures

    print_figures(out_console, {**figures, **figures.pop("encoder_settings", {})})


def counted(batches: Iterable[Tensor], bar: Bar) -> Iterator[Tensor]:
    """The batches, each counted by the bar once it has been dealt with."""
    done = 0
    for x in batches:
        yield x
        done += len(x)
        bar.update(done)


def number(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def site_of(sae: SAE, store: Store) -> str | None:
    """The site that an SAE says it belongs to; none if it says nothing, or the store has just one."""
    name = sae.config.metadata.get("hook_name")
    if isinstance(name, str) and name not in store.sites:
        raise SplinterpError(
            f"The SAE belongs to {name}, and {store.path} has {', '.join(store.sites)}; if you mean it, name one with --site."
        )
    return name if isinstance(name, str) else None


def _split(name: str) -> Split:
    if name not in SPLITS:
        raise typer.BadParameter(f"--split is {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    return cast("Split", name)
