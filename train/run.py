"""A training run from a store to a run directory: its stages, and the files it leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch

from .. import __version__
from ..devices import suitable_threads
from ..errors import Interrupted, SplinterpError
from ..evaluate.metrics import evaluate_rows
from ..quantities import format_bytes
from ..sae import SAE, save_sae
from ..store import Store
from ..store.files import Lock, temporary
from .adam import AdamBaseline
from .budget import codes_bytes, gram_bytes, memory_budget, solves_by_cg
from .checkpoint import CHECKPOINT, Position, read_checkpoint, state_bytes
from .config import TrainConfig
from .decoder import Penalties
from .directory import (
    METRICS,
    RUN,
    SUMMARY,
    check_is_run,
    describe,
    is_begun,
    note_divergence,
    remove_run,
    resumed,
    write_json,
)
from .encoder import Weights
from .group import ALONE, Group
from .in_step import agree, deal
from .last_solve import LastSolve, WithoutGram, last_solve
from .loggers import Logger, MetricsFile, check_logger, open_logger
from .loop import CHECKPOINT_EVERY, Checkpoints, Diverged, Progress, Stopped, Tell, diverged, run_steps
from .pam import PAM
from .rows import Rows, raw_rows
from .state import State, joined, part
from .window import Window


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its SAE (of raw rows), its directory, and its summary (what summary.json holds).

    On other ranks than the first the SAE is that before the last solve, and the summary empty.
    """

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
    *,
    resume: bool = False,
    checkpoint_every: float = CHECKPOINT_EVERY,
    logger: str = "none",
    tell: Tell = lambda sentence: None,
    group: Group = ALONE,
) -> TrainResult:
    """Train one SAE on a site's training rows and leave a run directory `out`.

    The directory holds `cfg.json` and `sae_weights.safetensors` (SAELens's format, of raw rows), `run.json` (every setting, versions, the
    store's fingerprint), `metrics.jsonl` (one object a line, while training), `summary.json` (figures on the held-out rows; where it is,
    the run is finished) and until then `checkpoint.safetensors`.

    The first Ctrl-C or SIGTERM ends training after the step in hand, with a checkpoint. On a CPU a run that was interrupted or killed, and
    resumed, leaves what an uninterrupted one does, to the bit (but for times).

    The ranks of `group` train one SAE together, all called with the same: each takes its share of every batch, the first one's directory
    holds the run. What comes of it is a single process's up to rounding, and so is what comes of a resumed run, with whatever ranks.

    Args:
        force: replace the run in `out`, once everything that can be refused has been checked.
        resume: go on with the run in `out`; from its beginning where there is no checkpoint, or no run, yet.
        checkpoint_every: seconds between checkpoints, which never take more than a twentieth of the time.
        logger: none, tensorboard or wandb, besides metrics.jsonl.
        tell: given sentences that are no errors: what a checkpoint takes, or that the disk refused one.
        group: the processes that train together. Only the first uses `out`, `progress`, `logger` and `tell`.

    Raises:
        SplinterpError: `out` exists (or, with `resume`, holds another run, a finished one or a damaged checkpoint), the store lacks the
            site or has too few rows, there is not the memory, training diverged (the last checkpoint is kept), or another rank ended.
        SaidElsewhere: of several ranks another raises the error that all end by.
        Interrupted: on a Ctrl-C or SIGTERM; says what is kept.
    """
    info = store.site(site)
    device = torch.device(device)
    if not group.first:
        progress, tell = None, lambda sentence: None
    described = {**describe(store, info.name, config, device), "ranks": group.world}
    position, state, begun, listener = Position(), {}, False, None
    with ExitStack() as stack:
        with group.agreed():
            check_logger(logger)
            if resume and force:
                raise SplinterpError("A run is either resumed or replaced: give --resume or --force, not both.")
            if group.first and out.exists() and not (force or resume):
                raise SplinterpError(
                    f"{out} exists already; give another --out, --resume to go on with it, or --force to replace it."
                )
            if store.split_rows("train") < 1 or store.split_rows("held_out") < 1:
                raise SplinterpError(
                    f"{store.path} has too few rows ({store.rows:,}) to keep some apart for evaluation; harvest more."
                )
            begun = group.first and resume and is_begun(out)
            if begun:
                stack.enter_context(_locked(out))
                described = resumed(out, described)
                if (out / CHECKPOINT).exists():
                    position, state = read_checkpoint(out / CHECKPOINT)
        config, position = agree(config, described, position, device, group)
        checkpoints = Checkpoints(out, checkpoint_every, tell, position, bool(state))
        run = _Run(store, Rows.of(store, info.name, device, group), config, out, progress, checkpoints)
        with group.agreed():
            if solves_by_cg(config, device):
                codes_bytes(config, info.d, device)  # refuses a budget that is too small even so
            method = _start(config, info.d, device, group, trained=position.dead is not None)
        state = deal(state if isinstance(method, PAM | AdamBaseline) else part(state, "weights"), method, group)
        with group.agreed():
            _load(method, state, checkpoints.path)
        del state
        if isinstance(method, PAM) and isinstance(method.statistics, Window):
            tell(
                f"The Gram matrix of {config.d_sae:,} latents takes up to {format_bytes(gram_bytes(config))}, more than the "
                f"{format_bytes(memory_budget(config, device))} of --memory: the decoder is solved by conjugate gradients over the last "
                f"{method.statistics.capacity * group.world:,} rows."
            )
        with group.agreed():
            if group.first:
                if not begun:
                    # Whatever can be refused has been: only now does an old run make room.
                    if out.exists() and force:
                        check_is_run(out)
                    out.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(_locked(out))
                    if (out / RUN).exists():
                        remove_run(out)
                write_json(out / RUN, described)
                listener = open_logger(logger, out, described, position.steps)
                if listener:
                    stack.callback(listener.close)
        sae = method.sae() if isinstance(method, Weights) else run.train(method, position, listener)
        del method  # the statistics and the optimiser's state make room for the last solve
        if group.first:
            save_sae(run.finished(sae), out)  # whatever happens now, this is kept
        with suitable_threads(info.d * config.d_sae, device):
            result = run.finish(sae, position) if group.first else run.assist(sae)
        if listener:
            listener.finish(result.summary)
        return result


