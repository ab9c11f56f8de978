"""The steps of a run: batch by batch, with figures on the way, and checkpoints from which it can go on."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import SplinterpError
from ..evaluate.metrics import evaluate_rows
from ..quantities import format_bytes, format_seconds
from ..sae import SAE, non_zeros
from .adam import AdamBaseline
from .checkpoint import CHECKPOINT, Position, state_bytes, unsound, write_checkpoint
from .config import TrainConfig
from .gradient import StepFigures
from .interrupts import Interrupts
from .loggers import Logger, MetricsFile
from .pam import PAM
from .rows import Rows
from .schedule import k_at, lr_at
from .state import State

HELD_OUT_EVERY = 0.1  # of the run
HELD_OUT_ROWS = 8192  # rows used for the figures on the way; the last ones use them all
CHECKPOINT_EVERY = 600.0  # seconds
MOST_OF_THE_TIME = 0.05  # that checkpoints may take

# Told the stage ("train" or "last solve"), rows done, rows in all, and figures to show.
Progress = Callable[[str, int, int, dict[str, float]], None]
# Told a sentence that is no error.
Tell = Callable[[str], None]


class Diverged(Exception):
    """The loss or a weight is no number. The argument is the step by which that was seen."""


class Stopped(Exception):
    """The user asked for an end, and the step in hand is done and in a checkpoint, if the disk took it."""


class Checkpoints:
    """Writes a run's checkpoints every `every` seconds, but for no more than a twentieth of the time.

    Attributes:
        step: of the last whole checkpoint; None before the first. cost: seconds that it took. size: its bytes.
    """

    def __init__(self, directory: Path, every: float, tell: Tell, position: Position, found: bool) -> None:
        """The run goes on from `position`, by a checkpoint if one was `found`."""
        self.path, self.every, self.tell = directory / CHECKPOINT, every, tell
        self.step = position.steps if found else None
        self.cost, self.size, self._written_at = 0.0, 0, time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() - self._written_at >= max(self.every, self.cost / MOST_OF_THE_TIME)

    def write(self, position: Position, state: State) -> None:
        """Replace the checkpoint. Raises OSError where the disk refuses (the one before is kept), Diverged for a state that is no number."""
        if unsound(state):
            raise Diverged(position.steps)
        begun = time.monotonic()
        try:
            write_checkpoint(self.path, position, state)
            self.step, self.size = position.steps, state_bytes(state)
        finally:
            self._written_at = time.monotonic()
            self.cost = self._written_at - begun

    def write_or_tell(self, position: Position, state: State) -> None:
        """As `write`; a disk that refuses is told, and is no reason to lose what is in memory."""
        first = not self.cost and position.dead is None
        try:
            self.write(position, state)
        except OSError as error:
            kept = f"that of step {self.step:,} is kept" if self.step is not None else "there is none yet"
            self.tell(
                f"The checkpoint of step {position.steps:,} could not be written ({error.strerror}); {kept}. Training goes on."
            )
            return
        if first:
            pause = format_seconds(max(self.every, self.cost / MOST_OF_THE_TIME))
            self.tell(
                f"Checkpoint: {format_bytes(self.size)} ({_parts(state)}), written in {format_seconds(self.cost)}; one every {pause}."
            )

    def told(self) -> str:
        """What there is to go on from, in words."""
        if self.step is None:
            return "no checkpoint yet"
        cost = f" ({format_bytes(self.size)}, {format_seconds(self.cost)})" if self.size else ""
        return f"a checkpoint of step {self.step:,}{cost}"

    def check_room(self, needed: int) -> None:
        """Tell where the disk cannot hold two checkpoints, as it must while one replaces the other."""
        free = shutil.disk_usage(self.path.parent).free
        if free < 2 * needed:
            self.tell(
                f"A checkpoint takes at least {format_bytes(needed)}, two while one replaces another, but {format_bytes(free)} are free at "
                f"{self.path.parent}: the run may not be resumable."
            )


def run_steps(
    method: PAM | AdamBaseline, rows: Rows, config: TrainConfig, position: Position, metrics: MetricsFile | None, checkpoints: Checkpoints,
    logger: Logger | None = None, progress: Progress | None = None,
) -> None:  # fmt: skip
    """All steps from `position` on, which is moved along.

    Of several ranks only the first has `metrics`, and writes.

    Raises:
        Diverged: the loss or a weight is no number. Stopped: on a SIGINT or SIGTERM, after the step and its checkpoint.
    """
    group = rows.group
    log_every, evaluate_every = max(1, config.steps // 200), max(1, int(HELD_OUT_EVERY * config.steps))
    begun = time.monotonic() - position.seconds
    with Interrupts() as interrupts:
        for x in rows.training(config.batch_size, config.rows, config.seed, position.rows):
            n = min(config.batch_size, config.rows - position.rows)  # over all ranks
            lr, method.weights.k = lr_at(position.steps, config), k_at(position.steps, config)
            figures = method.step(x, lr, n)
            position.steps, position.rows = position.steps + 1, position.rows + n
            position.window_error += figures.squared_error
            position.window_rows += n
            position.seconds = time.monotonic() - begun
            step, last = position.steps, position.steps == config.steps
            if step % log_every == 0 or step % evaluate_every == 0 or last:
                _check(figures, step)
                shown = {
                    "fvu": position.window_error / (position.window_rows * x.shape[1]),  # rows have mean square 1 per dimension
                    "l0": group.sum(non_zeros(figures.codes)) / n,
                    "dead": float(len(method.gradient.dead.indices())),
                }
                line = {
                    "step": step,
                    "rows": position.rows,
                    "loss": figures.loss,
                    **shown,
                    "lr": lr,
                    "seconds": position.seconds,
                }
                if config.k_start is not None and method.weights.k is not None:
                    line["k"] = method.weights.k
                if metrics and (step % evaluate_every == 0 or last):
                    line["held_out_fvu"] = _held_out_fvu(method.weights.sae(), rows)
                if metrics:
                    metrics.log(line)
                if logger:
                    logger.log(step, line)
                position.window_error, position.window_rows = 0.0, 0
                if progress:
                    progress("train", position.rows, config.rows, shown)
            # All ranks stop at the same step, whichever was asked; the first one's clock decides on checkpoints.
            stopping, due = group.any(interrupts.asked, group.first and checkpoints.due())
            if stopping or due:
                _check(figures, step)
                state = method.whole_state()
                with group.all_or_none(Diverged, step):
                    if metrics:
                        (_last_checkpoint if stopping else _checkpoint)(state, position, metrics, checkpoints)
            if stopping:
                raise Stopped


def _check(figures: StepFigures, step: int) -> None:
    if not math.isfinite(figures.loss):
        raise Diverged(step)


def _checkpoint(state: State, position: Position, metrics: MetricsFile, checkpoints: Checkpoints) -> None:
    position.metrics_bytes = metrics.sync()
    checkpoints.write_or_tell(position, state)


def _last_checkpoint(state: State, position: Position, metrics: MetricsFile, checkpoints: Checkpoints) -> None:
    checkpoints.tell(f"Stopping at step {position.steps:,}: writing a checkpoint of {format_bytes(state_bytes(state))} …")
    try:
        position.metrics_bytes = metrics.sync()
        checkpoints.write(position, state)
    except OSError as error:
        checkpoints.tell(f"It could not be written ({error.strerror}).")


def _parts(state: Mapping[str, object]) -> str:
    """What a checkpoint holds, in words."""
    named = {"weights": "weights", "gradient": "optimiser", "statistics": "statistics"}
    return ", ".join(word for prefix, word in named.items() if any(name.startswith(prefix) for name in state))


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


def diverged(at: Diverged, config: TrainConfig, checkpoints: Checkpoints) -> SplinterpError:
    """The sentence for it."""
    begins = f"Training diverged by step {at.args[0]:,} (the loss or a weight is no number)"
    if checkpoints.step is None:
        return SplinterpError(
            f"{begins}, before the first checkpoint; start again with --force and a lower --lr (it was {config.lr:g})."
        )
    return SplinterpError(
        f"{begins}; {checkpoints.path} keeps step {checkpoints.step:,}. --resume with a lower --lr (it was {config.lr:g}) goes on from there."
    )
