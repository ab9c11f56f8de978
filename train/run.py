"""Training from a store to a run directory: one SAE, or the steps of several together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from ..errors import Interrupted, SplinterpError
from ..store import Store
from .config import TrainConfig
from .directory import note_divergence
from .loggers import check_logger
from .loop import Progress, Stopped, run_steps
from .rows import Rows
from .stages import Run, TrainResult
from .training import CHECKPOINT_EVERY, Diverged, Tell, Training, diverged

GOES_ON = "The same command with --resume goes on."


def train(
    store: Store,
    site: str | None,
    config: TrainConfig,
    out: Path,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    force: bool = False,
    *,
    resume: bool = False,
    checkpoint_every: float = CHECKPOINT_EVERY,
    logger: str = "none",
    tell: Tell = lambda sentence: None,
) -> TrainResult:
    """Train one SAE on a site's training rows and leave a run directory `out`.

    The directory holds `cfg.json` and `sae_weights.safetensors` (SAELens's format, of raw rows), `run.json` (every setting, versions, the
    store's fingerprint), `metrics.jsonl` (one object a line, while training), `summary.json` (figures on the held-out rows; where it is,
    the run is finished) and until then `checkpoint.safetensors`.

    The first Ctrl-C or SIGTERM ends training after the step in hand, with a checkpoint. On a CPU a run that was interrupted or killed, and
    resumed, leaves what an uninterrupted one does, to the bit (but for times).

    Args:
        force: replace the run in `out`, once everything that can be refused has been checked.
        resume: go on with the run in `out`; from its beginning where there is no checkpoint, or no run, yet.
        checkpoint_every: seconds between checkpoints, which never take more than a twentieth of the time.
        logger: none, tensorboard or wandb, besides metrics.jsonl.
        tell: given sentences that are no errors: what a checkpoint takes, or that the disk refused one.

    Raises:
        SplinterpError: `out` exists (or, with `resume`, holds another run, a finished one or a damaged checkpoint), the store lacks the
            site or has too few rows, there is not the memory, or training diverged (the last checkpoint is kept).
        Interrupted: on a Ctrl-C or SIGTERM; says what is kept.
    """
    check_beginning(store, out, logger, resume=resume, force=force)
    info, device = store.site(site), torch.device(device)

    def left(run: Run, at: Diverged) -> None:
        note_divergence(out, at.args[0])
        raise diverged(at, config, run.checkpoints) from None

    with Run(Rows.of(store, info.name, device), config, out, tell) as run:
        if resume:
            run.find()
        run.prepare(checkpoint_every)
        run.begin(logger, force)
        take_steps([run], out, left, tell, progress)
        try:
            return run.finish(progress)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted; {out} holds the SAE as trained, without the last solve and without a summary. {GOES_ON}"
            ) from None


def check_beginning(store: Store, out: Path, logger: str, *, resume: bool, force: bool) -> None:
    """What can be refused before anything is read or made.

    Raises:
        SplinterpError: see `train`.
    """
    check_logger(logger)
    if resume and force:
        raise SplinterpError("A run is either resumed or replaced: give --resume or --force, not both.")
    if out.exists() and not (force or resume):
        raise SplinterpError(f"{out} exists already; give another --out, --resume to go on with it, or --force to replace it.")
    if store.split_rows("train") < 1 or store.split_rows("held_out") < 1:
        raise SplinterpError(f"{store.path} has too few rows ({store.rows:,}) to keep some apart for evaluation; harvest more.")


def take_steps(
    runs: Sequence[Run], out: Path, left: Callable[[Run, Diverged], None], tell: Tell, progress: Progress | None
) -> None:
    """All steps of the runs, which lie in `out`: those that have not diverged are trained then, and hold nothing but their SAE.

    Args:
        left: told of a run that has diverged; where it returns, the others go on.

    Raises:
        Interrupted: on a Ctrl-C or SIGTERM; says what is kept.
    """
    running = {run.training: run for run in runs if run.training}

    def leave(training: Training, at: Diverged) -> None:
        run = running.pop(training)
        run.leave()
        left(run, at)

    try:
        if running:
            run_steps(list(running), leave, tell, progress)
        for training, run in list(running.items()):
            try:
                run.end()
            except Diverged as at:
                leave(training, at)
    except Stopped:
        if not running:  # all of them have diverged
            return
        for training, run in running.items():
            run.save(training.method.weights.sae())
        saes = "SAE" if len(running) == 1 else "SAEs"
        raise Interrupted(f"Stopped after {_kept(running, out, 0)} and the {saes} so far. {GOES_ON}") from None
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted in {_kept(running, out, 1)}. {GOES_ON}") from None


def _kept(trainings: Collection[Training], out: Path, ahead: int) -> str:
    """The step that is done, or `ahead` of it, and what there is to go on from, in words."""
    first, steps = next(iter(trainings)), min(training.position.steps for training in trainings)
    begins = f"step {steps + ahead:,} of {first.config.steps:,}; {out} holds"
    if len(trainings) == 1:
        return f"{begins} {first.checkpoints.told()}"
    kept = [training.checkpoints.step for training in trainings if training.checkpoints.step is not None]
    if not kept:
        return f"{begins} no checkpoints yet"
    of = f"step {kept[0]:,}" if len(set(kept)) == 1 else f"steps {min(kept):,} to {max(kept):,}"
    return f"{begins} checkpoints of {of} for {len(kept)} of {len(trainings)} SAEs"
