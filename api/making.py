"""What makes something: stores, runs, and what is trained beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Unpack

from .. import store as stores
from ..errors import SplinterpError
from ..harvest import HarvestConfig, HarvestSettings, plan
from ..harvest import harvest as run_harvest
from ..nearest import did_you_mean
from ..report.neuronpedia import write_neuronpedia
from ..sae import save_sae
from ..store import Store
from ..store.export_saelens import export_saelens
from ..store.places import Location, RemotePath
from ..train import MemberResult, RefitResult, TrainOptions, TrainResult, TrainSettings, free_run_name, job
from ..train import refit as run_refit
from ..train.axes import shown
from ..train.doubts import doubts
from ..train.mlp import LR, MlpConfig, MlpResult, train_mlp
from .hub import Upload, push, upload_of
from .opened import AnySAE, AnyStore, load_sae, open_both, open_sae, split_of, told
from .progress import Progress, Tell, log


def harvest(
    model: str = "tiny",
    layers: int | Sequence[int] = (),
    hooks: str | Sequence[str] = "resid_post",
    dataset: str | Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
    tell: Tell = log,
    **settings: Unpack[HarvestSettings],
) -> Store:
    """Stream a model's activations on a text into a store: `splinterp harvest`.

    Args:
        model: tiny (embedded), a Hugging Face directory, or a name such as gpt2.
        layers: blocks, from 0; for tiny, if left out, 2.
        hooks: places in the blocks (`splinterp harvest --help` names them).
        dataset: stdlib, files, directories or a hub data set; several are a mixture.
        **settings: fields of `HarvestConfig`: tokens=1_000_000, out="acts.zarr", context=128, …

    Raises:
        ModelError, TextError, StoreError: no such model, layer, text; or `out` exists.
        Interrupted: on Ctrl-C; `resume=True` goes on.
    """
    config = HarvestConfig(
        model=model, layers=(layers,) if isinstance(layers, int) else tuple(layers),
        hooks=(hooks,) if isinstance(hooks, str) else tuple(hooks),
        dataset=dataset if dataset is None or isinstance(dataset, str) else tuple(dataset), **settings,
    )  # fmt: skip
    planned = plan(config)
    if planned.ranks.several:
        raise SplinterpError(
            "Ranks harvest together by the command: torchrun … -m splinterp harvest; call this in one process."
        )
    made = run_harvest(
        config,
        progress and (lambda done, figures: progress("harvest", done, planned.rows, figures)),
        planned=planned,
        tell=tell,
    )
    assert made is not None  # only one of several ranks gets nothing
    return made


def import_activations(
    files: Location | Sequence[Location],
    out: Location,
    *,
    site: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Store:
    """Make a store of rows that lie in files (.npy .npz .safetensors .pt .idx[.gz], Zarr, SAELens's caches): `splinterp import`.

    See `store.import_files`.
    """
    named = [files] if isinstance(files, str | os.PathLike | RemotePath) else files
    return stores.import_files(
        named, out, site=site, dtype=dtype, seed=seed, force=force,
        progress=progress and (lambda done, total: progress("import", done, total, {})),
    )  # fmt: skip


def train(
    store: AnyStore,
    out: str | os.PathLike[str] | None = None,
    *,
    site: str | None = None,
    device: str = "auto",
    resume: bool = False,
    checkpoint_every: float = 10.0,
    logger: str = "none",
    force: bool = False,
    progress: Progress | None = None,
    tell: Tell = log,
    **settings: Unpack[TrainSettings],
) -> TrainResult:
    """Train an SAE on a store: `splinterp train`.

    Args:
        out: the run directory; None: runs/<store>-<method>-<date>.
        site: where the store has several.
        checkpoint_every: minutes.
        **settings: of `TrainOptions`, the command's options by their names: method="pam", activation="topk", latents, k=32,
            epochs=1, seed=0, …

    Raises:
        SplinterpError: as `train.train`; or a setting that cannot be, or has no effect.
        Interrupted: on Ctrl-C; `resume=True` goes on.
    """
    _unknown(settings)
    with job(store, site, TrainOptions(**settings), (), _path(out), device) as todo:
        result = todo.train(
            progress, tell, force=force, resume=resume, checkpoint_every=60 * checkpoint_every, logger=logger
        )  # fmt: skip
    for warning in doubts(result.summary):
        tell(warning)
    return result


def sweep(
    store: AnyStore,
    axes: Mapping[str, Sequence[Any]],
    out: str | os.PathLike[str] | None = None,
    *,
    site: str | None = None,
    device: str = "auto",
    resume: bool = False,
    checkpoint_every: float = 10.0,
    logger: str = "none",
    force: bool = False,
    progress: Progress | None = None,
    tell: Tell = log,
    **settings: Unpack[TrainSettings],
) -> list[MemberResult]:
    """Train an SAE for each combination of some settings' values, reading every batch once: `splinterp train --sweep`.

    Args:
        axes: the values of each: {"k": [16, 32], "seed": [0, 1]}.
        out: the directory that holds the runs. Others: as those of `train`.

    Raises:
        SplinterpError: as `train`; or a setting that the SAEs of a sweep must have in common.
    """
    if not isinstance(axes, Mapping):
        raise SplinterpError('The second argument of a sweep is what it goes through; give for example {"k": [16, 32]}.')
    texts = [f"{name.replace('_', '-')}={','.join(map(shown, values))}" for name, values in axes.items()]
    if not texts:
        raise SplinterpError('A sweep needs values to go through; give for example {"k": [16, 32]}.')
    _unknown(settings)
    with job(store, site, TrainOptions(**settings), texts, _path(out), device) as todo:
        made = todo.train_sweep(
            progress, tell, force=force, resume=resume, checkpoint_every=60 * checkpoint_every, logger=logger
        )  # fmt: skip
    for one in made:
        for warning in doubts(one.summary or {}):
            tell(f"{one.member.name}: {warning}")
    return made


def _unknown(settings: Mapping[str, Any]) -> None:
    """Raises TypeError, as Python itself does, of a setting that there is not."""
    known = [field.name for field in fields(TrainOptions)]
    for name in settings:
        if name not in known:
            raise TypeError(
                f"There is no setting {name!r} of a training; help(splinterp.train) says which there are.{did_you_mean(name, known)}"
            )


def refit(
    sae: AnySAE,
    store: AnyStore,
    out: str | os.PathLike[str] | None = None,
    *,
    site: str | None = None,
    ridge: float | None = None,
    memory: int | None = None,
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
    tell: Tell = log,
) -> RefitResult:
    """Give an SAE, whoever trained it, the decoder that is optimal for its codes: `splinterp refit`.

    Args:
        out: the directory to write; None: runs/<store>-refit-<date>.
        ridge: relative; None: chosen on validation rows.
        memory: bytes that the solve may take; None: half of the machine's.

    Raises:
        SplinterpError: as `train.refit`.
    """
    opened = open_both(sae, store, site, device)
    if note := opened.elsewhere():
        tell(note)
    result = run_refit(
        opened.sae, told(opened.directory), opened.store, opened.site.name, _path(out) or free_run_name(opened.store, "refit"), ridge=ridge,
        memory=memory, device=opened.device, progress=progress, force=force,
    )  # fmt: skip
    if warning := result.summary["last_solve"]["warning"]:
        tell(warning)
    return result


def mlp(
    sae: AnySAE,
    store: AnyStore,
    *,
    site: str | None = None,
    width: int | None = None,
    tokens: int | None = None,
    epochs: int | None = None,
    batch_size: int = 512,
    lr: float | None = None,
    device: str = "auto",
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> MlpResult:
    """Train an MLP as an encoder of an SAE's dictionary, beside the SAE, for encoder="mlp" and `gap`: `splinterp mlp`.

    Args:
        width: hidden units; None: 4 times d_in.
        tokens: rows to train on, epochs counted; or epochs (1).
        lr: None: 0.001.

    Raises:
        SplinterpError: as `train.mlp.train_mlp`; or the SAE lies in memory alone.
    """
    if tokens is not None and epochs is not None:
        raise SplinterpError("Rows to train on are told by --tokens or by --epochs, not by both.")
    opened = open_both(sae, store, site, device)
    if opened.directory is None:
        raise SplinterpError("An MLP encoder is written beside its SAE, and this one is in memory alone; save it first.")
    rows = tokens or (epochs or 1) * opened.store.split_rows("train")
    config = MlpConfig(
        hidden=width or 4 * opened.sae.config.d_in, rows=rows, batch_size=batch_size, lr=LR if lr is None else lr, seed=seed
    )
    return train_mlp(
        opened.sae, opened.directory, opened.store, opened.site.name, config, opened.device, progress=progress, force=force
    )


def export_sae(sae: AnySAE, out: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write an SAE's two files, and nothing else, into a directory that SAELens loads: `splinterp export --to saelens`.

    Raises:
        SplinterpError: `out` exists, and there is no `force`; or there is no such SAE.
    """
    directory = Path(out)
    if directory.exists() and not force:
        raise SplinterpError(f"{directory} exists already; give another --out, or --force to replace the SAE in it.")
    save_sae(load_sae(sae), directory)
    return directory


def export_activations(
    store: AnyStore, out: str | os.PathLike[str], *, context: int | None = None, split: str = "all", force: bool = False,
    progress: Progress | None = None,
) -> int:  # fmt: skip
    """Write a store's rows as SAELens's cached activations; returns how many: `splinterp export --to saelens-activations`.

    Args:
        context: rows that SAELens is to take for a context, its `context_size`; None: the store's, or 128. Others: see
            `store.export_saelens`.

    Raises:
        SplinterpError: `out` exists, or the split has less than a context's rows.
    """
    opened = store if isinstance(store, Store) else stores.open(store)
    return export_saelens(
        opened, Path(out), context=context, split=split_of(split), force=force,
        progress=progress and (lambda done, total: progress("export", done, total, {})),
    )  # fmt: skip


def export_neuronpedia(
    run: str | os.PathLike[str], store: AnyStore | None, out: str | os.PathLike[str], *, site: str | None = None, model: str | None = None,
    device: str = "auto", force: bool = False, progress: Progress | None = None,
) -> list[str]:  # fmt: skip
    """Write an SAE's latents as SAEDashboard's `batch-N.json`, which Neuronpedia's converter takes: `splinterp export --to neuronpedia`.

    Args:
        run: a run directory, or any SAE in SAELens's format. store: None: the one that the run was trained on.
        model: whose unembedding gives tokens; None: the store's, where it is `tiny` or a local directory.

    Returns:
        what was left out, in sentences.

    Raises:
        SplinterpError: `out` exists, and there is no `force`; the store holds no text; or the two do not go together.
    """
    return write_neuronpedia(
        Path(run), store, Path(out), site=site, model=model, device=device, force=force,
        progress=progress and (lambda stage, done, total: progress(stage, done, total, {})),
    )  # fmt: skip


def push_to_hub(sae: AnySAE, repo: str, path: str | None = None, *, private: bool = False, dry_run: bool = False) -> Upload:
    """Push an SAE to the Hugging Face hub, with a model card: `splinterp export --to hub`.

    Args:
        repo: user/name, made if need be.
        path: its folder there; None: the name of the SAE's directory.
        dry_run: only say what would be sent; asks no network.

    Returns:
        every file's name and bytes, and the commit's URL.

    Raises:
        SAEError: no possible name, or the hub cannot be reached or refuses.
    """
    loaded, directory = open_sae(sae)
    upload = upload_of(loaded, directory, repo, path)
    return upload if dry_run else push(upload, private)


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)
