"""What an SAE comes to on a store: figures, codes, the amortisation gap, geometry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import store as stores
from ..devices import suitable_threads, total_memory
from ..errors import SplinterpError
from ..evaluate import cross_entropies, evaluate_rows
from ..evaluate.gap import measure_gap
from ..geometry import SpectrumOptions, survey
from ..geometry import spectrum as measure_spectrum
from ..harvest.evaluation import AS_HARVESTED, evaluation_batches
from ..infer import CodesStore, EncoderOptions
from ..infer.codes_store import check_free
from ..infer.encode import encode_store
from ..report.gap import GapReport, check_gap_free
from ..report.geometry import draw_spectrum
from ..sites import site_of, trained_elsewhere
from ..store import Store
from ..store.places import Location, place
from ..train import check_width
from .opened import AnySAE, AnyStore, open_both, open_sae, split_of, told
from .progress import Progress, Tell, counted, first, log

TOKENS = 20_000  # of text that a cross-entropy is taken on


def evaluate(
    sae: AnySAE,
    store: AnyStore,
    *,
    site: str | None = None,
    split: str = "held_out",
    encoder: str = "native",
    k: int | None = None,
    l1: float | None = None,
    residual: float | None = None,
    signed: bool | None = None,
    steps: int | None = None,
    start: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    tokens: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    tell: Tell = log,
) -> dict[str, Any]:
    """Figures of an SAE on a store's held-out rows: `splinterp eval`.

    Args:
        split: held_out, validation, train or all.
        encoder: where codes come from; k, l1, residual, signed, steps and start belong to it: see `splinterp.infer.EncoderOptions`.
        model: also take the cross-entropy of this model with the SAE in place, on `tokens` tokens (None: 20,000) of `dataset` (None:
            the store's).

    Returns:
        fvu, explained_variance, mse, l0, dead_fraction, n_rows, encoder (and encoder_settings where it has some); with a model ce_clean,
        ce_spliced, ce_ablated, ce_recovered.

    Raises:
        SplinterpError: no such SAE, store, split, encoder, model or text, or they do not go together.
    """
    chosen = split_of(split)
    options = EncoderOptions(name=encoder, k=k, l1=l1, residual=residual, signed=signed, steps=steps, start=start)
    for name, value in (("dataset", dataset), ("tokens", tokens)):
        if value is not None and not model:
            raise SplinterpError(
                f"--{name} has no effect without --model; name the model whose cross-entropy you want, or leave it out."
            )
    opened = open_both(sae, store, site, device)
    by = opened.encoder(options)
    for note in (opened.elsewhere(), *by.notes):
        if note:
            tell(note)
    figures: dict[str, Any] = {
        **evaluate_rows(
            opened.sae,
            counted(opened.rows(chosen), opened.store.split_rows(chosen), "eval", progress),
            opened.site.mean,
            by.encode,
        ),
        "encoder": by.name,
    }
    if by.settings:
        figures["encoder_settings"] = by.settings
    if model:
        attributes = opened.store.attributes
        text = dataset or attributes.get("dataset")
        if not text:
            raise SplinterpError(f"{opened.store.path} does not say what text it was harvested from; name one with --dataset.")
        as_harvested = {key: attributes[key] for key in AS_HARVESTED if key in attributes}
        if dataset:  # a text of its own has no such column
            as_harvested.pop("tokens_column", None)
        own = attributes.get("model")
        if own not in (None, model):
            tell(
                f"The rows of {opened.store.path} are of the model {own}: in {model} the SAE means little, unless that is the same one."
            )
        revision = attributes.get("revision") if model == own else None
        try:
            bridge, batches = evaluation_batches(
                model, text, TOKENS if tokens is None else tokens, **as_harvested, revision=revision, device=device
            )
            figures |= cross_entropies(bridge, opened.site.name, opened.sae, opened.site.mean, batches, by.encode)._asdict()
        except SplinterpError as error:
            if own in (None, model):
                raise
            raise type(error)(
                f"{error} The rows of {opened.store.path} are of the model {own}: did you mean --model {own}?"
            ) from error
    return figures


def encode(
    sae: AnySAE,
    store: AnyStore,
    out: Location,
    *,
    site: str | None = None,
    split: str = "all",
    encoder: str = "native",
    k: int | None = None,
    l1: float | None = None,
    residual: float | None = None,
    signed: bool | None = None,
    steps: int | None = None,
    start: str | None = None,
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
    tell: Tell = log,
) -> CodesStore:
    """Write the codes of a store's rows, by the SAE's encoder or a better one: `splinterp encode`. Of rows in memory: `SAE.encode`.

    Args: as those of `evaluate`; out: the store of codes to write, on a local disk.

    Raises:
        SplinterpError: as `evaluate`; or `out` exists.
    """
    chosen, path = split_of(split), place(out)
    if not isinstance(path, Path):
        raise SplinterpError(f"Codes are written to a local disk, not to {path}; copy the folder there afterwards.")
    options = EncoderOptions(name=encoder, k=k, l1=l1, residual=residual, signed=signed, steps=steps, start=start)
    opened = open_both(sae, store, site, device)
    check_free(path, force)
    by = opened.encoder(options)
    for note in by.notes:
        tell(note)
    total = opened.store.split_rows(chosen)
    return encode_store(
        opened.sae, opened.directory, by, opened.store, opened.site.name, chosen, path, opened.device, force=force,
        progress=progress and (lambda done: progress("encode", done, total, {})),
    )  # fmt: skip


def gap(
    sae: AnySAE,
    store: AnyStore,
    out: str | os.PathLike[str] | None = None,
    *,
    site: str | None = None,
    rows: int = 4096,
    k: int | Sequence[int] = (),
    encoders: Sequence[str] = (),
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
    tell: Tell = log,
) -> GapReport:
    """The amortisation gap, FVU against L0 of better encoders than the SAE's own with the same dictionary: `splinterp gap`.

    Args:
        out: a folder for gap.svg, gap.md and gap.json; None: none is written.
        rows: held-out rows to measure on.
        k: latents a row to look at; none: k/4, k/2, k and 2k of the SAE.
        encoders: beside the native one; none: ls, mp, gradient-pursuit, omp, fista.

    Raises:
        SplinterpError: as `evaluate`; or `out` has a gap already, and there is no `force`.
    """
    directory = None if out is None else Path(out)
    check_gap_free(directory, force)
    opened = open_both(sae, store, site, device)
    if note := opened.elsewhere():
        tell(note)
    found = list(first(opened.rows("held_out"), rows))
    x = torch.cat(found) if found else torch.empty(0, opened.site.d)
    result = measure_gap(
        opened.sae, opened.directory, x, opened.site.mean, opened.sample, encoders=encoders, budgets=(k,) if isinstance(k, int) else k,
        told=progress and (lambda done, total, name: progress(name, done, total, {})),
    )  # fmt: skip
    about = {
        "sae": told(opened.directory), "store": str(opened.store.path), "store_fingerprint": opened.store.fingerprint,
        "site": opened.site.name, "n_rows": len(x),
    }  # fmt: skip
    report = GapReport(result, about)
    if directory is not None:
        report.save(directory)
    return report


def geometry(
    sae: AnySAE,
    store: AnyStore,
    *,
    site: str | None = None,
    split: str = "held_out",
    rows: int = 4096,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """An SAE's regions, a power diagram verified row by row; see `geometry.survey` for what is told: `splinterp geometry`.

    Raises:
        SplinterpError: as `evaluate`; or the split is empty.
    """
    named, opened = split_of(split), open_both(sae, store, site, device)
    if not (there := opened.store.split_rows(named)):
        raise SplinterpError(
            f"{opened.store.path} has no rows in its split {named}, with {opened.store.rows:,} in all; name another --split."
        )
    total = min(rows, there)
    with suitable_threads(opened.sae.W_enc.numel(), opened.device):
        found = survey(opened.sae, opened.rows(named), rows, progress and (lambda done: progress("geometry", done, total, {})))
    return {**found, "split": named}


def spectrum(
    store: AnyStore,
    saes: AnySAE | Sequence[AnySAE] = (),
    out: str | os.PathLike[str] | None = None,
    *,
    site: str | None = None,
    regions: int = 256,
    epochs: int = 3,
    coefficients: float | None = None,
    price: float | None = None,
    bits: float = 8,
    memory: int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
    tell: Tell = log,
) -> dict[str, Any]:
    """k-means, SAEs and local PCA side by side, FVU against description length: `splinterp spectrum`.

    Args:
        out: a file for a plot; None: none is written.
        price: λ of the rank rule, the command's --lambda. Others: see `geometry.SpectrumOptions`.
        memory: None: half of the machine's.

    Raises:
        SplinterpError: settings that cannot be, or an SAE and the store do not go together; or `out` exists, and there is no `force`.
    """
    path = None if out is None else Path(out)
    if path is not None and path.exists() and not force:
        raise SplinterpError(f"{path} exists already; give another --out, or --force to replace it.")
    cpu = torch.device("cpu")
    options = SpectrumOptions(
        regions=regions, epochs=epochs, seed=seed, price=price, coefficients=coefficients, bits=bits,
        memory=total_memory(cpu) // 2 if memory is None else memory,
    )  # fmt: skip
    several = saes if isinstance(saes, Sequence) and not isinstance(saes, str) else [saes]
    loaded = {}
    for i, one in enumerate(several):
        sae, directory = open_sae(one)
        loaded[f"SAE {i + 1}" if directory is None else str(directory)] = sae
    opened = store if isinstance(store, Store) else stores.open(store)
    chosen = opened.site(site or next(filter(None, (site_of(one, opened) for one in loaded.values())), None))
    for name, one in loaded.items():
        check_width(one.config.d_in, name, opened, chosen.name)
        if note := trained_elsewhere(one, opened, name):
            tell(note)
    with suitable_threads(chosen.d * regions, cpu):
        found = measure_spectrum(
            options, opened, chosen.name, loaded, progress and (lambda stage, done, total: progress(stage, done, total, {}))
        )
    if path is not None:
        path.write_text(draw_spectrum(found) + "\n", encoding="utf-8")
    return found
