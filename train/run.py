"""A training run from a store to a run directory: the loop, its figures, and the files it leaves."""

from __future__ import annotations

import json
import platform
import shutil
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
from ..sae import SAE, l0, save_sae
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
) -> TrainResult:
    """Train one SAE on a site's training rows and leave a run directory `out`.

    The directory holds `cfg.json` and `sae_weights.safetensors` (SAELens's format, of raw rows), `run.json` (every setting, versions, the
    store's fingerprint), `metrics.jsonl` (one object a line, while training) and `summary.json` (figures on the held-out rows).

    Raises:
        SplinterpError: `out` exists, the store lacks the site or has too few rows, or training diverged (the figures so far are kept).
    """
    info = store.site(site)
    device = torch.device(device)
    if out.exists():
        raise SplinterpError(f"{out} exists already; give another --out, or --force to replace it.")
    if store.split_rows("train") < 1 or store.split_rows("held_out") < 1:
        raise SplinterpError(f"{store.path} has too few rows ({store.rows:,}) to keep some apart for evaluation; harvest more.")
    rows = Rows.of(store, info.name, device)
    method = (PAM if config.method == "pam" else AdamBaseline)(info.d, config, device)
    out.mkdir(parents=True)
    write_json(out / RUN, describe(store, info.name, config, device))

    try:
        started = time.monotonic()
        with suitable_threads(info.d * config.d_sae, device), (out / METRICS).open("w", encoding="utf-8") as log:
            done, steps, interrupted = _loop(method, rows, config, log, progress)
        seconds = {"train": time.monotonic() - started}

        sae, solved, before = method.weights.sae(), None, None
        if config.last_solve:
            before = _evaluate(sae, rows)
            started = time.monotonic()
            sae, solved = _last_solve(sae, rows, config, progress)
            seconds["last_solve"] = time.monotonic() - started
        figures = _evaluate(sae, rows)
        sae = _with_metadata(sae.fold_normalisation(rows.mean, rows.scale), store, info.name)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted before there was an SAE to keep; {out} holds only the settings and the figures so far."
        ) from None
    save_sae(sae, out)
    summary = {
        **figures,
        "encoder": "native",
        "method": config.method,
        "steps": steps,
        "rows_trained": done,
        "rows_per_second": done / max(seconds["train"], 1e-9),
        "dead_in_training": len(method.gradient.dead.indices()),
        "interrupted": interrupted,
        "seconds": seconds,
        "last_solve": asdict(solved) if solved else None,
        "before_last_solve": before,
    }
    write_json(out / SUMMARY, summary)
    return TrainResult(sae, out, summary)


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
                raise SplinterpError(
                    f"Training diverged at step {step + 1} (loss {figures.loss}); lower --lr (it was {config.lr:g}). No SAE was written."
                )
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
    """Remove a run directory to make room for another.

    Raises:
        SplinterpError: it is not a run directory, so that --force must not remove it.
    """
    if not (directory / RUN).is_file():
        raise SplinterpError(
            f"{directory} is not a run directory (it has no {RUN}), so that --force leaves it alone; give another --out."
        )
    shutil.rmtree(directory)


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