@dataclass(frozen=True)
class _Run:
    """The stages of one run, whose directory is there and is nobody else's."""

    store: Store
    rows: Rows
    config: TrainConfig
    out: Path
    progress: Progress | None
    checkpoints: Checkpoints

    def train(self, method: PAM | AdamBaseline, position: Position, logger: Logger | None) -> SAE:
        """The steps that are left; the SAE of normalised rows that they lead to, which a small checkpoint holds too."""
        config, checkpoints, group, metrics = self.config, self.checkpoints, self.rows.group, None
        with group.agreed():
            if group.first:
                checkpoints.check_room(state_bytes(method.state()))
                metrics = MetricsFile(self.out / METRICS, position.metrics_bytes)
        try:
            with suitable_threads(len(self.rows.mean) * config.d_sae, self.rows.device):
                run_steps(method, self.rows, config, position, metrics, checkpoints, logger, self.progress)
            position.dead = len(method.gradient.dead.indices())
            with group.all_or_none(Diverged, position.steps):
                if metrics:
                    position.metrics_bytes = metrics.sync()
                    checkpoints.write_or_tell(position, joined(weights=method.weights.state()))
        except Diverged as at:
            if group.first:
                note_divergence(self.out, at.args[0])
            raise group.said_once(diverged(at, config, checkpoints)) from None
        except Stopped:
            if group.first:
                save_sae(self.finished(method.weights.sae()), self.out)
            raise self._interrupted(
                f"Stopped after step {position.steps:,} of {config.steps:,}; {self.out} holds {checkpoints.told()} and the SAE so far. "
                "The same command with --resume goes on."
            ) from None
        except KeyboardInterrupt:
            raise self._interrupted(
                f"Interrupted in step {position.steps + 1:,} of {config.steps:,}; {self.out} holds {checkpoints.told()}. "
                "The same command with --resume goes on."
            ) from None
        finally:
            if metrics:
                metrics.close()
        return method.weights.sae()

    def finish(self, sae: SAE, position: Position) -> TrainResult:
        """The figures of a trained SAE, its last solve, and the files of a finished run."""
        seconds, solved, before = {"train": position.seconds}, None, None
        try:
            figures = self._evaluate(sae)
            if self.config.last_solve:
                before, started = figures, time.monotonic()
                found = self._last_solve(sae)
                assert found is not None  # on the first rank
                sae, solved = found
                seconds["last_solve"] = time.monotonic() - started
                figures = self._evaluate(sae)
        except KeyboardInterrupt:
            raise self._interrupted(
                f"Interrupted; {self.out} holds the SAE as trained, without the last solve and without a summary. "
                "The same command with --resume goes on."
            ) from None
        sae = self.finished(sae)
        save_sae(sae, self.out)
        summary = {
            **figures,
            "encoder": "native",
            "method": self.config.method,
            "steps": position.steps,
            "rows_trained": position.rows,
            "rows_per_second": position.rows / max(position.seconds, 1e-9),
            "dead_in_training": position.dead,
            "seconds": seconds,
            "last_solve": asdict(solved) if solved else None,
            "before_last_solve": before,
        }
        write_json(self.out / SUMMARY, summary)
        for path in (self.checkpoints.path, temporary(self.checkpoints.path)):
            path.unlink(missing_ok=True)
        return TrainResult(sae, self.out, summary)

    def assist(self, sae: SAE) -> TrainResult:
        """What another rank than the first does for `finish`."""
        try:
            if self.config.last_solve:
                self._last_solve(sae)
        except KeyboardInterrupt:
            raise self._interrupted("Interrupted.") from None
        return TrainResult(self.finished(sae), self.out, {})

    def finished(self, sae: SAE) -> SAE:
        """An SAE of normalised rows as one of raw rows, with all that a file says of where it comes from."""
        return _with_metadata(sae.fold_normalisation(self.rows.mean, self.rows.scale), self.store, self.rows.site)

    def _evaluate(self, sae: SAE) -> dict[str, float | int]:
        """Figures, in the store's units, of an SAE of normalised rows on all held-out rows."""
        raw = raw_rows(self.store, self.rows.site, self.rows.device, "held_out")
        return evaluate_rows(sae.fold_normalisation(self.rows.mean, self.rows.scale), raw, self.rows.mean)

    def _interrupted(self, sentence: str) -> SplinterpError:
        return self.rows.group.said_once(Interrupted(sentence))

    def _last_solve(self, sae: SAE) -> tuple[SAE, LastSolve] | None:
        group, total, done = self.rows.group, self.store.split_rows("train"), 0

        def tell(n: int) -> None:
            nonlocal done
            done = min(total, done + n * group.world)
            if self.progress:
                self.progress("last solve", done, total, {})

        c = self.config
        penalties = Penalties(c.alpha, c.beta, c.mu_dec, c.nu_dec)
        device, without_gram = self.rows.device, None
        if solves_by_cg(c, device):
            without_gram = WithoutGram(
                codes_bytes(c, len(self.rows.mean), device), self.out if self.out.is_dir() else Path(gettempdir())
            )
        return last_solve(sae, self.rows.dealt("train", 4096), penalties, c.ridge, tell, without_gram, group)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """A run's directory, for this process alone.

    Raises:
        StoreError: another process trains there.
    """
    lock = Lock(out)
    try:
        yield
    finally:
        lock.release(remove=True)


def _load(into: PAM | AdamBaseline | Weights, state: State, path: Path) -> None:
    """Take up the state of a checkpoint, if there is one.

    Raises:
        SplinterpError: it is the state of something else.
    """
    if not state:
        return
    for name, own in into.state().items():
        if name not in state or (state[name].shape, state[name].dtype) != (own.shape, own.dtype):
            raise SplinterpError(f"{path} does not fit this version of splinterp ({name}); start the run again with --force.")
    into.load_state(state)


def _start(config: TrainConfig, d_in: int, device: torch.device, group: Group, trained: bool) -> PAM | AdamBaseline | Weights:
    """The method's state, or the weights alone where it has done its work; a sentence where there is not the memory for it."""
    try:
        if trained:
            return Weights(d_in, config, device, group)
        return (PAM if config.method == "pam" else AdamBaseline)(d_in, config, device, group)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises it as it is
        if "allocate" not in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise SplinterpError(
            f"There is not enough memory for {config.d_sae:,} latents: statistics and solves may take "
            f"{format_bytes(memory_budget(config, device))}; lower --memory or use fewer --latents."
        ) from None


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
