"""A training run from a store to a run directory: the loop, its figures, and the files it leaves."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

from .. import __version__
from ..devices import suitable_threads
from ..errors import Interrupted, SplinterpError
from ..evaluate.metrics import evaluate_rows
from ..quantities import format_bytes
from ..sae import SAE, l0, save_sae
from ..sae.files import CONFIG, WEIGHTS
from ..store import Store
from .adam import AdamBaseline
from .config import TrainConfig
from .decoder import Penalties
from .last_solve import LastSolve, last_solve
from .pam import PAM
from .rows import Rows, raw_rows
from .schedule import lr_factor

METRICS, RUN, SUMMARY = "metrics.jsonl", "run.json", "summary.json"
HELD_OUT_EVERY = 0.1  # of the run
HELD_OUT_ROWS = 8192  # rows used for the figures on the way; the last ones use them all

# Told the stage ("train" or "last solve"), rows done, rows in all, and figures to show.
Progress = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its SAE (of raw rows), its directory, and its summary (what summary.json holds)."""

    sae: SAE
    directory: Path
    summary: dict[str, Any]


def train(
    store: Store,
    site: str | None,
    config: TrainConfig,
    out: Path,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    force: bool = False,
) -> TrainResult:
    """Train one SAE on a site's training rows and leave a run directory `out`.

    The directory holds `cfg.json` and `sae_weights.safetensors` (SAELens's format, of raw rows), `run.json` (every setting, versions, the
    store's fingerprint), `metrics.jsonl` (one object a line, while training) and `summary.json` (figures on the held-out rows).

    Ctrl-C ends training early; what is left of the work is then done with the encoder as it is. A second one leaves the SAE as trained.

    Args:
        force: replace the run in `out`, once everything that can be refused has been checked.

    Raises:
        SplinterpError: `out` exists, the store lacks the site or has too few rows, there is not the memory, or training diverged (the
            figures so far are kept).
        Interrupted: on a Ctrl-C before the first step, or in the last solve; says what is kept.
    """
    info = store.site(site)
    device = torch.device(device)
    if out.exists() and not force:
        raise SplinterpError(f"{out} exists already; give another --out, or --force to replace it.")
    if store.split_rows("train") < 1 or store.split_rows("held_out") < 1:
        raise SplinterpError(f"{store.path} has too few rows ({store.rows:,}) to keep some apart for evaluation; harvest more.")
    rows = Rows.of(store, info.name, device)
    method = _start(config, info.d, device)
    # Whatever can be refused has been: only now does an old run make room.
    if out.exists():
        remove_run(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RUN, describe(store, info.name, config, device))

    def finished(sae: SAE) -> SAE:
        return _with_metadata(sae.fold_normalisation(rows.mean, rows.scale), store, info.name)

    started = time.monotonic()
    with suitable_threads(info.d * config.d_sae, device):
        try:
            with (out / METRICS).open("w", encoding="utf-8") as log:
                done, steps, interrupted = _loop(method, rows, config, log, progress)
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted before the first step was done; {out} holds no SAE.") from None
    seconds = {"train": time.monotonic() - started}
    sae, solved, before = method.weights.sae(), None, None
    if not all(bool(t.isfinite().all()) for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)):
        raise _diverged(steps, config)
    dead = len(method.gradient.dead.indices())
    del method  # its statistics and its optimiser's state make room for the last solve
    save_sae(finished(sae), out)  # whatever happens now, this is kept
    try:
        figures = _evaluate(sae, rows)
        if config.last_solve:
            before, started = figures, time.monotonic()
            sae, solved = _last_solve(sae, rows, config, progress)
            seconds["last_solve"] = time.monotonic() - started
            figures = _evaluate(sae, rows)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted; {out} holds the SAE as trained, without the last solve and without a summary."
        ) from None
    sae = finished(sae)
    save_sae(sae, out)
    summary = {
        **figures,
        "encoder": "native",
        "method": config.method,
        "steps": steps,
        "rows_trained": done,
        "rows_per_second": done / max(seconds["train"], 1e-9),
        "dead_in_training": dead,
        "interrupted": interrupted,
        "seconds": seconds,
        "last_solve": asdict(solved) if solved else None,
        "before_last_solve": before,
    }
    write_json(out / SUMMARY, summary)
    return TrainResult(sae, out, summary)


def _start(config: TrainConfig, d_in: int, device: torch.device) -> PAM | AdamBaseline:
    """The method's state; a sentence where there is not the memory for it."""
    try:
        return (PAM if config.method == "pam" else AdamBaseline)(d_in, config, device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises it as it is
        if "allocate" not in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise
        needed = 8 * config.d_sae * (config.d_sae + d_in)
        raise SplinterpError(
            f"There is not enough memory for {config.d_sae:,} latents: the statistics alone take {format_bytes(needed)}; use fewer --latents."
        ) from None


def _diverged(step: int, config: TrainConfig) -> SplinterpError:
    return SplinterpError(
        f"Training diverged by step {step} (the loss or a weight is no number); lower --lr (it was {config.lr:g}). No SAE was written."
    )


def _loop(
    method: PAM | AdamBaseline, rows: Rows, config: TrainConfig, log: TextIO, progress: Progress | None
) -> tuple[int, int, bool]:
    """All steps; returns (rows trained on, steps made, whether Ctrl-C cut it short)."""
    done, step, window_error, window_rows = 0, -1, 0.0, 0
    log_every = max(1, config.steps // 200)
    evaluate_every = max(1, int(HELD_OUT_EVERY * config.steps))
    started = time.monotonic()
    try:
        for step, x in enumerate(rows.training(config.batch_size, config.rows, config.seed)):
            lr = config.lr * lr_factor(step, config.steps)
            figures = method.step(x, lr)
            done += len(x)
            window_error, window_rows = window_error + figures.squared_error, window_rows + len(x)
            last = step + 1 == config.steps
            if (step + 1) % log_every and (step + 1) % evaluate_every and not last:
                continue
            if not figures.loss < float("inf"):
                raise _diverged(step + 1, config)
            shown = {
                "fvu": window_error / (window_rows * x.shape[1]),  # rows have mean square 1 per dimension
                "l0": l0(figures.codes),
                "dead": float(len(method.gradient.dead.indices())),
            }
            line = {
                "step": step + 1,
                "rows": done,
                "loss": figures.loss,
                **shown,
                "lr": lr,
                "seconds": time.monotonic() - started,
            }
            if (step + 1) % evaluate_every == 0 or last:
                line["held_out_fvu"] = _held_out_fvu(method.weights.sae(), rows)
            log.write(json.dumps(line) + "\n")
            log.flush()
            window_error, window_rows = 0.0, 0
            if progress:
                progress("train", done, config.rows, shown)
    except KeyboardInterrupt:
        if not done:
            raise
        return done, step + 1, True
    return done, step + 1, False


def _held_out_fvu(sae: SAE, rows: Rows) -> float:
    seen = 0

    def some():
        nonlocal seen
        for x in rows.once("held_out", 4096):
            yield x
            seen += len(x)
            if seen >= HELD_OUT_ROWS:
                return

    return float(evaluate_rows(sae, some())["fvu"])


def _evaluate(sae: SAE, rows: Rows) -> dict[str, float | int]:
    """Figures, in the store's units, of an SAE of normalised rows on all held-out rows."""
    raw = raw_rows(rows.store, rows.site, rows.device, "held_out")
    return evaluate_rows(sae.fold_normalisation(rows.mean, rows.scale), raw, rows.mean)


def _last_solve(sae: SAE, rows: Rows, config: TrainConfig, progress: Progress | None) -> tuple[SAE, LastSolve]:
    total, done = rows.store.split_rows("train"), 0

    def tell(n: int) -> None:
        nonlocal done
        done += n
        if progress:
            progress("last solve", done, total, {})

    penalties = Penalties(config.alpha, config.beta, config.mu_dec, config.nu_dec)
    return last_solve(sae, rows.once("train", 4096), penalties, config.ridge, tell)


def describe(store: Store, site: str, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """What run.json holds."""
    packages = ("torch", "transformer-lens", "transformers", "zarr", "numpy", "scipy")
    return {
        "settings": asdict(config),
        "store": str(store.path.resolve()),
        "store_fingerprint": store.fingerprint,
        "site": site,
        "store_rows": store.rows,
        "training_rows": store.split_rows("train"),
        "held_out_rows": store.split_rows("held_out"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"splinterp": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}},
    }


def remove_run(directory: Path) -> None:
    """Remove a run's own files from its directory, and the directory if nothing else lies in it, to make room for another run.

    Raises:
        SplinterpError: it is not a run directory, so that --force must not touch it.
    """
    if not (directory / RUN).is_file():
        raise SplinterpError(
            f"{directory} is not a run directory (it has no {RUN}), so that --force leaves it alone; give another --out."
        )
    for name in (WEIGHTS, CONFIG, METRICS, SUMMARY, RUN):  # the one that marks a run goes last
        (directory / name).unlink(missing_ok=True)
    if not any(directory.iterdir()) and not directory.is_symlink():
        directory.rmdir()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON, replacing the file as a whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _with_metadata(sae: SAE, store: Store, site: str) -> SAE:
    a = store.attributes
    metadata = {
        "model_name": a.get("model"),
        "hook_name": site,
        "context_size": a.get("context"),
        "prepend_bos": a.get("prepend_bos"),
        "dataset_path": a.get("dataset"),
        "model_class_name": "TransformerBridge",
        "splinterp_version": __version__,
        "store_fingerprint": store.fingerprint,
    }
    return replace(sae, config=replace(sae.config, metadata={k: v for k, v in metadata.items() if v is not None}))
